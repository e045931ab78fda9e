"""The faults of a run with several Globals: of Globals, the database, the links, workers, a host.

They come one at a time until every kind has happened, so that it is known what each costs; then
they overlap. The targets are a Global, its link to the database, the database, a worker, the
``dstore host`` of a host, and the link between one of these and a Global. Lengths are in ownership
leases.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from tests.faults.cluster import ClientProcess, Clients, OwnerLives, Times
from tests.faults.injector import Begun, Injector
from tests.faults.members.links import CLIENTS_MAX, Links
from tests.faults.members.member import Member
from tests.faults.members.state import rows
from tests.faults.proxy import EVERY, KINDS, PATHS, WAYS, Rule
from tests.faults.workload import Settings
from tests.postgres import Postgres

T = TypeVar("T", bound=Hashable)
DELAY_SECONDS = (0.005, 0.15)
"""Seconds by which each chunk is delayed: lowest, highest."""
THROTTLE_BYTES = (4_000, 60_000)
"""Bytes a second that pass: lowest, highest."""
PAUSE_LEASES = 0.4
"""Ownership leases between the beginnings of two faults, on average."""
SETTLE_LEASES = 1.2
"""Ownership leases after the repair of a fault until the next one that comes alone."""
DISTURBED_MAX = 2
"""Globals that are disturbed at the same time."""
ZOMBIE_SECONDS = 1.0
"""Seconds for which a former primary goes on beside the one that was promoted."""
CACHE_BYTES_SMALL = 1 << 20
FIRST_OWNER, FIRST_WORKER = 1, 10
"""The numbers of the addresses of owners and of workers among those of clients."""
ADDRESSES_MAX = 3
"""Addresses that a worker is given."""
TIMEOUTS = (1.2, 20.0)
"""Seconds until a call of a worker gives up: less than most faults last, and more."""

GLOBAL_KILLED = "Global killed"
GLOBAL_REPLACED = "Global killed, a Global without the database at its address"
GLOBAL_STOPPED_SHORT = "Global stopped for less than an ownership lease"
GLOBAL_STOPPED_LONG = "Global stopped for more than an ownership lease"
GLOBAL_RESTARTED = "Global asked to end, and started again"
GLOBAL_ADDED = "Global added"
GLOBAL_DRAINED = "Global drained"
GLOBAL_ISOLATED = "Global cut off from all"
PRIMARY_KILLED = "primary killed, standby promoted"
PRIMARY_LONG_AWAY = "primary killed, standby promoted after more than an ownership lease"
PRIMARY_STOPPED = "primary stopped, standby promoted, former primary goes on"
DATABASE_LINKS = {f"Global to database: {kind}": kind for kind in KINDS}
CLIENT_LINKS = {f"worker to Global: {kind}": kind for kind in KINDS}
WORKER_KILLED = "worker killed"
WORKER_STOPPED_SHORT = "worker stopped for less than a cache lease"
WORKER_STOPPED_LONG = "worker stopped for more than a cache lease"
OWNER_KILLED = "dstore host killed"
OWNER_STOPPED = "dstore host stopped"

OF_GLOBALS = {
    GLOBAL_KILLED: (0.1, 2.0),
    GLOBAL_REPLACED: (0.5, 2.0),
    GLOBAL_STOPPED_SHORT: (0.1, 0.6),
    GLOBAL_STOPPED_LONG: (1.3, 2.5),
    GLOBAL_RESTARTED: (0.0, 0.0),
    GLOBAL_ISOLATED: (1.2, 2.5),
}
"""The faults of one Global, and how long they last: lowest, highest."""
OF_DATABASE = {
    PRIMARY_KILLED: (0.05, 0.4),
    PRIMARY_LONG_AWAY: (1.2, 1.6),
    PRIMARY_STOPPED: (0.2, 0.5),
}
OF_WORKERS = {
    WORKER_KILLED: (0.0, 0.5),
    WORKER_STOPPED_SHORT: (0.1, 0.8),
    WORKER_STOPPED_LONG: (1.2, 2.5),
}
"""The same; the lengths are cache leases."""
OF_OWNERS = (OWNER_KILLED, OWNER_STOPPED)
OWNERLESS_LEASES = (0.2, 1.3, 2.5)
"""Cache leases for which a host has no owner, or one that is stopped; then clients go on alone."""
LINK_LEASES = (0.2, 2.0)
SOON_OVER = (*CLIENT_LINKS, WORKER_STOPPED_SHORT, WORKER_STOPPED_LONG, *OF_OWNERS)
"""The faults after which all is as before within a cache lease, and not only an ownership lease."""
FAULTS = (
    *OF_GLOBALS,
    GLOBAL_ADDED,
    GLOBAL_DRAINED,
    *OF_DATABASE,
    *DATABASE_LINKS,
    *CLIENT_LINKS,
    *OF_WORKERS,
    *OF_OWNERS,
)
ESSENTIAL = (
    GLOBAL_KILLED,
    GLOBAL_STOPPED_LONG,
    GLOBAL_ADDED,
    GLOBAL_DRAINED,
    PRIMARY_KILLED,
    "Global to database: cut",
    "worker to Global: cut",
    OWNER_KILLED,
)
"""One of each sort, for a short run."""
OWN_CACHE, OF_GLOBAL, OF_OWNER, TASKS = SORTS = range(4)
"""The sorts of workers: with a cache of its own; on the host of a Global, whose page it uses; on a
host with ``dstore host``; with an AsyncNode."""
PLACES = {OF_GLOBAL: "of a Global", OF_OWNER: "of dstore host"}
"""Whose page workers use, for the counts."""


class Nemesis(Injector):
    """Injects faults into a run with several Globals.

    The last of ``members`` is the one that is added and drained. ``worker`` are the settings of a
    new worker, whose addresses, seed and timeout are chosen here. With ``overlap`` faults overlap
    from the beginning. ``lease`` and ``cache_lease`` are in seconds. ``folders`` has the shared
    memory of the host of each Global, and ``owners`` are the ``dstore host`` of further hosts.
    """

    def __init__(
        self,
        rng: random.Random,
        members: Sequence[Member],
        postgres: Postgres,
        links: Links,
        clients: Clients,
        times: Times,
        worker: Settings,
        faults: Sequence[str],
        *,
        lease: float,
        cache_lease: float,
        overlap: bool = False,
        folders: Mapping[Member, str] = MappingProxyType({}),
        owners: Sequence[OwnerLives] = (),
    ) -> None:
        super().__init__(rng, faults, lease, PAUSE_LEASES)
        self._members = members[:-1]
        self._spare = members[-1]
        self._postgres = postgres
        self._links = links
        self._clients = clients
        self._times = times
        self._worker = worker
        self._numbers: dict[ClientProcess, int] = {}
        self._plain: set[Member] = set()  # those in whose place there is a Global without database
        self._cache_leases = cache_lease / lease
        self._overlap = overlap
        self._folders = folders
        self._owners = owners

    def add_worker(self, number: int) -> ClientProcess:
        """Start a worker. Its number says of which sort it is, and whether it watches.

        With eight workers there are two of each sort, and one of these watches and waits.
        """
        rng, living = self._rng, {client.settings.source for client in self._clients.living}
        free = map(self._links.source, range(FIRST_WORKER, CLIENTS_MAX))
        source = next(each for each in free if each not in living)
        there = [member for member in self._members if member not in self._plain]
        some = rng.sample(there, min(len(there), rng.randint(1, ADDRESSES_MAX)))
        worker = replace(
            self._worker,
            role="worker",
            address=",".join(member.advertised for member in some),
            source=source,
            seed=rng.getrandbits(32),
            timeout=rng.choice(TIMEOUTS),
            cache_bytes=rng.choice((self._worker.cache_bytes, CACHE_BYTES_SMALL)),
            watches=(number + number // len(SORTS)) % 2 == 1,
            called_back=number % 3 == 0,
        )
        client = self._clients.start(self._placed(worker, SORTS[number % len(SORTS)]))
        self._numbers[client] = number
        return client

    def _placed(self, worker: Settings, sort: int) -> Settings:
        if sort == OF_GLOBAL and self._folders:
            folder = self._rng.choice(list(self._folders.values()))
            return replace(worker, shm=folder, host="auto", place=PLACES[sort])
        if sort == OF_OWNER and self._owners:
            folder = self._rng.choice(self._owners).shm
            return replace(worker, shm=folder, host="auto", place=PLACES[sort])
        return replace(worker, tasks=sort == TASKS)

    # ---- choosing -------------------------------------------------------------------------

    def _disturb(self, fault: str) -> Begun | None:
        if not (self._overlap or self.complete) and not self._settled():
            return None
        if fault in OF_GLOBALS:
            return self._disturb_global(fault)
        if fault in OF_DATABASE:
            return self._disturb_database(fault)
        if fault in OF_WORKERS:
            return self._disturb_worker(fault)
        if fault in OF_OWNERS:
            return self._disturb_owner(fault)
        if fault in DATABASE_LINKS:
            return self._disturb_database_link(DATABASE_LINKS[fault])
        if fault in CLIENT_LINKS:
            return self._disturb_client_link(CLIENT_LINKS[fault])
        return self._add() if fault == GLOBAL_ADDED else self._drain()

    def _settled(self) -> bool:
        """Whether all faults were repaired, long enough ago that all should be as before."""
        if self._busy:
            return False
        last = max((fault.end or 0 for fault in self.history), default=0)
        return time.monotonic_ns() - last > SETTLE_LEASES * self._lease * 1e9

    def _leases(self, lengths: tuple[float, float]) -> float:
        return self._rng.uniform(*lengths)

    def _choose(self, targets: Sequence[T]) -> T | None:
        free = [target for target in targets if target not in self._busy]
        return self._rng.choice(free) if free else None

    # ---- Globals --------------------------------------------------------------------------

    def _disturb_global(self, fault: str) -> Begun | None:
        if sum(member in self._busy for member in self._members) >= DISTURBED_MAX:
            return None
        member = self._choose([each for each in self._members if each.alive])
        if member is None or (fault == GLOBAL_REPLACED and not self._all_know_the_cluster()):
            return None
        repair = partial(self._repair_global, member)
        if fault == GLOBAL_KILLED:
            member.kill()
        elif fault == GLOBAL_REPLACED:
            member.kill()
            member.start_plain()
            self._plain.add(member)
            repair = partial(self._bring_back, member)
        elif fault == GLOBAL_RESTARTED:
            member.ask_to_end()
            repair = partial(self._restart, member)
        elif fault == GLOBAL_ISOLATED:
            rule = Rule(self._rng.choice(("cut", "stall")))
            self._links.disturb_database(member.number, rule)
            self._links.disturb_client(member.number, rule)
            repair = partial(self._reconnect, member)
        else:
            member.signal(signal.SIGSTOP)
        return member, self._leases(OF_GLOBALS[fault]), repair

    def _all_know_the_cluster(self) -> bool:
        """Whether each worker has read something: it knows the cluster, and needs no other Global.

        A Node that knows none uses what is there.
        """
        return all(client.has_read for client in self._clients.living)

    def _bring_back(self, member: Member) -> bool:
        member.kill()
        member.start()
        self._plain.remove(member)
        return True

    def _repair_global(self, member: Member) -> bool:
        if member.alive:
            member.signal(signal.SIGCONT)
        else:
            member.start()
        return True

    def _restart(self, member: Member) -> bool:
        if not member.note_end():
            return False
        member.start()
        return True

    def _reconnect(self, member: Member) -> bool:
        self._links.disturb_database(member.number, Rule())
        self._links.disturb_client(member.number, Rule())
        return True

    def _add(self) -> Begun | None:
        if self._spare.alive or self._spare in self._busy:
            return None
        self._spare.start()
        return self._spare, 0.0, self._has_joined

    def _has_joined(self) -> bool:
        if self._spare.note_end():
            self._spare.start()
        mine = (row for row in rows(self._postgres) if row.address == self._spare.advertised)
        return any(row.partitions for row in mine)

    def _drain(self) -> Begun | None:
        if not self._spare.alive or self._spare in self._busy:
            return None
        if self._rng.random() < 0.5:
            self._spare.ask_to_end()
            return self._spare, 0.0, self._spare.note_end
        self._spare.drain(self._postgres.url())
        return self._spare, 0.0, self._has_drained

    def _has_drained(self) -> bool:
        if self._spare.has_drained():
            self._spare.ask_to_end()
        return self._spare.note_end()

    def revive(self) -> None:
        """Start again the Globals and owners that have ended by themselves, which is noted."""
        for member in self._members:
            if member.alive and member not in self._busy and member.note_end():
                member.start()
        for owner in self._owners:
            if owner not in self._busy and owner.note_end():
                owner.start()

    # ---- the database ---------------------------------------------------------------------

    def _disturb_database(self, fault: str) -> Begun | None:
        if self._postgres in self._busy:
            return None
        if fault == PRIMARY_STOPPED:
            self._postgres.primary.pause()
            repair = self._promote_beside
        else:
            self._postgres.primary.kill()
            repair = self._promote
        return self._postgres, self._leases(OF_DATABASE[fault]), repair

    def _promote(self) -> bool:
        self._postgres.fail_over()
        self._postgres.replace_standby()
        return True

    def _promote_beside(self) -> bool:
        """Promote the standby while the former primary is stopped, and let that go on a while."""
        former = self._postgres.fail_over(kill=False)
        former.resume()
        time.sleep(ZOMBIE_SECONDS)
        self._postgres.replace_standby()
        return True

    # ---- links ----------------------------------------------------------------------------

    def _rule(self, kind: str) -> Rule:
        amount = self._rng.uniform(*(DELAY_SECONDS if kind == "delay" else THROTTLE_BYTES))
        way = self._rng.choice(WAYS) if kind == "stall" else "both"
        return Rule(kind, amount, way)

    def _disturb_database_link(self, kind: str) -> Begun | None:
        target = self._choose([("database", member.number) for member in self._members])
        if target is None:
            return None
        self._links.disturb_database(target[1], self._rule(kind))
        repair = partial(self._links.disturb_database, target[1], Rule())
        return target, self._leases(LINK_LEASES), partial(_done, repair)

    def _disturb_client_link(self, kind: str) -> Begun | None:
        sources = [client.settings.source for client in self._clients.living]
        sources += [self._links.source(FIRST_OWNER + at) for at in range(len(self._owners))]
        target = self._choose([(at, member.number) for at in sources for member in self._members])
        if target is None:
            return None
        source, number = target
        assert source != EVERY
        paths = self._rng.choice((*((path,) for path in PATHS), PATHS))
        self._links.disturb_client(number, self._rule(kind), paths, source)
        repair = partial(self._links.disturb_client, number, Rule(), paths, source)
        return target, self._leases(LINK_LEASES), partial(_done, repair)

    # ---- workers --------------------------------------------------------------------------

    def _disturb_worker(self, fault: str) -> Begun | None:
        worker = self._choose(self._clients.living)
        if worker is None:
            return None
        leases = self._leases(OF_WORKERS[fault]) * self._cache_leases
        if fault == WORKER_KILLED:
            self._clients.kill(worker)
            number = self._numbers.pop(worker)
            return worker, leases, lambda: bool(self.add_worker(number))
        worker.signal(signal.SIGSTOP)
        return worker, leases, partial(self._go_on, worker, time.monotonic_ns())

    def _go_on(self, worker: ClientProcess, since: int) -> bool:
        worker.signal(signal.SIGCONT)
        self._times.stopped(worker.settings.name, since)
        return True

    # ---- hosts ----------------------------------------------------------------------------

    def _disturb_owner(self, fault: str) -> Begun | None:
        owner = self._choose(self._owners)
        if owner is None or owner.note_end():
            return None
        leases = self._rng.choice(OWNERLESS_LEASES) * self._cache_leases
        if fault == OWNER_KILLED:
            owner.kill()
            return owner, leases, partial(_done, partial(owner.start))
        owner.signal(signal.SIGSTOP)
        return owner, leases, partial(_done, partial(owner.signal, signal.SIGCONT))


def settles(fault: str, lease: float, cache_lease: float) -> float:
    """Return how long after the repair of a fault something may be late, in seconds."""
    if fault == WORKER_KILLED:
        return 0.0
    return cache_lease if fault in SOON_OVER else lease


def _done(repair: partial[None]) -> bool:
    repair()
    return True
