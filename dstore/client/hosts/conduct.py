"""Carrying out a command for a task or a greenlet, which waits without blocking its thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from dstore.client.commands import Command
from dstore.client.hosts.local import Local
from dstore.client.hosts.loop_call import LoopCall
from dstore.runtime.event_loops import TaskEvent

T = TypeVar("T")

_of_the_parent: list[object] = []
"""Calls that were under way when this process was forked. Their ends would undo what they do in the
parent, such as to remove a file that is half written.
"""


async def conduct(local: Local, command: Command[T], new_event: Callable[[], TaskEvent]) -> T:
    """Carry out a command. ``new_event`` makes an event that the caller can await."""
    process = os.getpid()
    ready = new_event()
    call = LoopCall(command, ready.set)
    try:
        local.loop.begin(call)
        if not call.over:
            await ready
        result = call.result()
    except BaseException as error:
        if process != os.getpid():
            _of_the_parent.append(call)
        elif isinstance(error, GeneratorExit):  # dropped, maybe by the garbage collector
            local.loop.cancel_later(call, error)
        else:
            local.loop.cancel(call, error)
        raise
    return command.finish(result)
