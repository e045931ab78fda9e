"""dstore: a two-layer distributed in-memory key-value store for Python worker processes.

``Node`` is what a worker embeds, ``Global`` the authority that all Nodes of a cluster talk to.
A confirmed deletion is never read again anywhere.
"""

from __future__ import annotations

from dstore.client.async_node import AsyncNode
from dstore.client.commands import Lookup
from dstore.client.node import Node, connect
from dstore.client.translate import Deletion
from dstore.client.watch import Event, Watch
from dstore.codecs import Codec
from dstore.errors import (
    AccessDenied,
    AddressError,
    BadConnectFile,
    BadMessage,
    DataError,
    DstoreError,
    GlobalClosed,
    GlobalServing,
    GlobalUnavailable,
    InvalidKey,
    KeyFolderError,
    KeyMissing,
    KeyOccupied,
    NodeClosed,
    OutcomeUnknown,
    RequestRefused,
    StoreFull,
    UnknownCodec,
    ValueCorrupt,
    ValueTooLarge,
    WaitTimedOut,
    WrongServer,
)
from dstore.server.server import Global
from dstore.version import __version__

__all__ = [
    "AccessDenied",
    "AddressError",
    "AsyncNode",
    "BadConnectFile",
    "BadMessage",
    "Codec",
    "DataError",
    "Deletion",
    "DstoreError",
    "Event",
    "Global",
    "GlobalClosed",
    "GlobalServing",
    "GlobalUnavailable",
    "InvalidKey",
    "KeyFolderError",
    "KeyMissing",
    "KeyOccupied",
    "Lookup",
    "Node",
    "NodeClosed",
    "OutcomeUnknown",
    "RequestRefused",
    "StoreFull",
    "UnknownCodec",
    "ValueCorrupt",
    "ValueTooLarge",
    "WaitTimedOut",
    "Watch",
    "WrongServer",
    "__version__",
    "connect",
]
