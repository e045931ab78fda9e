"""Python values to tagged bytes and back, without copies where there can be none.

A value travels as the name of its codec and a body of bytes:

========  ==================================================================================
bytes     ``bytes``, ``bytearray`` and ``memoryview``
text      ``str``, as UTF-8
msgpack   ``None``, ``bool``, ``int`` (64 bits), ``float``, and lists, tuples and dicts of all these
ndarray   NumPy arrays; the body is a ``.npy`` file
pickle    whatever Python can pickle, if the user asks for it
(a name)  values of a type that the user brings a :class:`Codec` for
========  ==================================================================================

:class:`Codecs` knows which of them a Node has, and which one a value takes. The others are in
:mod:`~dstore.codecs.plain`, :mod:`~dstore.codecs.array`, :mod:`~dstore.codecs.pickled` and
:mod:`~dstore.codecs.custom`.

A body that is decoded is ``bytes``, or a ``memoryview`` of memory that processes share. What is
decoded from the latter reads that memory and keeps it alive; it can change it no more than the
view itself can.
"""

from __future__ import annotations

from dstore.codecs.custom import Codec
from dstore.codecs.encoded import BYTES, MSGPACK, NDARRAY, PICKLE, TEXT, Encoded
from dstore.codecs.table import Codecs
from dstore.protocol.messages import Buffer

__all__ = [
    "BYTES",
    "MSGPACK",
    "NDARRAY",
    "PICKLE",
    "TEXT",
    "Buffer",
    "Codec",
    "Codecs",
    "Encoded",
]
