"""A Global as a member of a cluster: what it owns, and when its epochs begin and end.

The decisions are those of :class:`~dstore.core.cluster.ownership.Ownership`; this module carries
them out in Global's thread, between two messages. Nothing here waits: the database is asked in one
thread, rows are loaded in another, and changes are committed in a third.

An epoch ends in two ways. In a *hand-over* the Global takes no new writes, waits until those that
have begun have ended, ends the epoch, and has what it gives up released after that. It takes up the
rest in a new epoch. If writes do not end in time, because the database is slow, it takes writes
again and tries later. In a *loss* it ends the epoch at once, forgets all, and joins
again. What Locals may still hold of the old epoch is waited for: that is what quiet times are for.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from dstore.core.authority.effects import NEVER, Commit, GlobalEffect
from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.core.cluster.messages import (
    Beat,
    Effect,
    Gained,
    HandOver,
    Leave,
    Left,
    Lost,
    MapChanged,
)
from dstore.core.cluster.ownership import Ownership
from dstore.core.engine import Bulk, LoadingEngine, Outcome
from dstore.errors import DataError, DstoreError
from dstore.protocol.partitions import partition_of
from dstore.runtime import clock
from dstore.runtime.logs import Log
from dstore.server.cluster.asking import Asking
from dstore.server.cluster.opening import open_storage
from dstore.server.cluster.storage import Deadline
from dstore.server.cluster.taking import Taking
from dstore.server.settings import GlobalSettings

log = Log("dstore.global")

GROUP = 16
"""Partitions that are loaded, and then served, together."""
_ENDED = object()
"""Stands for the end of what is done step by step."""
STEP_RECORDS = 5_000
"""Deadlines that are looked at in one step."""
DRAIN_LEASES, DRAIN_SLACK = 2, 1.0
"""Cache leases for which a hand-over takes no new writes, and seconds beyond these, before it is
tried later instead. A deletion may have to wait for a quiet time and for a lease.
"""
DRAIN_PAUSE = 5.0
"""Seconds until it is tried again."""
READS_MAX = 0.5
"""Seconds for which a hand-over waits for reads whose values are being loaded, at most. The Locals
ask again in the next epoch.
"""
FAULTS_MAX = 10
"""Failures of a member in a row, without any partition served, after which the Global ends."""
JOIN_TIMEOUT = 20.0
"""Seconds to wait for the threads at the end. All that they do with the database has a limit."""


class Service(Protocol):
    """What a member needs of the Global that it is a part of."""

    state: GlobalState

    def perform(self, effects: Iterable[GlobalEffect]) -> None:
        """Carry out the effects of the state."""

    def end_epoch(self) -> None:
        """Answer nothing of this epoch any more, and void the page of the host."""

    def begin_epoch(self) -> None:
        """Begin the next epoch, with the engine and the partitions that the member has by now."""

    def share(self, now: float) -> None:
        """Let the processes of the host share a membership of this epoch."""


@dataclass
class _Load:
    """Partitions whose rows are being loaded, and the deadlines so far."""

    numbers: tuple[int, ...]
    deadlines: list[Deadline] = field(default_factory=list)


class _HandingOver:
    """A hand-over: the writes that have begun are waited for. ``now`` is when that begins."""

    def __init__(self, now: float, cache_lease: float) -> None:
        self.until = now + DRAIN_LEASES * cache_lease + DRAIN_SLACK
        self.reads_until = now + READS_MAX
        self.again_at = 0.0  # when it begins once more; 0.0: it is under way

    def look_at(self, now: float) -> float:
        """Return when something changes, if no write ends before."""
        if self.again_at:
            return self.again_at
        return self.reads_until if now < self.reads_until else self.until


class Member:
    """The part of a Global that makes it a member of a cluster.

    All methods are for Global's thread. ``engine`` and ``partitions`` are those of the present
    epoch. ``left`` is whether it has left the cluster. Raises DataError.
    """

    def __init__(self, settings: GlobalSettings) -> None:
        assert settings.database is not None
        self.partitions = Partitions(0.0)
        self._storage = open_storage(settings)
        self._lease, self._cache_lease = settings.ownership_lease, settings.lease
        self._ownership: Ownership | None = None
        self._asking: Asking | None = None
        self._taking: Taking | None = None
        self._loads: dict[int, _Load] = {}
        self._jobs: deque[Iterator[None]] = deque()  # what is done step by step, one at a time
        self._step_at = 0.0  # when the next of these steps may be done
        self._forgetting: set[int] = set()  # partitions of which keys may be in memory still
        self._to_load: list[tuple[int, ...]] = []  # when they are forgotten
        self._serving: set[int] = set()
        self._handing_over: _HandingOver | None = None
        self._taking_up = False  # whether what was kept over a hand-over is not all served yet
        self._shared = False  # whether the processes of the host may share this epoch's membership
        self._failure = ""  # why all is to be given up, if it is
        self._faults = 0  # since partitions were served last
        self._map: tuple[int, list[str], bytes] = (0, [], b"")

    def __repr__(self) -> str:
        return f"<Member {self._ownership!r} serving={len(self._serving)} loads={len(self._loads)}>"

    # ---- life -------------------------------------------------------------------------------

    def begin(self, address: str, wake: Callable[[], object]) -> None:
        """Begin to take part, as the member that clients reach at ``address``.

        ``wake`` wakes Global's thread. Raises RuntimeError if there can be no more threads.
        """
        self._ownership = Ownership(
            secrets.token_bytes(16), address, lease=self._lease, cache_lease=self._cache_lease
        )
        self._storage.begin(self._ownership.me, wake)
        self._asking = Asking(self._storage.carry_out, wake)
        self._asking.begin()
        self._taking = Taking(self._storage.load, wake)
        self._taking.begin()

    def leave(self, service: Service) -> None:
        """Hand over everything, then leave the cluster; :attr:`left` is then set. Idempotent."""
        assert self._ownership is not None
        self._carry_out(service, self._ownership.drain(clock.now()))
        self._go_on_handing_over(service)

    @property
    def left(self) -> bool:
        """Whether it is no member any more. Others take over what it may still own."""
        return self._ownership is None or self._ownership.left

    def close(self) -> None:
        """End the threads, and close the connections. Idempotent."""
        threads = [each for each in (self._asking, self._taking) if each is not None]
        for each in threads:
            each.stop()
        try:
            self._storage.close()
        finally:
            for each in threads:
                each.join(JOIN_TIMEOUT)

    def forked(self) -> None:
        """In a forked child: leave everything to the parent."""
        for each in (self._asking, self._taking):
            if each is not None:
                each.forked()
        self._storage.forked()

    # ---- as the storage of a Global ---------------------------------------------------------

    @property
    def engine(self) -> LoadingEngine:
        """The engine of the present epoch."""
        return self._storage.engine

    def bulk(self, inner: Bulk) -> Bulk:
        """Return the place for large values: in ``inner``, and in the database."""
        return self._storage.bulk(inner)

    def commit(self, batch: Commit) -> None:
        self._storage.commit(batch.number, batch.changes)

    def committed(self) -> list[tuple[int, list[Outcome]]]:
        """Return the batches that have ended; see :class:`~dstore.core.engine.Journal`.

        If nothing more can be committed, all is given up in the next step.
        """
        try:
            return self._storage.committed()
        except DstoreError as error:
            self.fail(str(error))
            return []

    def fail(self, why: str) -> None:
        """Note that memory and database may differ. Everything is given up in the next step.

        Raises DataError if that has not helped again and again.
        """
        self._failure = self._failure or why
        self._faults += 1
        if self._faults > FAULTS_MAX:
            raise DataError(f"this member of a cluster fails whenever it joins again: {why}")

    def answers(self, now: float) -> bool:
        """Whether anything may be answered. The state is not to be called if not."""
        ends: float = self.partitions.ends
        return now < ends

    @property
    def committed_news(self) -> bool:
        """Whether :meth:`committed` has anything to say."""
        return self._storage.news

    @property
    def news(self) -> bool:
        """Whether there is something to do in a step at once."""
        asking = self._asking
        return bool(
            (asking is not None and asking.news) or self._handing_over is not None or self._failure
        )

    @property
    def check_at(self) -> float:
        """When :meth:`step` is next due, if there is no news."""
        if self._ownership is None:
            return NEVER
        if self._failure:
            return 0.0
        due = self._ownership.wake_at
        if self._at_work:
            due = min(due, self._step_at)
        if self._handing_over is not None:
            due = min(due, self._handing_over.look_at(clock.now()))
        return due

    def figures(self) -> dict[str, object]:
        """Return metrics of this member, by name."""
        left = max(0.0, self.partitions.ends - clock.now())
        return {
            "partitions": len(self._serving),
            "partitions_loading": sum(len(each.numbers) for each in self._loads.values()),
            "ownership_left": left,
            "member": "" if self._ownership is None else self._ownership.me.hex(),
            "members": len(self._map[1]),
            "map_version": self._map[0],
            **self._storage.figures(),
        }

    # ---- steps ------------------------------------------------------------------------------

    def step(self, service: Service) -> None:
        """Do what is due. If this raises, :meth:`fail` is to follow; DataError: it cannot go on."""
        ownership, asking = self._ownership, self._asking
        assert ownership is not None and asking is not None
        if self._failure:
            why, self._failure = self._failure, ""
            self._carry_out(service, ownership.lose(why, clock.now()))
        for ask, answer in asking.answered():
            self._carry_out(service, ownership.answered(ask, answer, clock.now()))
        self._carry_out(service, ownership.tick(clock.now()))
        self._go_on(service)
        self._go_on_handing_over(service)

    @property
    def _at_work(self) -> bool:
        """Whether there is a step to be done of what takes long."""
        return bool(self._jobs) or (self._taking is not None and self._taking.news)

    def _go_on(self, service: Service) -> None:
        """Do one step of what takes long, and leave as much time to messages as it has taken."""
        now = clock.now()
        if not self._at_work or now < self._step_at:
            return
        if not self._jobs:
            self._bind_page(service)
        elif next(self._jobs[0], _ENDED) is _ENDED:
            self._jobs.popleft()
        after = clock.now()
        self._step_at = after + (after - now)

    def _carry_out(self, service: Service, effects: Iterable[Effect]) -> None:
        assert self._asking is not None
        for each in effects:
            if isinstance(each, (Beat, Leave)):
                self._asking.ask(each)
            elif isinstance(each, Gained):
                self._gained(each)
            elif isinstance(each, HandOver):
                self._handing_over = _HandingOver(clock.now(), self._cache_lease)
                service.state.hold_writes()
            elif isinstance(each, Lost):
                self._lost(service, each.why)
            elif isinstance(each, MapChanged):
                self._map = self.partitions.map = (each.version, each.members, each.owners)
            elif isinstance(each, Left):
                log.info("this Global has left the cluster")
        self._note_lease(service)

    def _note_lease(self, service: Service) -> None:
        """Let the state answer until the ownership lease ends."""
        assert self._ownership is not None
        ends, now = self._ownership.ends, clock.now()
        self.partitions.cluster = self._storage.cluster
        self.partitions.ends = ends
        if now < ends and not self._shared:
            # Before the first answer, since this voids what a former Global here has left.
            self._shared = True
            service.share(now)
        if self._ownership.draining and not self.partitions:
            # This epoch has owned nothing, and will not. To refuse what still comes promises
            # nothing, and lets Locals know that their writes were not executed.
            self.partitions.ends = NEVER

    # ---- gaining ----------------------------------------------------------------------------

    def _gained(self, gained: Gained) -> None:
        """Have the rows loaded, a few partitions at a time."""
        self._storage.own({each.number: each.fence for each in gained.gains})
        numbers = [each.number for each in gained.gains]
        for start in range(0, len(numbers), GROUP):
            self._load(tuple(numbers[start : start + GROUP]))

    def _load(self, numbers: tuple[int, ...]) -> None:
        """Have the rows of partitions loaded, once nothing of them is in memory any more."""
        assert self._taking is not None
        if self._forgetting.isdisjoint(numbers):
            self._loads[self._taking.take(numbers)] = _Load(numbers)
        else:
            self._to_load.append(numbers)

    def _forget(self, numbers: Collection[int]) -> None:
        """Begin to forget partitions that are not served."""
        self._forgetting.update(numbers)
        self._jobs.append(self._forgotten(numbers))

    def _forgotten(self, numbers: Collection[int]) -> Iterator[None]:
        yield from self._storage.forget(numbers)
        self._forgetting.difference_update(numbers)
        to_load, self._to_load = self._to_load, []
        for each in to_load:
            self._load(each)

    def _bind_page(self, service: Service) -> None:
        """Bind one page of the rows that were loaded. After the last one they are served."""
        assert self._taking is not None
        page = self._taking.page()
        if page is None:
            return
        load = self._loads[page.load]
        if page.failed:
            del self._loads[page.load]
            if self._overtaken(load.numbers):
                self.fail("a statement of before has raised the fence of a partition")
                return
            self._forget(load.numbers)
            self._load(load.numbers)
            return
        if not page.last:
            load.deadlines += self._storage.bind(page.rows)
        else:
            del self._loads[page.load]
            self._serve(service, load.numbers, load.deadlines)

    def _overtaken(self, numbers: Collection[int]) -> bool:
        """Whether the database shows higher fences than are known: then these never load.

        A barrier that was sent before a loss may be carried out after the claim that followed.
        """
        assert self._ownership is not None
        owned, known = self._ownership.owned, self._storage.fences
        return any(owned[number].fence > known[number] for number in numbers)

    def _serve(self, service: Service, numbers: Collection[int], deadlines: list[Deadline]) -> None:
        """Serve partitions whose rows are bound."""
        assert self._ownership is not None
        if not numbers:
            return
        owned = self._ownership.owned
        self.partitions.ends = self._ownership.ends  # while it owned nothing it may have been later
        quiet_until = max(owned[number].quiet_until for number in numbers)
        self._serving.update(numbers)
        self._faults = 0
        effects = service.state.gain(numbers, deadlines, quiet_until, clock.now())
        service.perform(effects)
        if not (self._loads or self._to_load or self._taking_up):
            log.info("serves %d partitions now", len(self._serving))

    # ---- giving up --------------------------------------------------------------------------

    def _go_on_handing_over(self, service: Service) -> None:
        handing, now = self._handing_over, clock.now()
        if handing is None or now < handing.again_at or self._taking_up:
            return
        if handing.again_at:
            handing = self._handing_over = _HandingOver(now, self._cache_lease)
            service.state.hold_writes()
        if service.state.writing:
            if now >= handing.until:
                handing.again_at = now + DRAIN_PAUSE
                service.state.take_writes(now)
                log.warning("partitions are not handed over yet: writes that have begun do not end")
        elif service.state.idle or now >= handing.reads_until:
            self._hand_over(service)

    def _hand_over(self, service: Service) -> None:
        """End the epoch, and begin the next one with the partitions that are left."""
        assert self._ownership is not None
        records = service.state.deadlines()
        before = set(self._ownership.owned)
        service.end_epoch()
        effects = self._ownership.handed_over(clock.now())
        given_up = before - self._ownership.owned.keys()
        log.info(
            "hands over %d partitions, and keeps %d", len(given_up), len(before) - len(given_up)
        )
        kept, self._serving = self._serving - given_up, set()
        self._begin_epoch(service)
        self._jobs.append(self._taken_up(service, kept, records))
        self._storage.disown(given_up)
        self._forget(given_up)
        self._load_again(given_up)
        self._carry_out(service, effects)
        self._go_on(service)

    def _taken_up(
        self, service: Service, kept: Collection[int], records: Iterable[Deadline]
    ) -> Iterator[None]:
        """Serve in a new epoch what was kept of the former one, with its deadlines."""
        self._taking_up = True
        groups: dict[int, list[Deadline]] = {number // GROUP: [] for number in kept}
        for count, record in enumerate(records):
            number = partition_of(record[0])
            if number in kept:
                groups[number // GROUP].append(record)
            if count % STEP_RECORDS == STEP_RECORDS - 1:
                yield
        for group, deadlines in groups.items():
            self._serve(service, [each for each in kept if each // GROUP == group], deadlines)
            if deadlines:
                yield
        self._taking_up = False

    def _load_again(self, given_up: set[int]) -> None:
        """Load what is being loaded once more, without what was given up."""
        assert self._taking is not None
        if not any(given_up.intersection(each.numbers) for each in self._loads.values()):
            return
        self._taking.cancel()
        loads, self._loads = self._loads, {}
        for each in loads.values():
            numbers = tuple(number for number in each.numbers if number not in given_up)
            if numbers:
                self._forget(numbers)
                self._load(numbers)

    def _lost(self, service: Service, why: str) -> None:
        """Answer nothing any more, and forget everything."""
        assert self._taking is not None
        self.partitions.ends = 0.0
        log.warning("this Global owns nothing any more, and joins again: %s", why)
        try:
            service.end_epoch()
            self._taking.cancel()
            for each in (self._loads, self._jobs, self._forgetting, self._to_load, self._serving):
                each.clear()
            self._taking_up = False
            self._storage.reset()
            self._begin_epoch(service)
        except Exception as error:
            raise DataError(f"a new epoch cannot begin: {error!r}") from error

    def _begin_epoch(self, service: Service) -> None:
        assert self._ownership is not None
        self._shared = False
        self._handing_over = None
        self.partitions = Partitions(self._ownership.ends, self._storage.cluster)
        self.partitions.map = self._map
        service.begin_epoch()
