"""The simulated process of a member, around the real Ownership and the real GlobalState."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from dstore.core.authority.access import keys_of
from dstore.core.authority.effects import Commit, GlobalEffect, Load, Publish, Send
from dstore.core.authority.partitions import NO_MAP, Partitions
from dstore.core.authority.state import GlobalState
from dstore.core.cluster.messages import (
    Ask,
    Beat,
    Effect,
    Gain,
    Gained,
    HandOver,
    Leave,
    Left,
    Lost,
    MapChanged,
    Partition,
    View,
)
from dstore.core.cluster.ownership import Ownership
from dstore.core.engine import Kept, Loaded, Outcome
from dstore.protocol.messages import (
    AskMap,
    Chunk,
    Fetch,
    GetReply,
    Key,
    MapReply,
    Refusal,
    Refused,
    ScanReply,
    ToLocal,
    TtlReply,
)
from dstore.protocol.partitions import partition_of
from dstore.server.engines.memory import MemoryEngine
from dstore.server.postgres.large import LargeValues, StoredBulk
from tests.simulation.cluster.journal import ClusterJournal
from tests.simulation.cluster.machine import Machine
from tests.simulation.cluster.pieces import PieceReader, Place, is_large, sizes_of
from tests.simulation.cluster.scenario import ClusterScenario
from tests.simulation.cluster.servers import Client, Connection, Database, Transaction
from tests.simulation.cluster.stranger import Stranger
from tests.simulation.cluster.tables import KEPT, PARTITION, carry_out
from tests.simulation.host import SimBulk
from tests.simulation.identities import Identities
from tests.simulation.loop import Loop
from tests.simulation.network import Connection as ClientConnection
from tests.simulation.own_page import GlobalsPage
from tests.simulation.owners import CHECK_EVERY, Owner
from tests.simulation.pages import SimPage
from tests.simulation.trace import short

NEVER = float("inf")
WALL = 1.8e9
"""The time of the wall clock at the beginning of a run."""
CLUSTER = b"the one cluster."
"""The id of the simulated cluster."""
LOOK_EVERY = 0.01
"""Seconds between two looks whether all that has begun has ended."""
READ = (GetReply, TtlReply, ScanReply, Chunk)
"""Replies that say what is bound now."""


class Rows(NamedTuple):
    """What was read of partitions: rows, and how much there is of each large value."""

    kept: list[Kept]
    sizes: dict[Place, int]


class SimMember(Owner, Client):
    """A process at one address; after each crash its next life, with another id."""

    scenario: ClusterScenario

    def __init__(
        self,
        loop: Loop,
        scenario: ClusterScenario,
        database: Database,
        identities: Identities,
        number: int,
    ) -> None:
        super().__init__(loop, scenario, f"M{number}")
        self.database = database
        self.identities = identities
        self.address = f"tcp://{self.name}:1"
        self.cache_lease = scenario.leases[number % len(scenario.leases)]
        drift = scenario.member_drift
        self.rate = 1 + loop.dice.uniform(-drift, drift)
        self.offset = loop.dice.uniform(10, 1000)
        self.machine = Machine(loop, self.rate, self.offset)
        self.host = self.machine.of(self.address)
        self.held = SimBulk(self.host)
        self._own: GlobalsPage | None = None
        self.ended: list[SimPage] = []  # pages of epochs that have ended
        self._reader = PieceReader(database, self)
        self.connections: dict[str, ClientConnection] = {}
        self.subscriptions: dict[str, ClientConnection] = {}
        self.alive = False
        self.lives = 0
        self.state: GlobalState | None = None
        self.giving: tuple[int, ...] = ()
        self.partitions = Partitions(0.0)
        self.map = NO_MAP
        self._refuses_until = 0.0
        self._stranger: Stranger | None = None

    def clock(self) -> float:
        return self.machine.clock()

    @property
    def life(self) -> object:
        return self.alive, self.lives

    # ---- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life."""
        if self.alive:
            return
        self.alive = True
        self._end_stranger()
        self.lives += 1
        me = self.loop.random16()
        self.loop.log(self.name, f"starts as {me.hex()[:4]}")
        self.ownership = Ownership(
            me, self.address, lease=self.scenario.ownership, cache_lease=self.cache_lease
        )
        self._directory = Connection(self.database, self, "directory")
        self._begin_tenure()
        self._timer = NEVER
        self._act(self.ownership.tick(self.clock()))

    def _begin_tenure(self) -> None:
        """Begin with nothing: at the start, and after a loss."""
        self.loaded: set[int] = set()
        self.giving = ()
        self.forgetting: set[int] = set()  # partitions of which keys may be in memory still
        self.engine = MemoryEngine(journal=True)
        self.values = LargeValues()
        self.journal = ClusterJournal(
            self.database, self, self.ownership.me, self._committed, self._on_fenced, self.values
        )
        self.tenure = object()

    def crash(self) -> None:
        """End without a message, and start again later. The page stays as it is."""
        if self.alive:
            self.loop.log(self.name, "crashes")
            self._end()
            self.loop.later(2 * self.loop.dice.random() * self.scenario.ownership, self.start)

    def begin_stranger(self) -> None:
        """Let another Global listen at the address of this member, which has ended."""
        self._end_stranger()
        self._stranger = Stranger(
            self.loop,
            self.address,
            self.clock,
            self._perform,
            lease=self.cache_lease,
            member=self.loop.dice.random() < 0.5,
        )

    def _end_stranger(self) -> None:
        stranger, self._stranger = self._stranger, None
        if stranger is not None:
            stranger.end()

    def _end(self) -> None:
        self.alive = False
        self.state = self._own = None
        self._until = 0.0  # nothing of it stands still any more
        self.journal.close()
        self._directory.close()
        self.tenure = object()

    def drain(self) -> None:
        """Hand over all, and leave."""
        if self.alive and not self.held_up("drain", self.drain):
            self.loop.log(self.name, "drains")
            self._act(self.ownership.drain(self.clock(), self.scenario.linger))

    # ---- ownership ------------------------------------------------------------------------

    def _act(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, (Beat, Leave)):
                self._ask(effect)
                continue
            self.loop.log(self.name, f"{effect}"[:150])
            self.loop.counts[f"ownership: {type(effect).__name__}"] += 1
            if isinstance(effect, Gained):
                self._load(self.tenure, effect.gains)
            elif isinstance(effect, HandOver):
                self._hand_over(effect)
            elif isinstance(effect, Lost):
                self.partitions.ends = 0.0
                self._drop_epoch()
                self.journal.close()
                self._begin_tenure()
            elif isinstance(effect, MapChanged):
                self.map = (effect.version, effect.members, effect.owners)
            elif isinstance(effect, Left):
                self._void()
                self._end()
                self._refuses_until = self.loop.now + 1.1 * self.cache_lease
                return
        self._follow()

    def _follow(self) -> None:
        """Bring the epoch in line with the ownership."""
        self.partitions.ends = self.ownership.ends
        self.partitions.map = self.map
        if self.state is None and self.ownership.ends and not self.giving:
            self._begin_epoch(())
        self._share()
        self._plan()

    def _ask(self, ask: Ask) -> None:
        if isinstance(ask, Leave) or ask.works or ask.join:
            self.loop.log(self.name, f"asks {_short(ask)}")
        self._directory.run(partial(carry_out, ask), partial(self._answered, ask))

    def _answered(self, ask: Ask, view: View | None) -> None:
        if self.alive:
            if view is None:
                self.loop.log(self.name, f"has no answer to {_short(ask)}")
            self._act(self.ownership.answered(ask, view, self.clock()))

    def _on_fenced(self) -> None:
        self.loop.counts["writes that a fence has stopped"] += 1
        self._act(self.ownership.lose("a write was refused for its fence", self.clock()))

    # ---- taking over ----------------------------------------------------------------------

    def _load(self, tenure: object, gains: tuple[Gain, ...]) -> None:
        """Read the rows of partitions, from a server that shows what was claimed."""
        if tenure is not self.tenure:
            return
        numbers = {each.number for each in gains}
        if not self.forgetting.isdisjoint(numbers):
            self.loop.later(LOOK_EVERY, self._load, tenure, gains)
            return

        def read(rows: Transaction) -> Rows | None:
            for number, fence, _ in gains:
                name = (PARTITION, number)
                rows.lock(name)
                row: Partition = rows.get(name)
                if row.owner != self.ownership.me or row.fence != fence:
                    self.loop.counts["former primaries that were not believed"] += 1
                    return None
                rows.put(name, row)  # a barrier: when it is replicated, so is all that is read
            keys = [key for key in rows.names(KEPT) if partition_of(key) in numbers]
            return Rows([rows.get((KEPT, key)) for key in keys], sizes_of(rows, numbers))

        connection = Connection(self.database, self, "loader")

        def done(loaded: Rows | None) -> None:
            connection.close()
            if tenure is not self.tenure:
                return
            if loaded is None:
                self._load_again(gains)
            else:
                self._serve(gains, loaded)

        connection.run(read, done)

    def _load_again(self, gains: tuple[Gain, ...]) -> None:
        """Try again, without what was handed over meanwhile."""
        owned = self.ownership.owned
        left = tuple(each for each in gains if each.number in owned)
        if any(owned[each.number].fence > each.fence for each in left):
            self.loop.counts["fences that a late statement has raised"] += 1
            self._act(self.ownership.lose("a statement of before has raised it", self.clock()))
        elif left:
            self.loop.later(0.05 * self.scenario.ownership, self._load, self.tenure, left)

    def _serve(self, gains: tuple[Gain, ...], loaded: Rows) -> None:
        now = self.clock()
        for gain in gains:
            owned = self.ownership.owned.get(gain.number)
            if owned is None or owned.fence != gain.fence or self.state is None:
                continue  # it was handed over meanwhile
            rows = [row for row in loaded.kept if partition_of(row.key) == gain.number]
            self.journal.own(gain.number, gain.fence)
            self._drop_orphans(gain.number, rows, loaded.sizes)
            for row in rows:
                assert row.stored is not None
                self._take_large(row, loaded.sizes)
                self.engine.bind(row.key, row.stored)
            self.loaded.add(gain.number)
            deadlines = [(row.key, row.token, row.deadline) for row in rows]
            effects = self.state.gain([gain.number], deadlines, owned.quiet_until, now)
            self.loop.log(self.name, f"serves {gain.number} until {owned.quiet_until - now:.3f}")
            self._perform(effects)

    def _drop_orphans(self, number: int, rows: list[Kept], sizes: dict[Place, int]) -> None:
        """Have the pieces removed that no row names."""
        named = {row.token for row in rows if is_large(row.stored)}
        for partition, token in sizes:
            if partition == number and token not in named:
                self.loop.counts["large values that no key names"] += 1
                self.journal.drop_pieces(number, token)

    def _take_large(self, row: Kept, sizes: dict[Place, int]) -> None:
        """Note a large value, whose pieces have to be there."""
        if not is_large(row.stored):
            return
        assert row.stored is not None
        number, size = partition_of(row.key), row.stored.size
        if sizes.get((number, row.token)) != size or not self.values.add(row.token, number, size):
            self.loop.violation(f"{self.name} finds not all pieces of {row.key}")

    # ---- giving up ------------------------------------------------------------------------

    def _hand_over(self, effect: HandOver) -> None:
        self.giving = effect.numbers
        self._hold(self.tenure)

    def _hold(self, tenure: object) -> None:
        """Take no new writes, until those that have begun have ended."""
        if tenure is not self.tenure or not self.giving:
            return
        if not self.held_up("hold", self._hold, tenure):
            if self.state is not None:
                self.state.hold_writes()
            patience = 2 * max(self.scenario.leases) + self.scenario.ownership
            self._look_drained(tenure, self.loop.now + patience)

    def _look_drained(self, tenure: object, until: float) -> None:
        """Whether all writes that have begun have ended, so that the epoch can end."""
        if tenure is not self.tenure or not self.giving:
            return
        if self.held_up("drained", self._look_drained, tenure, until):
            return
        if self.state is None or not self.state.writing:
            self._end_epoch()
        elif self.loop.now >= until:
            self.loop.counts["hand-overs that are tried again"] += 1
            self.state.take_writes(self.clock())
            self.loop.later(self.scenario.ownership, self._hold, tenure)
        else:
            self.loop.later(LOOK_EVERY, self._look_drained, tenure, until)

    def _end_epoch(self) -> None:
        given, self.giving = set(self.giving), ()
        deadlines = [] if self.state is None else list(self.state.deadlines())
        kept = [each for each in deadlines if partition_of(each[0]) not in given]
        self.journal.disown(given)
        self.loaded -= given
        self._drop_epoch()
        effects = self.ownership.handed_over(self.clock())
        if self.ownership.ends:
            self._begin_epoch(kept)
        self.forgetting |= given
        self.loop.later(self.loop.dice.random() * LOOK_EVERY, self._forget, self.tenure, given)
        self._act(effects)

    def _forget(self, tenure: object, given: set[int]) -> None:
        """Remove from memory what was given up."""
        if tenure is not self.tenure:
            return
        for key in self.engine.scan("", "", 1000):
            stored = self.engine.read(key)
            assert stored is not None
            if partition_of(key) in given:
                self.engine.remove(key, stored.token)
                self.values.forget([stored.token])
                self.bulk.forget([stored.token])
        self.forgetting -= given

    def _drop_epoch(self) -> None:
        """End the epoch. Reads that wait are refused; nothing is said about writes."""
        self._void()
        state, self.state = self.state, None
        if state is not None:
            self._perform(state.end())

    # ---- epochs ---------------------------------------------------------------------------

    def _begin_epoch(self, deadlines: Iterable[tuple[Key, bytes, float]]) -> None:
        scenario = self.scenario
        self.partitions = Partitions(self.ownership.ends, CLUSTER)
        self.partitions.map = self.map
        for number in self.loaded:
            self.partitions.gain([number], self.ownership.owned[number].quiet_until)
        self.held = SimBulk(self.host)
        self.bulk = StoredBulk(self.held, self.values, self.journal, scenario.large_memory)
        self.state = GlobalState(
            self.engine,
            self.bulk,
            epoch=self.loop.number(),
            publisher="tcp://*:2",
            lease=self.cache_lease,
            log_length=scenario.log_length,
            value_limit=1 << 20,
            large_from=1 << 10,
            random63=self.loop.random63,
            wall=lambda: WALL + self.loop.now,
            durable=True,
            partitions=self.partitions,
        )
        self.state.recover(deadlines, self.clock())
        self.loop.log(self.name, f"begins epoch {self.state.epoch} with {sorted(self.loaded)}")
        self._perform([])

    # ---- the page of its host -------------------------------------------------------------

    def _share(self) -> None:
        """Let the processes of this host share a membership of this epoch, before it answers."""
        if not self.scenario.global_page or self.state is None or self._own is not None:
            return
        if self.clock() < self.partitions.ends:
            own = self._own = GlobalsPage(self, self.host, self.state, self.cache_lease)
            self.loop.later(CHECK_EVERY, self._check_page, own)
            own.begin()
            self._perform([])

    def _check_page(self, own: GlobalsPage) -> None:
        if own is self._own and not self.held_up("timer", self._check_page, own):
            self.loop.later(CHECK_EVERY, self._check_page, own)
            own.check()
            self._perform([])

    def _void(self) -> None:
        """Void the page of this epoch."""
        own, self._own = self._own, None
        if own is not None:
            page = own.page
            own.close()
            self.ended += [] if page is None else [page]

    def withdraw(self, page: SimPage) -> None:
        if self.host.page is page:
            self.host.page = None

    # ---- messages -------------------------------------------------------------------------

    def serving(self) -> list[int]:
        """Return the partitions for which it would answer now, if it were awake."""
        if self.state is None or self.clock() >= self.partitions.ends:
            return []
        quiet = self.partitions._quiet
        return [each for each in range(self.scenario.partitions) if quiet[each] is not None]

    def receive(self, route: bytes, message: Any) -> None:
        if self._stranger is not None:
            self._stranger.receive(route, message)
            return
        if self.held_up("requests", self.receive, route, message):
            return
        if self.state is None or self.partitions.lapsed(self.clock()):
            if self.alive or self.loop.now < self._refuses_until:
                self._refuse(route, message)
            return
        self.loop.log(self.name, f"<- {route.decode()} {short(message)}")
        began = self.loop.now
        effects = self.state.receive(route, message, self.clock())
        at_once = self.loop.now == began  # else it has stood still, perhaps after it had read
        sent = [each.message for each in effects if isinstance(each, Send)]
        if at_once and any(isinstance(each, READ) for each in sent):
            self._check_owner({partition_of(key) for key in _named(message)})
        self._perform(effects)

    def _refuse(self, route: bytes, message: Any) -> None:
        """There is no epoch, or the member has left: say who the owners are, and refuse all else.

        What is refused is not executed: it is a copy that nothing has seen.
        """
        envelope = getattr(message, "epoch", 0), getattr(message, "session", 0)
        request = getattr(message, "request", 0)
        answer: ToLocal = Refused(*envelope, request, Refusal.OTHER_EPOCH, "there is no epoch")
        version, members, owners = self.map
        if isinstance(message, AskMap) and members:
            answer = MapReply(*envelope, request, version, members, owners, CLUSTER)
        if request:
            self._send(route, answer)

    def _send(self, route: bytes, message: ToLocal) -> None:
        client = self.connections.get(route.decode().rpartition("/")[0])
        if client is not None and client.route == route:
            client.send_down(message)

    def _check_owner(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            row = self.database.primary.durable[PARTITION, number]
            if row.owner != self.ownership.me:
                self.loop.violation(f"{self.name} answers for partition {number}: {row}")

    def _committed(self, number: int, outcomes: list[Outcome]) -> None:
        if self.state is not None:
            self.loop.log(self.name, f"batch {number} is durable: {outcomes}")
            self._perform(self.state.committed(number, outcomes, self.clock()))

    def _plan(self) -> None:
        """Set the timer."""
        if not self.alive:
            return
        due = self.ownership.wake_at
        if self.state is not None:
            due = min(due, self.state.wake_at)
            self._check_alarm()
        if due == NEVER:
            return
        at = max((due - self.offset) / self.rate, self.loop.now)
        if at < self._timer:
            self._timer = at
            self.loop.at(at + 1e-6, self._tick, self.lives, at)

    def _check_alarm(self) -> None:
        """Each part of Global that schedules something has brought the next tick forward."""
        state, now = self.state, self.clock()
        assert state is not None
        lapsed = self.partitions._lapsed or now >= self.partitions.ends
        if not lapsed and state.wake_at > state._next_moment(now):
            self.loop.violation(f"{self.name} wakes too late: {state!r}")

    def _tick(self, life: int, planned: float) -> None:
        if life != self.lives or not self.alive or planned != self._timer:
            return
        if self.held_up("timer", self._tick, life, planned):
            return
        self._timer = NEVER
        now = self.clock()
        if now >= self.ownership.wake_at:
            self._act(self.ownership.tick(now))
        if self.state is not None and now >= self.state.wake_at:
            self._perform(self.state.tick(now))
        self._plan()

    def _perform(self, effects: Iterable[GlobalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self.loop.log(self.name, f"publishes {short(effect.message)}")
                for connection in self.subscriptions.values():
                    if self.loop.dice.random() >= self.scenario.lost_broadcasts:
                        connection.send_down(effect.message)
            elif isinstance(effect, Load):
                self._load_part(effect)
            elif isinstance(effect, Commit):
                self.journal.commit(effect.number, effect.changes, self.bulk)
            else:
                self._send(effect.route, effect.message)
        self._plan()

    def _load_part(self, load: Load) -> None:
        """Have a part of a large value loaded; other values are in memory."""
        ((key, token),) = load.wanted
        assert load.part is not None
        ended = partial(self._part_loaded, self.state, load.number)
        self._reader.load((partition_of(key), token), load.part, ended)

    def _part_loaded(self, state: GlobalState | None, number: int, result: Loaded) -> None:
        if state is None or state is not self.state:
            self.loop.counts["parts of large values that an epoch has not seen"] += 1
        elif not self.held_up("values", self._part_loaded, state, number, result):
            self._perform(state.loaded(number, [result], self.clock()))


def _named(message: Any) -> Sequence[Key]:
    """Return the keys of which a message asks for something."""
    return [message.key] if isinstance(message, Fetch) else keys_of(message)


def _short(ask: Ask) -> str:
    if isinstance(ask, Leave):
        return "Leave"
    parts = [f"Beat {ask.beat}", "join" if ask.join else "", "draining" if ask.draining else ""]
    for name in ("dead", "release", "claim", "quieted"):
        value = getattr(ask, name)
        if value:
            parts.append(f"{name}={[each[0] if name != 'dead' else each for each in value]}")
    return " ".join(filter(None, parts))
