"""One command of a task or a greenlet, under way in the loop host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.client.commands import Command
from dstore.client.hosts.pipeline import Sender
from dstore.core.local.steps import Operation, Step


class LoopCall(Sender):
    """One command of a task, under way.

    ``done`` is called when it is over, by any thread and without a lock; but not if it is over
    when it has just begun, nor when it has been cancelled.
    """

    __slots__ = (
        "abort",
        "begun",
        "busy",
        "cancelled",
        "command",
        "done",
        "error",
        "operation",
        "over",
        "reason",
        "step",
        "timer",
        "value",
    )

    def __init__(self, command: Command[Any], done: Callable[[], None]) -> None:
        super().__init__()
        self.command = command
        self.done = done
        self.abort = command.abort  # until it has been called
        self.begun = False
        self.over = False
        self.cancelled = False  # nothing waits for it any more
        self.reason: BaseException | None = None  # why, until ``abort`` has been called with it
        self.value: Any = None
        self.error: BaseException | None = None
        self.operation: Operation[Any] | None = None
        self.step: Step | None = None
        self.timer = 0
        self.busy = False  # a helper thread works for it, or will

    def __repr__(self) -> str:
        return f"<LoopCall over={self.over} busy={self.busy} step={self.step!r}>"

    def result(self) -> Any:
        """Return the result of a call that is over, or raise its error."""
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error  # it refers to this frame: no circle is left
