"""Pickled values, for a Node that asks for it: to unpickle a value can run any program.

Protocol 5 keeps the large buffers of a value (those of arrays, data frames, tables) apart from the
pickle. So they are not copied: an array within a decoded value reads the body in place, and is
read-only.

The body, with little-endian numbers of 8 bytes:

- the number of buffers,
- the length of the pickle, then that of each buffer,
- the pickle,
- the buffers, each at the next multiple of 64 bytes.

The same value may be pickled differently by two processes, and then has two content addresses.
"""

from __future__ import annotations

import pickle
import struct

from dstore.codecs.encoded import PICKLE, Encoded, joint
from dstore.protocol.messages import Buffer

PROTOCOL = 5
ALIGNMENT = 64
"""Bytes. Each buffer begins at a multiple of this in the body, as vector instructions prefer."""
_NUMBER = struct.Struct("<Q")


def encode(value: object) -> Encoded:
    """Pickle a value, with its buffers apart. Raises TypeError or ValueError."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, protocol=PROTOCOL, buffer_callback=buffers.append)
    except MemoryError:
        raise
    except RecursionError:
        raise ValueError("the value cannot be pickled: it is nested too deeply") from None
    except Exception as error:  # pickling calls what the classes of the value define
        kind = type(value)
        raise TypeError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot be pickled: {error}; "
            "convert it first, or give the Node a Codec for its type"
        ) from error
    return joint(PICKLE, _parts(data, [buffer.raw() for buffer in buffers]))


def decode(body: Buffer) -> object:
    """Unpickle a value over the body, which the caller has made read-only.

    It may run any program, and raise any exception.
    """
    view = memoryview(body)
    (count,) = _NUMBER.unpack_from(view)
    if count > len(view) // _NUMBER.size:
        raise ValueError(f"it has {len(view):,} bytes, too few for {count:,} buffers")
    lengths = struct.unpack_from(f"<{count + 1}Q", view, _NUMBER.size)
    data, *buffers = _slices(view, lengths)
    return pickle.loads(data, buffers=buffers)


def _parts(data: bytes, buffers: list[memoryview]) -> list[Buffer]:
    lengths = [len(data), *map(len, buffers)]
    parts: list[Buffer] = [struct.pack(f"<Q{len(lengths)}Q", len(buffers), *lengths), data]
    end = sum(map(len, parts))
    for buffer in buffers:
        parts += [bytes(-end % ALIGNMENT), buffer]
        end += -end % ALIGNMENT + len(buffer)
    return parts


def _slices(view: memoryview, lengths: tuple[int, ...]) -> list[memoryview]:
    """The pickle and the buffers. Raises ValueError unless they are exactly the whole view."""
    start = end = _NUMBER.size * (1 + len(lengths))
    slices = []
    for length in lengths:
        end = start + length
        slices.append(view[start:end])
        start = end + -end % ALIGNMENT
    if end != len(view):
        raise ValueError(f"it has {len(view):,} bytes, and its lengths make {end:,}")
    return slices
