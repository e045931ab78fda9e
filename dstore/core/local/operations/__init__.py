"""GET, SET, DEL and scans, step by step, as a Local carries them out.

An operation is a generator. It works on the LocalState, yields a step whenever it has to wait,
and is resumed with what came of it; its return value is the result. The host keeps the state's
lock while the generator runs and gives it up while a step is under way, so that what happens
between two yields is one step with respect to deletions. Closing the generator (Ctrl-C, a
cancelled task) gives the request up: nothing that comes later is stored.

One set of operations serves every host: threads, event loops, and the simulation.

Repeats: a request is sent again, the same one, until its answer comes or its deadline passes.
A write is executed at most once: Global knows a repeat by its number, and a copy that it refuses
was not executed. If the session ends while some copy of a write is unanswered, nobody can tell
any more, and the operation raises OutcomeUnknown; a write whose every copy was refused is simply
done again.

Large values: a reply names one by its token, and the host obtains the bytes while the fill stays
open, so that a deletion that comes meanwhile is noticed. A SET names one too; if Global has not
got the bytes (it finds them by itself in the memory of its own host), the host supplies them, and
the SET is sent again as a new write. A deadline is put off by the time that a transfer takes.
"""

from __future__ import annotations

from dstore.core.local.operations.exchange import (
    FetchBody,
    Operation,
    Request,
    SendBody,
    Step,
    StepResult,
    WaitUntil,
)
from dstore.core.local.operations.reading import Answer, get, join, scan, stats, wait
from dstore.core.local.operations.writing import SetOutcome, delete, set_

__all__ = [
    "Answer",
    "FetchBody",
    "Operation",
    "Request",
    "SendBody",
    "SetOutcome",
    "Step",
    "StepResult",
    "WaitUntil",
    "delete",
    "get",
    "join",
    "scan",
    "set_",
    "stats",
    "wait",
]
