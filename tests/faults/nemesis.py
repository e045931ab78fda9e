"""The faults of a run with one Global: of workers, of Global, of paths, of the owners of hosts.

They overlap. The targets are a worker, an address of the relay, Global, an owner.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from tests.faults.cluster import ClientProcess, Clients, GlobalLives, OwnerLives, Times
from tests.faults.injector import Begun, Injector
from tests.faults.proxy import GLOBAL_HOST, KINDS, PATHS, WAYS, Proxy, Rule
from tests.faults.workload import Settings

DELAY_SECONDS = (0.005, 0.15)
"""Seconds by which each chunk is delayed: lowest, highest."""
THROTTLE_BYTES = (4_000, 60_000)
"""Bytes a second that pass: lowest, highest."""
LOG_LENGTHS = (16_384, 1_000, 100)
"""Lengths of the invalidation log: plenty, less than a flood, hardly any."""
CACHE_BYTES_SMALL = 40_000
"""A cache that does not hold all the keys of a round; some clients have it."""
PAUSE_LEASES = 0.6
"""Leases between the beginnings of two faults, on average."""
FLOOD_SECONDS_MAX = 20.0
"""Seconds after which a flood is ended."""

KILL_WORKER = "worker killed"
STOP_SHORT = "worker stopped for less than a lease"
STOP_LONG = "worker stopped for more than a lease"
KILL_GLOBAL = "Global killed"
FLOOD = "flood of deletions past a stopped worker"
PATH_FAULTS = {f"{path}: {kind}": (path, kind) for path in PATHS for kind in KINDS}
KILL_OWNER = "owner of a host killed"
STOP_OWNER = "owner of a host stopped"
ISOLATE = "both paths cut or stalled for more than a lease"
FAULTS = (
    KILL_WORKER,
    STOP_SHORT,
    STOP_LONG,
    KILL_GLOBAL,
    FLOOD,
    KILL_OWNER,
    STOP_OWNER,
    ISOLATE,
    *PATH_FAULTS,
)
SHARING = 3 / 4
"""The part of the clients that share the membership of their host if there is one."""
OWNERLESS_LEASES = (0.0, 0.3, 1.3, 5.0)
"""Leases for which a host has no owner, or one that is stopped: also until clients go on alone."""


class Nemesis(Injector):
    """Injects faults into a run.

    ``worker`` are the settings of a new worker, whose address and seed are chosen here; ``faults``
    are the kinds that happen. ``folders`` has the shared memory of each "host" by its address, and
    ``owners`` the ``dstore host`` of those that Global is not on.
    """

    def __init__(
        self,
        rng: random.Random,
        times: Times,
        served: GlobalLives,
        clients: Clients,
        proxy: Proxy,
        worker: Settings,
        faults: Sequence[str] = FAULTS,
        folders: Mapping[str, str] = MappingProxyType({}),
        owners: Mapping[str, OwnerLives] = MappingProxyType({}),
    ) -> None:
        super().__init__(rng, faults, times.lease / 1e9, PAUSE_LEASES)
        self._times = times
        self._served = served
        self._clients = clients
        self._proxy = proxy
        self._hosts = [GLOBAL_HOST, *proxy.hosts]
        self._worker = worker
        self._folders = folders
        self._owners = owners
        self._flooding = False

    def add_worker(self) -> None:
        self._start("worker")

    def add_guest(self) -> None:
        self._start("guest")

    # ---- choosing -------------------------------------------------------------------------

    def _disturb(self, fault: str) -> Begun | None:
        if fault in PATH_FAULTS:
            path, kind = PATH_FAULTS[fault]
            return self._disturb_paths((path,), kind, self._rng.uniform(0.3, 2.0))
        if fault == ISOLATE:
            kind = self._rng.choice(("cut", "stall"))
            return self._disturb_paths(PATHS, kind, self._rng.uniform(1.2, 2.5))
        if fault == KILL_GLOBAL:
            return self._kill_global()
        if fault in (KILL_OWNER, STOP_OWNER):
            return self._disturb_owner(fault)
        return self._disturb_worker(fault)

    def _disturb_worker(self, fault: str) -> Begun | None:
        worker = self._idle_worker(None if fault != FLOOD else self._proxy.hosts)
        if worker is None:
            return None
        if fault == KILL_WORKER:
            self._clients.kill(worker)
            return object(), self._rng.uniform(0, 0.5), lambda: bool(self._start("worker"))
        if fault == FLOOD:
            return self._flood(worker)
        worker.process.send_signal(signal.SIGSTOP)
        leases = (0.1, 0.8) if fault == STOP_SHORT else (1.2, 2.5)
        since = time.monotonic_ns()
        return worker, self._rng.uniform(*leases), partial(self._go_on, worker, since)

    def _idle_worker(self, hosts: Sequence[str] | None) -> ClientProcess | None:
        """A worker that is not disturbed; with ``hosts`` one that reaches Global through these."""
        addresses = [self._proxy.address(host) for host in hosts or self._hosts]
        idle = [
            client
            for client in self._clients.living
            if client.settings.role == "worker"
            and client.settings.address in addresses
            and client not in self._busy
        ]
        return self._rng.choice(idle) if idle else None

    # ---- Global ---------------------------------------------------------------------------

    def _kill_global(self) -> Begun | None:
        if KILL_GLOBAL in self._busy:
            return None
        self._served.kill()
        return KILL_GLOBAL, self._rng.choice((0.0, 0.3, 1.3)), self._start_global

    def _start_global(self) -> bool:
        self._served.start(self._rng.choice(LOG_LENGTHS))
        return True

    # ---- owners of hosts ------------------------------------------------------------------

    def _disturb_owner(self, fault: str) -> Begun | None:
        free = [owner for owner in self._owners.values() if owner not in self._busy]
        if not free:
            return None
        owner = self._rng.choice(free)
        leases = self._rng.choice(OWNERLESS_LEASES)
        if fault == KILL_OWNER:
            owner.kill()
            return owner, leases, partial(self._start_owner, owner)
        owner.signal(signal.SIGSTOP)
        return owner, leases, partial(self._continue_owner, owner)

    def _start_owner(self, owner: OwnerLives) -> bool:
        owner.start()
        return True

    def _continue_owner(self, owner: OwnerLives) -> bool:
        owner.signal(signal.SIGCONT)
        return True

    # ---- clients --------------------------------------------------------------------------

    def _start(self, role: str, victim: int = 0) -> ClientProcess:
        host = self._hosts[self._clients.started % len(self._hosts)]
        return self._clients.start(
            replace(
                self._worker,
                role=role,
                victim=victim,
                address=self._proxy.address(host),
                shm=self._folders.get(host),
                host="auto" if self._rng.random() < SHARING else "off",
                seed=self._rng.getrandbits(32),
                cache_bytes=self._rng.choice((self._worker.cache_bytes, CACHE_BYTES_SMALL)),
            )
        )

    def _flood(self, victim: ClientProcess) -> Begun | None:
        if self._flooding or not self._served.alive:
            return None
        flooder = self._start("flooder", victim.process.pid)
        deadline = time.monotonic() + FLOOD_SECONDS_MAX

        def over() -> bool:
            if not flooder.ended and time.monotonic() < deadline:
                return False
            self._clients.end(flooder)
            self._flooding = False
            return self._go_on(victim, since)

        since = time.monotonic_ns()
        self._flooding = True
        return victim, 0.0, over

    def _go_on(self, worker: ClientProcess, since: int) -> bool:
        worker.process.send_signal(signal.SIGCONT)
        self._times.stopped(worker.settings.name, since)
        return True

    # ---- paths ----------------------------------------------------------------------------

    def _disturb_paths(self, paths: Sequence[str], kind: str, leases: float) -> Begun | None:
        free = [host for host in self._proxy.hosts if host not in self._busy]
        if not free:
            return None
        host = self._rng.choice(free)
        amount = self._rng.uniform(*(DELAY_SECONDS if kind == "delay" else THROTTLE_BYTES))
        way = "both" if len(paths) > 1 else self._rng.choice(WAYS)
        for path in paths:
            self._proxy.disturb(host, path, Rule(kind, amount, way))

        def repair() -> bool:
            for path in paths:
                self._proxy.restore(host, path)
            return True

        return host, leases, repair
