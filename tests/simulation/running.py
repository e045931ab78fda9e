"""An operation of a Local on its way: its steps, each of which is begun and waited for."""

from __future__ import annotations

from typing import Any

from dstore.core.local.cache import MappedBody
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
)
from tests.simulation.local import LocalProcess
from tests.simulation.network import Connection
from tests.simulation.transfers import LargeTransfer


class Running:
    """A thread of a process, or a part of one, with a connection of its own.

    ``line`` names it among the connections, timers and threads of its process.
    """

    channel: Connection

    def __init__(self, local: LocalProcess, line: str) -> None:
        self.local = local
        self.loop = local.loop
        self.line = line
        self.operation: Operation[Any] | None = None
        self.step: Step | None = None
        self.transfer: LargeTransfer | None = None
        self.turn = 0  # what was planned in a former turn is void
        self.sent = False  # whether the request of this step was sent

    def resume(self, resumed: StepResult | None) -> None:
        """Take the steps of the operation until it has to wait, or ends."""
        raise NotImplementedError

    @property
    def over(self) -> bool:
        """Whether nobody is here any more who could take a reply."""
        raise NotImplementedError

    def requested(self, step: Request) -> None:
        """A request was made, and sent if there was a connection."""

    def perform(self, step: Step) -> None:
        """Begin to wait for a step."""
        self.step = step
        assert not isinstance(step, Work), "the core has no work that blocks"
        if isinstance(step, Request):
            self.sent = self.channel.send_up(step.message)
            self.requested(step)
        if isinstance(step, (FetchBody, SendBody)):
            self.transfer = LargeTransfer(self, step, self._moved)
            return
        self.loop.at(self.local.true_time(step.until) + 1e-6, self._expire, self.turn)

    def _moved(self, body: MappedBody | None, failed: TransferFailed | None) -> None:
        """A transfer has ended."""
        self.transfer = None
        self.resume(StepResult(self.local.clock(), body=body, failed=failed))

    def _expire(self, turn: int) -> None:
        if turn != self.turn or self.local.held_up(self.line, self._expire, turn):
            return
        self.resume(
            StepResult(self.local.clock(), None, isinstance(self.step, Request) and self.sent)
        )

    def look(self) -> None:
        """The state has changed: plan to go on if the operation no longer has to wait."""
        if isinstance(self.step, WaitUntil) and self.step.predicate(self.local.clock()):
            self.loop.at(self.loop.now, self._look, self.turn)

    def _look(self, turn: int) -> None:
        if turn != self.turn or self.local.held_up(self.line, self._look, turn):
            return
        step = self.step
        if isinstance(step, WaitUntil) and step.predicate(self.local.clock()):
            self.resume(StepResult(self.local.clock()))

    def on_reply(self, message: Any) -> None:
        """Take a message from the connection."""
        if self.over or self.local.held_up(self.line, self.on_reply, message):
            return
        if isinstance(self.step, Request) and message.request == self.step.message.request:
            self.resume(StepResult(self.local.clock(), message, True))
        elif self.transfer is not None:
            self.transfer.receive(message)
