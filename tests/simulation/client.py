"""A thread of a simulated process: it runs operations and records them for the history."""

from __future__ import annotations

from typing import Any

from dstore.core.authority.identity import Role
from dstore.core.local import operations
from dstore.core.local.cache import MappedBody
from dstore.core.local.operations import LargeBody, SetOutcome
from dstore.core.local.operations.fetching import MOVED
from dstore.core.local.steps import (
    Operation,
    Request,
    StepResult,
    drive,
    take_step,
)
from dstore.errors import DstoreError, RequestRefused
from dstore.protocol.messages import (
    UNREADABLE,
    Get,
    Key,
    SetItem,
    Stored,
)
from tests.history.operations import Operation as Recorded
from tests.history.operations import Result
from tests.simulation.actors import SimLocal
from tests.simulation.hits import Hit, hit, hit_many
from tests.simulation.recording import READS, SETS, Recorder, is_done, text_of
from tests.simulation.running import Running
from tests.simulation.scenario import EXPIRY, KINDS

LOOKING = ("get", "get_many")
"""Reads that a Node begins without a lock."""
TTL_LEASES = 2.0
"""Leases for which a key that expires lives at most."""
LOCK_FREE = 0.6
"""The part of these that do so here."""
STILL = 0.01
"""Seconds between two looks at a call that stands still."""


class Client(Recorder, Running):
    """A thread with a connection of its own."""

    def __init__(self, local: SimLocal, number: int) -> None:
        Recorder.__init__(self, f"{local.name}.t{number}")
        Running.__init__(self, local, f"thread {number}")
        self.left = local.scenario.operations
        self.channel = local.connect(f"t{number}", self.on_reply)
        self._bodies: dict[bytes, bytes] = {}
        self._epochs: set[int] = set()
        self._request_epoch = 0  # of the request that was sent last
        self._reply_epoch = 0  # of the last reply, or of the membership of a hit
        self._inside = False  # in the middle of a call, which stands still
        self._probing = ""
        local.clients.append(self)
        self._rest()

    @property
    def idle(self) -> bool:
        """Whether it has nothing more to do."""
        return self.operation is None and not self.left and not self._inside

    # ---- beginning ------------------------------------------------------------------------

    def probe(self) -> None:
        """Read a key now."""
        self.left, self._probing = 1, "get"
        self._begin()

    def _rest(self) -> None:
        self.loop.later(self.loop.dice.expovariate(1 / self.local.scenario.think), self._begin)

    def _begin(self) -> None:
        if not self.local.alive or self.local.state.closing or not self.left:
            self.left = 0
            return
        if self.local.frozen and not self.local.paused and not self._inside:
            self._peek()
        if self.local.held_up(self.line, self._begin):
            return
        self.left -= 1
        dice, scenario = self.loop.dice, self.local.scenario
        self.kind = self._probing or self._draw_kind()
        many = dice.randint(1, scenario.many) if self.kind.endswith("many") else 1
        names = self._names()
        self.keys = dice.sample(names, min(many, len(names)))
        self.values = dict.fromkeys(self.keys, f"{self.loop.number():08}"[-8:])
        self.ttl = self._draw_ttl()
        self.start = self.loop.stamp()
        self._epochs, self._request_epoch, self._reply_epoch = set(), 0, 0
        self.loop.log(self.name, f"{self.kind} {' '.join(self.keys)}")
        if self.kind in LOOKING and dice.random() < LOCK_FREE and self._hit():
            return
        self.local.go()
        self.operation = self._make()
        if dice.random() < scenario.give_up:
            self.loop.later(dice.random() * scenario.lease, self.give_up, self.operation)
        self.resume(None)

    def _draw_kind(self) -> str:
        """Return what this operation is to be; only reads, where no more is allowed."""
        dice, weights = self.loop.dice, self.local.scenario.weights
        kind = dice.choices(KINDS, weights)[0]
        if self.local.identity.role < Role.WRITE and kind not in READS:
            return "get"
        return kind

    def _names(self) -> list[str]:
        """Return the keys that this process may use."""
        names = [f"k{number}" for number in range(self.local.scenario.keys)]
        return [name for name in names if self.local.identity.sees(name)]

    def _draw_ttl(self) -> float | None:
        """Return the time to live of what this operation writes."""
        dice, scenario = self.loop.dice, self.local.scenario
        limited = self.kind == "expire"
        if self.kind in SETS and scenario.ttl:
            limited = dice.random() < scenario.ttl
        return (1 - dice.random()) * TTL_LEASES * scenario.lease if limited else None

    def _peek(self) -> None:
        """Read without the lock while another thread has it."""
        key = self.loop.dice.choice(self._names())
        self.kind, self.keys, self.values, self.start = "get", [key], {}, self.loop.stamp()
        self._inside = True
        try:
            found = hit(self.local, key)
        finally:
            self._inside = False
        if found is not None:
            self.loop.counts["hits without the lock"] += 1
            self._hits(found)

    def _hit(self) -> bool:
        """Look without a lock. Returns whether that was all, or the Local has been closed."""
        self._inside = True
        try:
            if self.kind == "get":
                self._hit_one()
            else:
                self._hit_many()
        finally:
            self._inside = False
        over = not self.keys or self.local.state.closing
        if over:
            self._rest()
        return over

    def _hit_one(self) -> None:
        found = hit(self.local, self.keys[0])
        if found is not None:
            self._hits(found)
            self.keys = []

    def _hit_many(self) -> None:
        found, epoch = hit_many(self.local, self.keys)
        end = self.loop.stamp()
        for key, body in found.items():
            self.loop.log(self.name, f"hits {key} = {body.decode()}")
            self._record(key, epoch, end, Result.VALUE, body.decode())
        self.keys = [key for key in self.keys if key not in found]

    def _hits(self, found: Hit) -> None:
        value = text_of(found.entry)
        self.loop.log(self.name, f"hits {self.keys[0]} = {value}")
        self._record(self.keys[0], found.epoch, self.loop.stamp(), Result.VALUE, value)

    def _make(self) -> Operation[Any]:
        state, now = self.local.state, self.local.clock()
        deadline = now + self.local.scenario.timeout
        if self.kind == "get":
            return operations.get_one(state, self.keys[0], now, deadline)
        if self.kind == "get_many":
            return operations.get(state, self.keys, now, deadline)
        if self.kind == "wait":
            until = now + 2 * self.loop.dice.random() * self.local.scenario.lease
            return operations.wait(state, self.keys[0], now, until, deadline - now)
        if self.kind.startswith("delete"):
            wait = self.kind != "delete_soon"
            return operations.delete(state, self.keys, wait, now, deadline)
        if self.kind in EXPIRY:
            return operations.expire(state, self.keys[0], self.ttl, now, deadline)
        self._bodies = {}
        items = [SetItem(key, self._stored(self.values[key].encode())) for key in self.keys]
        views = {token: memoryview(body) for token, body in self._bodies.items()}
        bodies = {
            token: LargeBody(view, MappedBody(view, shared=True)) for token, view in views.items()
        }
        replace = self.kind == "replace"
        if not bodies:
            return operations.store(state, items, replace, now, deadline, self.ttl)
        return operations.set_(state, items, replace, now, deadline, bodies, ttl=self.ttl)

    def _stored(self, body: bytes) -> Stored:
        token = self.local.state._random16()
        if self.loop.dice.random() >= self.local.scenario.large:
            return Stored(token, "bytes", body)
        self._bodies[token] = body
        return self.local.host.share(token, body)

    # ---- step by step ---------------------------------------------------------------------

    def resume(self, resumed: StepResult | None) -> None:
        operation = self.operation
        assert operation is not None
        self.turn += 1
        self._note_epoch(self.local.state.epoch)
        if resumed and resumed.reply:
            self._note_epoch(resumed.reply.epoch)
            self._reply_epoch = resumed.reply.epoch
        self._inside = True
        try:
            finished = drive(operation, take_step(operation, resumed), self.perform)
        except DstoreError as error:
            self.loop.log(self.name, f"{type(error).__name__}")
            if isinstance(error, RequestRefused) and MOVED not in str(error):
                self.loop.violation(f"{self.name} was refused: {error}")
            self._unknown()
            self._over()
        else:
            if finished is not None:
                self._ended(finished.value)
        finally:
            self._inside = False
        self.local.touched()

    def _note_epoch(self, epoch: int) -> None:
        if epoch:
            self._epochs.add(epoch)

    def requested(self, step: Request) -> None:
        looks = self.kind in SETS and isinstance(step.message, Get)  # what became of a SET
        if self.sent and step.message.epoch and not looks:
            self._request_epoch = step.message.epoch
        if not step.message.session:
            self.loop.counts["bridged reads"] += 1

    @property
    def over(self) -> bool:
        return not self.local.alive

    # ---- ending ---------------------------------------------------------------------------

    def give_up(self, operation: Operation[Any] | None = None) -> None:
        """Cancel the operation, or any if none is given."""
        if self.operation is None or operation not in (None, self.operation):
            return
        if self._inside and self.local.alive:
            self.loop.later(STILL, self.give_up, self.operation)
            return
        self.loop.log(self.name, "gives up")
        self.turn += 1
        if not self._inside:  # else it ends when it goes on
            self.operation.close()
        self._unknown()
        self._over()

    def _over(self) -> None:
        if self.transfer is not None:
            self.transfer.give_up()
        for token in self._bodies:
            self.local.host.copies.pop(token, None)  # unless cached, it is not needed
        self.operation = self.step = self.transfer = None
        self.turn += 1
        self._rest()

    def _ended(self, result: Any) -> None:
        if self.kind in ("get", "wait", *EXPIRY):
            result = {self.keys[0]: result}
        elif self.kind == "get_many":
            result = {key: (result.answer(key), key in result.local) for key in self.keys}
        end = self.loop.stamp()
        for key in self.keys:
            if not is_done(result.get(key)):
                self.loop.log(self.name, f"{self.kind} {key} was refused")
                continue
            if self.kind in READS and _unreadable(result.get(key)):
                self.loop.log(self.name, f"{self.kind} {key} was not loaded")
                continue
            found = result.get(key)
            seen = self.seen(found[0] if self.kind in READS else found)
            self.loop.log(self.name, f"{self.kind} {key} = {seen[0].value} {seen[1] or ''}")
            epoch = self._epoch_of(result.get(key))
            if epoch is not None:
                self._record(key, epoch, end, *seen)
            elif self.kind not in READS:
                self._doubt(key)
        self._over()

    def _epoch_of(self, result: Any) -> int | None:
        """The epoch of Global that an outcome belongs to. None if that is not known."""
        local = isinstance(result, SetOutcome) and result.local
        if self.kind not in READS and not local:
            # With large values some of the items may have been bound in an earlier epoch.
            several = len(self._epochs) > 1 and len(self.keys) > 1 and self._bodies
            return None if several else self._request_epoch
        if len(self._epochs) == 1:
            return next(iter(self._epochs))
        if len(self.keys) > 1:
            return None
        local = local or (self.kind in READS and result[1])
        return self.local.state.epoch if local else self._reply_epoch

    def _unknown(self) -> None:
        """The outcome is not known: a write may have happened if its request was sent."""
        if self.kind not in READS and self._request_epoch:
            for key in self.keys:
                self._doubt(key)

    def _doubt(self, key: Key) -> None:
        """Record a write of unknown outcome; with large values it may be of an earlier epoch."""
        several = self._bodies and not self.local.scenario.durable
        epochs = {*self._epochs, self._request_epoch} if several else {self._request_epoch}
        for epoch in sorted(epochs):
            self._record(key, epoch, None, Result.UNKNOWN, None)

    def _record(
        self, key: Key, epoch: int, end: float | None, result: Result, seen: str | None
    ) -> None:
        name = key if self.local.scenario.durable else f"{epoch}/{key}"
        self.record(key, name, end, (result, seen))


def _unreadable(result: Any) -> bool:
    """Whether Global could not load the value. Such an answer is never an entry."""
    answer = None if result is None else result[0]
    return isinstance(answer, Stored) and answer.codec == UNREADABLE


def history_of(clients: list[Client]) -> list[Recorded]:
    """All operations of these threads, in the order of their starts."""
    recorded = [each for client in clients for each in client.done]
    return sorted(recorded, key=lambda each: each.start)
