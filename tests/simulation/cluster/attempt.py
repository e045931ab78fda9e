"""An operation of one Local on its way: what a thread does at one member of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.core.local.steps import Finished, Operation, StepResult, drive, take_step
from dstore.errors import DstoreError
from tests.simulation.cluster.node import NodeLocal
from tests.simulation.running import Running


class Attempt(Running):
    """Runs an operation, then calls ``done`` with its result or the error that it has raised."""

    local: NodeLocal

    def __init__(
        self, local: NodeLocal, line: str, operation: Operation[Any], done: Callable[[Any], None]
    ) -> None:
        super().__init__(local, line)
        self.operation = operation
        self._done = done
        self._over = False
        self.channel = local.connect(f"{line}.{local.loop.number()}", self.on_reply)
        local.attempts.append(self)
        self._begin()

    def _begin(self) -> None:
        if not self.local.held_up(self.line, self._begin):
            self.local.go()
            self.resume(None)

    @property
    def over(self) -> bool:
        return self._over

    def resume(self, resumed: StepResult | None) -> None:
        assert self.operation is not None
        self.turn += 1
        self.step = None
        try:
            finished = drive(self.operation, take_step(self.operation, resumed), self.perform)
        except DstoreError as error:
            self._end(error)
        else:
            if type(finished) is Finished:
                self._end(finished.value)
        self.local.touched()

    def _end(self, result: Any) -> None:
        self.stop()
        self.loop.later(0.0, self._done, result)

    def stop(self) -> None:
        """Give it up, or note that it has ended."""
        if not self._over:
            self._over = True
            self.turn += 1
            assert self.operation is not None
            self.operation.close()
            self.local.attempts.remove(self)
            self.local.forget(self.channel)
