"""A thread of a simulated process: it runs operations and records them for the history."""

from __future__ import annotations

from typing import Any

from dstore.core.authority.identity import Role
from dstore.core.local import operations
from dstore.core.local.cache import MappedBody
from dstore.core.local.membership import Entry
from dstore.core.local.operations import Answer, LargeBody, SetOutcome
from dstore.core.local.operations.fetching import MOVED
from dstore.core.local.steps import (
    FetchBody,
    Operation,
    Request,
    SendBody,
    Step,
    StepResult,
    TransferFailed,
    WaitUntil,
    Work,
    drive,
    take_step,
)
from dstore.errors import DstoreError, RequestRefused
from dstore.protocol.messages import (
    UNREADABLE,
    DelResult,
    DelStatus,
    ExpireStatus,
    Get,
    Key,
    Large,
    SetItem,
    SetStatus,
    Stored,
)
from tests.history.operations import Kind, Result
from tests.history.operations import Operation as Recorded
from tests.simulation.actors import SimLocal
from tests.simulation.hits import Hit, hit, hit_many
from tests.simulation.scenario import EXPIRY, KINDS
from tests.simulation.transfers import LargeTransfer

READS = ("get", "get_many", "wait")
LOOKING = ("get", "get_many")
"""Reads that a Node begins without a lock."""
SETS = ("set", "set_many", "replace")
SET_RESULTS = {
    SetStatus.STORED: Result.STORED,
    SetStatus.REPLACED: Result.REPLACED,
    SetStatus.OCCUPIED: Result.OCCUPIED,
}
DEL_RESULTS = {
    DelStatus.DELETED: Result.DELETED,
    DelStatus.MISSING: Result.MISSING,
    DelStatus.PENDING: Result.PENDING,
}
EXPIRE_RESULTS = {ExpireStatus.DONE: Result.CHANGED, ExpireStatus.MISSING: Result.MISSING}
TTL_LEASES = 2.0
"""Leases for which a key that expires lives at most."""
NOT_DONE = (
    SetStatus.FULL,
    SetStatus.FAILED,
    DelStatus.FAILED,
    ExpireStatus.FULL,
    ExpireStatus.FAILED,
)
"""Outcomes of writes that have changed nothing."""

LOCK_FREE = 0.6
"""The part of these that do so here."""
STILL = 0.01
"""Seconds between two looks at a call that stands still."""
Seen = tuple[Result, str | None]
"""What is recorded for one key: the result, and the value that was seen."""


class Client:
    """A thread with a connection of its own."""

    def __init__(self, local: SimLocal, number: int) -> None:
        self.local = local
        self.loop = local.loop
        self.name = f"{local.name}.t{number}"
        self.line = f"thread {number}"
        self.left = local.scenario.operations
        self.done: list[Recorded] = []
        self.channel = local.connect(f"t{number}", self._on_reply)
        self._operation: Operation[Any] | None = None
        self._step: Step | None = None
        self._transfer: LargeTransfer | None = None
        self._bodies: dict[bytes, bytes] = {}
        self._turn = 0
        self._sent = False
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
        return self._operation is None and not self.left and not self._inside

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
        self._operation = self._make()
        if dice.random() < scenario.give_up:
            self.loop.later(dice.random() * scenario.lease, self.give_up, self._operation)
        self._resume(None)

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
        value = _read(found.entry)
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

    def _resume(self, resumed: StepResult | None) -> None:
        operation = self._operation
        assert operation is not None
        self._turn += 1
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

    def perform(self, step: Step) -> None:
        """Begin to wait for a step."""
        self._step = step
        assert not isinstance(step, Work), "the core has no work that blocks"
        if isinstance(step, Request):
            self._sent = self.channel.send_up(step.message)
            looks = self.kind in SETS and isinstance(step.message, Get)  # what became of a SET
            if self._sent and step.message.epoch and not looks:
                self._request_epoch = step.message.epoch
            if not step.message.session:
                self.loop.counts["bridged reads"] += 1
        if isinstance(step, (FetchBody, SendBody)):
            self._transfer = LargeTransfer(self, step, self._moved)
            return
        self.loop.at(self.local.true_time(step.until) + 1e-6, self._expire, self._turn)

    def _moved(self, body: MappedBody | None, failed: TransferFailed | None) -> None:
        """A transfer has ended."""
        self._transfer = None
        self._resume(StepResult(self.local.clock(), body=body, failed=failed))

    def _expire(self, turn: int) -> None:
        if turn != self._turn or self.local.held_up(self.line, self._expire, turn):
            return
        self._resume(
            StepResult(self.local.clock(), None, isinstance(self._step, Request) and self._sent)
        )

    def look(self) -> None:
        """The state has changed: plan to go on if the operation no longer has to wait."""
        if isinstance(self._step, WaitUntil) and self._step.predicate(self.local.clock()):
            self.loop.at(self.loop.now, self._look, self._turn)

    def _look(self, turn: int) -> None:
        if turn != self._turn or self.local.held_up(self.line, self._look, turn):
            return
        step = self._step
        if isinstance(step, WaitUntil) and step.predicate(self.local.clock()):
            self._resume(StepResult(self.local.clock()))

    def _on_reply(self, message: Any) -> None:
        if not self.local.alive or self.local.held_up(self.line, self._on_reply, message):
            return
        if isinstance(self._step, Request) and message.request == self._step.message.request:
            self._resume(StepResult(self.local.clock(), message, True))
        elif self._transfer is not None:
            self._transfer.receive(message)

    # ---- ending ---------------------------------------------------------------------------

    def give_up(self, operation: Operation[Any] | None = None) -> None:
        """Cancel the operation, or any if none is given."""
        if self._operation is None or operation not in (None, self._operation):
            return
        if self._inside and self.local.alive:
            self.loop.later(STILL, self.give_up, self._operation)
            return
        self.loop.log(self.name, "gives up")
        self._turn += 1
        if not self._inside:  # else it ends when it goes on
            self._operation.close()
        self._unknown()
        self._over()

    def _over(self) -> None:
        if self._transfer is not None:
            self._transfer.give_up()
        for token in self._bodies:
            self.local.host.copies.pop(token, None)  # unless cached, it is not needed
        self._operation = self._step = self._transfer = None
        self._turn += 1
        self._rest()

    def _ended(self, result: Any) -> None:
        if self.kind in ("get", "wait", *EXPIRY):
            result = {self.keys[0]: result}
        elif self.kind == "get_many":
            result = {key: (result.answer(key), key in result.local) for key in self.keys}
        end = self.loop.stamp()
        for key in self.keys:
            status = getattr(result.get(key), "status", result.get(key))
            if any(status is each for each in NOT_DONE):  # numbers of several kinds are equal
                self.loop.log(self.name, f"{self.kind} {key} was refused")
                continue
            if self.kind in READS and _unreadable(result.get(key)):
                self.loop.log(self.name, f"{self.kind} {key} was not loaded")
                continue
            seen = self._seen(result.get(key))
            self.loop.log(self.name, f"{self.kind} {key} = {seen[0].value} {seen[1] or ''}")
            epoch = self._epoch_of(result.get(key))
            if epoch is not None:
                self._record(key, epoch, end, *seen)
            elif self.kind not in READS:
                self._doubt(key)
        self._over()

    def _seen(self, result: Any) -> Seen:
        if isinstance(result, SetOutcome):
            if result.found and self.kind == "replace":
                return Result.WRITTEN, None
            return SET_RESULTS[result.status], None
        if isinstance(result, DelResult):
            return DEL_RESULTS[result.status], None
        if isinstance(result, ExpireStatus):
            return EXPIRE_RESULTS[result], None
        value = _read(result[0])
        return (Result.MISSING, None) if value is None else (Result.VALUE, value)

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
        kind = Kind.GET if self.kind in READS else Kind.SET if self.kind in SETS else Kind.DELETE
        kind = Kind.REPLACE if self.kind == "replace" else kind
        kind = Kind.EXPIRE if self.kind in EXPIRY else kind
        value = self.values[key] if self.kind in SETS else None
        name = key if self.local.scenario.durable else f"{epoch}/{key}"
        ttl = self.ttl if self.kind in (*SETS, *EXPIRY) else None
        times = self.start, end
        self.done.append(Recorded(self.name, name, kind, *times, result, value, seen, ttl=ttl))


def _unreadable(result: Any) -> bool:
    """Whether Global could not load the value. Such an answer is never an entry."""
    answer = None if result is None else result[0]
    return isinstance(answer, Stored) and answer.codec == UNREADABLE


def _read(answer: Answer | None) -> str | None:
    if answer is None:
        return None
    value = answer.value if isinstance(answer, Entry) else answer
    assert isinstance(value, Stored)
    assert not isinstance(value.body, Large)
    return bytes(value.body).decode()


def history_of(clients: list[Client]) -> list[Recorded]:
    """All operations of these threads, in the order of their starts."""
    recorded = [each for client in clients for each in client.done]
    return sorted(recorded, key=lambda each: each.start)
