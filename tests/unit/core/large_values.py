"""Large values in the world of the tests: how they are uploaded, bound and obtained."""

from __future__ import annotations

from typing import Any

from dstore.core.local import operations, transfer
from dstore.core.local.cache import MappedBody
from dstore.core.local.operations import LargeBody
from dstore.core.local.steps import (
    FetchBody,
    SendBody,
    SendChunk,
    StepResult,
    Transfer,
    TransferFailed,
)
from dstore.protocol import content
from dstore.protocol.messages import (
    Chunk,
    Large,
    Refusal,
    Refused,
    SetItem,
    SetStatus,
    Stage,
    Stored,
)
from tests.unit.core.world import Call, Member, World

BODY = b"0123456789"
CHUNK = 3


def large(world: World, body: bytes = BODY) -> Stored:
    return Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))


def begin_set(member: Member, key: str, stored: Stored, *, replace: bool = False) -> Call:
    now = member.world.now
    view = memoryview(BODY)
    bodies = {stored.token: LargeBody(view, MappedBody(view, shared=True))}
    items = [SetItem(key, stored)]
    return member.begin(operations.set_(member.state, items, replace, now, now + 5.0, bodies))


def sent(call: Call) -> None:
    """The request goes to Global and its answer comes."""
    call.send()
    call.world.settle()
    call.answer()


def staged(member: Member, stored: Stored, offset: int, data: bytes) -> Any:
    """Global's answer to one chunk."""
    state = member.state
    member.world.deliver(b"x", Stage(state.epoch, state.session, 1, stored, offset, data))
    return member.world.inboxes[b"x"].pop()


def supply(call: Call, body: bytes = BODY) -> None:
    """Upload what the operation wants to have uploaded."""
    assert isinstance(call.step, SendBody)
    world, step = call.world, call.step
    carry(world, transfer.upload(step.envelope, step.stored, memoryview(body), 0, 5.0, CHUNK))
    call.resume(StepResult(world.now))


def failed(call: Call, refusal: Refusal | None) -> None:
    step = call.step
    assert isinstance(step, (FetchBody, SendBody))
    refused = Refused(*step.envelope, refusal, "no") if refusal is not None else None
    call.resume(StepResult(call.world.now, failed=TransferFailed(refused)))


def carry(world: World, moving: Transfer) -> None:
    """Let a transfer run over a channel that loses nothing."""
    step = next(moving)
    try:
        while True:
            if isinstance(step, SendChunk):
                world.deliver(b"t", step.message)
                step = moving.send(StepResult(world.now, sent=True))
            else:
                step = moving.send(StepResult(world.now, world.inboxes[b"t"].popleft()))  # type: ignore[arg-type]
    except StopIteration:
        return


def bound(member: Member, key: str = "k") -> Stored:
    """A large value, set by a member that uploads it."""
    stored = large(member.world)
    call = begin_set(member, key, stored)
    sent(call)
    supply(call)
    sent(call)
    assert call.result[key].status is SetStatus.STORED
    return stored


def envelope() -> tuple[int, int, int]:
    return (1, 1, 7)


def chunk(stored: Stored, offset: int, data: bytes = b"") -> Chunk:
    return Chunk(*envelope(), stored.token, offset, data or BODY[offset : offset + CHUNK])


def sends(moving: Transfer, step: Any, now: float) -> tuple[list[Any], Any]:
    """What it sends until it waits."""
    messages = []
    while isinstance(step, SendChunk):
        messages.append(step.message)
        step = moving.send(StepResult(now, sent=True))
    return messages, step
