"""Conduct a command for one who waits without blocking a thread: a task or a greenlet."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from dstore.client.commands import Command, Run, Work
from dstore.client.hosts.loop import Call, driver_of
from dstore.client.hosts.threads import Local
from dstore.runtime.event_loops import TaskEvent

T = TypeVar("T")

_of_the_parent: list[object] = []
"""Commands that were under way when this process was forked. Their ends would undo what they do in the
parent, such as to remove a file that is half written.
"""


async def conduct(local: Local, command: Command[T], new_event: Callable[[], TaskEvent]) -> T:
    """Carry out a command. ``new_event`` makes an event that the caller can await."""
    driver = driver_of(local)
    call: Call | None = None
    result: Any = None
    process = os.getpid()
    try:
        while True:
            step = command.send(result)
            if isinstance(step, Work) and step.quick:
                result = local.work(step.do)
                continue
            ready = new_event()
            call = Call(ready.set)
            if isinstance(step, Run):
                driver.run(call, *step)
            else:
                driver.work(call, step.do)
            if not call.over:
                await ready
            result = call.result()
    except StopIteration as stop:
        done: T = stop.value
        return done
    except BaseException as error:
        if process != os.getpid():
            _of_the_parent.append(command)
        elif call is None:
            command.close()
        elif isinstance(error, GeneratorExit):  # dropped, maybe by the garbage collector
            driver.abandon(call, command.close)
        else:
            driver.give_up(call, command.close)
        raise
