"""Steps: what operations and transfers yield, and the one loop that drives them.

An operation is a generator that works on the LocalState. It yields a step whenever something takes
time: a request, a wait, work that blocks. A host performs the step, in its own way of waiting, and
resumes the generator with a StepResult. Threads, event loops, the simulation and the unit tests all
use :func:`drive`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from dstore.core.local.cache import MappedBody
from dstore.protocol.messages import Buffer, Key, Refused, Reply, RequestMessage, Stored

T = TypeVar("T")


class Body(Protocol):
    """The bytes of a value, or an object that reads them, by slices."""

    def __getitem__(self, where: slice, /) -> Buffer: ...


Write: TypeAlias = Callable[[int, Buffer], None]
"""Takes one part of a value: its offset and its bytes, which are valid during the call only."""
Report: TypeAlias = Callable[[str, int, int], None]
"""Called with the activity (``sending``, ``fetching``), the bytes done and the total bytes."""


class Request(NamedTuple):
    """Send a request and wait for the reply with its number, at most until ``until``."""

    message: RequestMessage
    until: float


class WaitUntil(NamedTuple):
    """Wait until the predicate (of the time) holds, at most until ``until``."""

    predicate: Callable[[float], bool]
    until: float


class Work(NamedTuple):
    """Call a function that blocks: it hashes, copies, or uses files. It must not use the state."""

    do: Callable[[], Any]


class FetchBody(NamedTuple):
    """Get the bytes of a large value: from the shared memory of the host, or from Global.

    ``envelope`` holds epoch, session and request number of the transfer; ``stall_timeout`` is the
    number of seconds for which it may make no progress. ``into`` takes the parts of a value that
    would otherwise fill private memory.
    """

    envelope: tuple[int, int, int]
    key: Key
    stored: Stored
    stall_timeout: float
    into: Write | None = None
    report: Report | None = None


class SendBody(NamedTuple):
    """Send Global the bytes of a large value that is about to be written."""

    envelope: tuple[int, int, int]
    stored: Stored
    stall_timeout: float
    body: Body
    report: Report | None = None


class SendChunk(NamedTuple):
    """Send a message of a transfer on its channel, if Global can be reached until ``until``."""

    message: RequestMessage
    until: float


class ReceiveReply(NamedTuple):
    """Wait for the next reply with the number of the transfer, at most until ``until``."""

    until: float


class TransferFailed(Exception):
    """A large value did not arrive. ``refusal`` is Global's answer, None if there was none."""

    def __init__(self, refusal: Refused | None) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(slots=True)
class StepResult:
    """The result of a step, and the time at which the operation goes on.

    ``body`` is None if all bytes went to ``into``; ``failed`` is for FetchBody and SendBody,
    ``value`` for Work.
    """

    now: float
    reply: Reply | None = None
    sent: bool = False
    body: MappedBody | None = None
    failed: TransferFailed | None = None
    value: Any = None


class Finished(Generic[T]):
    """The return value of an operation that has ended."""

    def __init__(self, value: T) -> None:
        self.value = value


Step: TypeAlias = Request | WaitUntil | Work | FetchBody | SendBody
Operation: TypeAlias = Generator[Step, StepResult, T]
TransferStep: TypeAlias = SendChunk | ReceiveReply
Transfer: TypeAlias = Generator[TransferStep, StepResult, None]
Steps: TypeAlias = Generator[Any, StepResult, T]
"""An operation or a transfer."""


def take_step(steps: Steps[T], result: StepResult | None) -> Any:
    """Resume with the result of the last step (None to begin). Returns a step, or Finished."""
    try:
        return steps.send(result)  # type: ignore[arg-type]
    except StopIteration as stop:
        return Finished(stop.value)


def drive(
    steps: Steps[T],
    step: Any,
    perform: Callable[[Any], StepResult | None],
    advance: Callable[[Steps[Any], StepResult | None], Any] = take_step,
) -> Finished[T] | None:
    """Carry on with a step that was just taken, until the operation ends.

    ``perform`` carries out a step; if its result will come later it returns None, and so does this.
    With that result the host advances and calls this again. ``advance`` does what
    :func:`take_step` does, under the host's lock if it has one.
    """
    while True:
        if type(step) is Finished:
            return step
        result = perform(step)
        if result is None:
            return None
        step = advance(steps, result)
