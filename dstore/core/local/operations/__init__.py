"""GET, SET, DEL and scans, step by step, as a Local carries them out.

An operation is a generator of steps (see :mod:`dstore.core.local.steps`). The host holds the
state's lock while the generator runs and releases it while a step is carried out, so that what
happens between two yields is one step with respect to deletions. Closing the generator (Ctrl-C, a
cancelled task) abandons the request: a reply that comes later is not stored.

The same operations serve every host: threads, event loops, and the simulation.

Repeats: the same request is sent again until its answer comes or its deadline passes. A write is
executed at most once: Global recognizes a repeat by its number, and a copy that it refuses was not
executed. If the session ends while a copy of a write is unanswered, the outcome cannot be known,
and the operation raises OutcomeUnknown; a write of which every copy was refused is done again.
If Global does not own a key that an operation needs, that raises Misdirected.

Large values: a reply names one by its token, and the host fetches the bytes. A deletion that comes
meanwhile shows in the invalidation vector. A SET names one as well; if Global does
not have the bytes (it looks in the shared memory of its own host), the host sends them, and the SET
is sent again as a new write. A deadline moves by the time that a transfer takes.
"""

from __future__ import annotations

from dstore.core.local.operations.direct import (
    UNUSUAL,
    Delete,
    Direct,
    GetMany,
    GetOne,
    One,
    Store,
    delete,
    get,
    get_one,
    store,
)
from dstore.core.local.operations.exchange import Misdirected, ask_map, join, scan, stats, ttl
from dstore.core.local.operations.fetching import PLAIN, Answer, Reading, ReadOptions
from dstore.core.local.operations.reading import wait
from dstore.core.local.operations.writing import LargeBody, SetOutcome, expire, set_

__all__ = [
    "PLAIN",
    "UNUSUAL",
    "Answer",
    "Delete",
    "Direct",
    "GetMany",
    "GetOne",
    "LargeBody",
    "Misdirected",
    "One",
    "ReadOptions",
    "Reading",
    "SetOutcome",
    "Store",
    "ask_map",
    "delete",
    "expire",
    "get",
    "get_one",
    "join",
    "scan",
    "set_",
    "stats",
    "store",
    "ttl",
    "wait",
]
