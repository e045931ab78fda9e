"""Engines: where a Global keeps keys and values. Read this to write one of your own.

::

    dstore.Global(engine=YourEngine(), bulk=YourBulk())

An :class:`Engine` has the keys, each bound to a small value or to a :class:`Large`, which stands
for the bytes of a large one. A :class:`Bulk` has those bytes. By default both are in memory:
:class:`MemoryEngine`, and shared memory or, where there is none, :class:`PrivateBulk`. Either can
be replaced without the other. ``docs/guide/engines.md`` shows how.

**Threads.** Global calls all methods from one thread, and no other thread uses the object; only
``close`` may come from another thread, when that one is not running. Methods must be short, because
no message is handled meanwhile. An engine that cannot answer reads at once, because bytes have to
come from a disk or over a network, is a :class:`LoadingEngine`.

**Effect.** Each method has taken effect when it returns: the next call reads what it wrote. Global
confirms a write as soon as the method has returned.

**Errors.** If ``bind``, ``replace`` or ``remove`` raises a :class:`~dstore.errors.DstoreError`, the
outcome for that key is FAILED, or FULL for StoreFull. Any other exception, and any in the other
methods, counts as a bug: Global logs it and does not answer the message.

**Ownership.** Engine and bulk belong to the Global that they are given to. It closes each when it
ends: after the sockets are closed, the engine first. A Global that was never bound closes them in
``close``. A ``bind`` that fails does not close them, since it may be tried again; neither does a
forked child. If ``dstore.Global(...)`` itself raises, they stay with the caller.

**Tests.** :mod:`dstore.testing.engine_contract` and :mod:`dstore.testing.bulk_contract` have the
contract tests that every engine must pass.

A :class:`Journal` makes changes durable for an engine that answers from memory. It is public so
that the contract of a durable Global (``data=``) can be read; it is no parameter.
"""

from __future__ import annotations

from dstore.core.engine import (
    NO_DEADLINE,
    UNLIMITED,
    Away,
    Bound,
    Bulk,
    Change,
    ChangeKind,
    Engine,
    Journal,
    Kept,
    Loaded,
    LoadingEngine,
    Lost,
    Outcome,
    PartLoader,
    Unloaded,
)
from dstore.protocol.keys import from_bytes, to_bytes
from dstore.protocol.messages import Buffer, Key, Large, Stored
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.bulk import PrivateBulk

__all__ = [
    "NO_DEADLINE",
    "UNLIMITED",
    "Away",
    "Bound",
    "Buffer",
    "Bulk",
    "Change",
    "ChangeKind",
    "Engine",
    "Journal",
    "Kept",
    "Key",
    "Large",
    "Loaded",
    "LoadingEngine",
    "Lost",
    "MemoryEngine",
    "Outcome",
    "PartLoader",
    "PrivateBulk",
    "Stored",
    "Unloaded",
    "from_bytes",
    "to_bytes",
]
