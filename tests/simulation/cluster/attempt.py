"""An operation of one Local on its way: what a thread does at one member of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.core.local.steps import (
    Finished,
    Operation,
    Request,
    Step,
    StepResult,
    WaitUntil,
    drive,
    take_step,
)
from dstore.errors import DstoreError
from tests.simulation.cluster.node import NodeLocal


class Attempt:
    """Runs an operation, then calls ``done`` with its result or the error that it has raised."""

    def __init__(
        self, local: NodeLocal, line: str, operation: Operation[Any], done: Callable[[Any], None]
    ) -> None:
        self.local = local
        self._loop = local.loop
        self._line = line
        self._operation = operation
        self._done = done
        self._step: Step | None = None
        self._turn = 0
        self._sent = False
        self._over = False
        self._channel = local.connect(f"{line}.{local.loop.number()}", self._on_reply)
        local.attempts.append(self)
        self._resume(None)

    def _resume(self, resumed: StepResult | None) -> None:
        self._turn += 1
        self._step = None
        try:
            finished = drive(self._operation, take_step(self._operation, resumed), self._perform)
        except DstoreError as error:
            self._end(error)
        else:
            if type(finished) is Finished:
                self._end(finished.value)
        self.local.touched()

    def _end(self, result: Any) -> None:
        self.stop()
        self._loop.later(0.0, self._done, result)

    def stop(self) -> None:
        """Give it up, or note that it has ended."""
        if not self._over:
            self._over = True
            self._turn += 1
            self._operation.close()
            self.local.attempts.remove(self)
            self.local.forget(self._channel)

    def _perform(self, step: Step) -> None:
        """Begin to wait for a step."""
        self._step = step
        if isinstance(step, Request):
            self._sent = self._channel.send_up(step.message)
        else:
            assert isinstance(step, WaitUntil)
        self._loop.at(self.local.true_time(step.until) + 1e-6, self._expire, self._turn)

    def _expire(self, turn: int) -> None:
        if turn != self._turn or self.local.held_up(self._line, self._expire, turn):
            return
        sent = isinstance(self._step, Request) and self._sent
        self._resume(StepResult(self.local.clock(), None, sent))

    def look(self) -> None:
        """The state has changed: plan to go on if the operation no longer has to wait."""
        if isinstance(self._step, WaitUntil) and self._step.predicate(self.local.clock()):
            self._loop.at(self._loop.now, self._look, self._turn)

    def _look(self, turn: int) -> None:
        if turn != self._turn or self.local.held_up(self._line, self._look, turn):
            return
        step = self._step
        if isinstance(step, WaitUntil) and step.predicate(self.local.clock()):
            self._resume(StepResult(self.local.clock()))

    def _on_reply(self, message: Any) -> None:
        if self._over or self.local.held_up(self._line, self._on_reply, message):
            return
        if isinstance(self._step, Request) and message.request == self._step.message.request:
            self._resume(StepResult(self.local.clock(), message, True))

    def cut(self) -> None:
        """Lose what is under way."""
        self._channel.cut(lambda: None)
