"""Python values as tagged bytes and back, with as few copies as possible.

A value travels as the name of its codec and a body of bytes:

========  ==================================================================================
bytes     ``bytes``, ``bytearray`` and ``memoryview``
text      ``str``, as UTF-8
msgpack   ``None``, ``bool``, ``int`` (64 bits), ``float``, and lists, tuples and dicts of all these
ndarray   NumPy arrays; the body is a ``.npy`` file
pickle    all that Python can pickle, if the user asks for it
(a name)  values of a type for which the user has given a :class:`Codec`
========  ==================================================================================

:class:`Codecs` has the codecs of a Node and chooses the one for a value.

A body that is decoded is ``bytes``, or a read-only ``memoryview`` of memory that processes share. A
value that is decoded from such a view reads that memory, keeps it alive and cannot change it.
"""

from __future__ import annotations

from dstore.codecs.encoded import BYTES, MSGPACK, Encoded
from dstore.codecs.plain import KEPT, encode_kept
from dstore.codecs.table import Codec, Codecs, check_has_bytes
from dstore.protocol.messages import Buffer

__all__ = [
    "BYTES",
    "KEPT",
    "MSGPACK",
    "Buffer",
    "Codec",
    "Codecs",
    "Encoded",
    "check_has_bytes",
    "encode_kept",
]
