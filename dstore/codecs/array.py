"""NumPy arrays: the body is a ``.npy`` file, and a decoded array reads it in place.

The file is NumPy's own format: a header, padded so that the data begins at a multiple of 64 bytes,
then the raw data, in C or in Fortran order. NumPy writes and reads the header; from ours it is
read once and then known by its bytes, for readers of one key meet the same header every time.

What the header cannot say (objects, a dtype that another package has registered, fields that
overlap) is refused when the value is stored: every header that is written is read again at once.

NumPy's reader hands the header to Python's parser. That can be driven deep enough to overflow the
stack of a thread that has a small one, so a header is first looked through for what a header
consists of, and for how deep its brackets go.

A decoded array is made by ``frombuffer`` and not by ``ndarray(buffer=...)``: the latter lets go
of the memoryview, and then shared memory could be unmapped under the array.
"""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from dstore.codecs.encoded import NDARRAY, Encoded, joint
from dstore.errors import UnknownCodec
from dstore.protocol.messages import Buffer

HEADER_MAX = 10_000
"""Bytes of a header's text: as much as NumPy reads from a stranger."""
DEPTH_MAX = 32
"""Brackets inside one another in a header. One structure within another takes two."""
EMPTY_ITEMS_MAX = 1 << 20
"""Items without bytes that an array may have, or any of its fields, if it has not more bytes than
that. A header can claim any number of them: one of 2**62 would have no end for those who go through
it. Lengths of 0 do not count.
"""
LAYOUTS_MAX = 256
"""Headers that are remembered, each of at most HEADER_MAX bytes."""

_MAGIC = b"\x93NUMPY"
_PREFIX = struct.Struct("<6sBBHH")  # magic, version, and the length, of two bytes or of four
_VERSIONS = {(1, 0): ("<H", "latin-1"), (2, 0): ("<I", "latin-1"), (3, 0): ("<I", "utf-8")}
_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"""
_TOKEN = re.compile(
    rf"""(?P<open>[(\[{{])|(?P<close>[)\]}}])|[,:]|[ \n]+|[0-9]+|True|False"""
    rf"""|'(?:[^'\\\n]|{_ESCAPE})*'|"(?:[^"\\\n]|{_ESCAPE})*\""""
)


class _Layout(NamedTuple):
    """What a header says: the length of the whole body, and how to make an array over one."""

    dtype: Any
    size: int
    over: Callable[[Buffer, Any], Any]


def is_array_type(kind: type) -> bool:
    """Whether this is the type of arrays, and no subclass. Does not import NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and kind is getattr(numpy, "ndarray", None)


def encode(array: Any) -> Encoded:
    """A header, and the array's own memory where that is contiguous.

    Raises TypeError, with what to do, if a ``.npy`` file without pickles cannot hold it.
    """
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(
            "an array of Python objects cannot be stored as it is; create the Node with "
            "pickle=True, or convert the array with .astype() or .tolist() first"
        )
    try:
        header = _header(array)
        kept = _layout(header).dtype == dtype
    except (TypeError, ValueError) as error:
        raise TypeError(f"{_unfit(dtype)} ({error})") from None
    if not kept:
        raise TypeError(_unfit(dtype))
    return joint(NDARRAY, (header, _data(array)))


def decode(body: Buffer) -> tuple[object, bool]:
    """A fresh array over the body, which the caller has made read-only.

    Raises whatever comes of bytes that anybody may have stored, and UnknownCodec without NumPy.
    """
    if len(body) < _PREFIX.size:
        raise ValueError("it ends within the header")
    _, major, _, low, high = _PREFIX.unpack_from(body)
    start = 10 + low if major == 1 else 12 + low + (high << 16)
    if start > 12 + HEADER_MAX:
        raise ValueError(f"its header has more than {HEADER_MAX:,} bytes")
    layout = _layout(bytes(body[:start]))
    if len(body) != layout.size:
        raise ValueError(f"it has {len(body):,} bytes, and its header speaks of {layout.size:,}")
    dtype = layout.dtype
    if dtype.names is not None:
        # The user can rename the fields of a dtype, and would rename those of everybody's. This
        # is how NumPy copies a dtype and all that is within: dtype(..., copy=True) does not.
        dtype = dtype.newbyteorder("|")
    return layout.over(body, dtype), False


# ---- the data ---------------------------------------------------------------------------------


def _data(array: Any) -> memoryview:
    """The memory of an array in C or in Fortran order; that of a copy if it is in neither."""
    if not array.nbytes:
        return memoryview(b"")
    if not array.flags.c_contiguous:
        array = array.T if array.flags.f_contiguous else array.copy(order="C")
    # As bytes before it becomes a memoryview, which does not know all dtypes.
    return memoryview(array.reshape(-1).view("u1"))


# ---- the header -------------------------------------------------------------------------------


class _HeaderWritten(Exception):
    pass


class _OnlyTheHeader:
    """A file that takes what NumPy writes first, and no more."""

    header = b""

    def write(self, data: bytes) -> None:
        self.header = data
        raise _HeaderWritten


def _header(array: Any) -> bytes:
    """The header that NumPy writes for an array. Raises ValueError.

    The version is named: NumPy, when it chooses a later one, also warns that it did. Version 2 has
    room for headers that are longer than what is read.
    """
    from numpy.lib import format as npy

    file = _OnlyTheHeader()
    with suppress(_HeaderWritten):
        try:
            npy.write_array(file, array, version=(1, 0), allow_pickle=False)
        except UnicodeEncodeError:  # fields with names that latin-1 cannot write
            npy.write_array(file, array, version=(3, 0), allow_pickle=False)
    return file.header


@lru_cache(LAYOUTS_MAX)
def _layout(header: bytes) -> _Layout:
    """What the header of a ``.npy`` file says. Raises ValueError, and what NumPy raises."""
    try:
        from numpy.lib import format as npy
    except ImportError as error:
        raise UnknownCodec(NDARRAY) from error
    text = _text(header)
    _check_tokens(text)
    # One version serves for all: letters that it does not know can be spelled in ASCII.
    spelled = text.encode("latin-1", "backslashreplace")
    file = io.BytesIO(struct.pack("<I", len(spelled)) + spelled)
    shape, fortran, dtype = npy.read_array_header_2_0(file)
    if dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"an array of {dtype} is not stored like this")
    if any(type(length) is not int for length in shape):  # True is one; none can have a minus
        raise ValueError(f"{shape} is not the shape of an array")
    size = prod(shape) * dtype.itemsize
    _check_empty(shape, dtype, max(size, EMPTY_ITEMS_MAX))
    over = _over(shape, fortran, len(header)) if size else _empty(shape, fortran)
    return _Layout(dtype, len(header) + size, over)


def _check_empty(shape: tuple[int, ...], dtype: Any, most: int) -> None:
    """Raise ValueError if it has more than ``most`` items, by lengths that are not 0."""
    items = prod(length for length in shape if length)
    if items > most:
        raise ValueError(f"it has no bytes for {items:,} items, of which it may have {most:,}")
    for field, *_ in (dtype.fields or {}).values():
        _check_empty((items, *field.shape), field.base, most)


def _empty(shape: tuple[int, ...], fortran: bool) -> Callable[[Buffer, Any], Any]:
    """Arrays without bytes, which ``frombuffer`` does not make."""
    from numpy import ndarray

    return lambda _, dtype: ndarray(shape, dtype, b"", order="F" if fortran else "C")


def _over(shape: tuple[int, ...], fortran: bool, start: int) -> Callable[[Buffer, Any], Any]:
    """What makes an array of the bytes from ``start``; in few steps, for it is in each read."""
    from numpy import frombuffer

    items = prod(shape)
    if len(shape) == 1:
        return lambda body, dtype: frombuffer(body, dtype, items, start)
    if fortran:
        turned = shape[::-1]
        return lambda body, dtype: frombuffer(body, dtype, items, start).reshape(turned).T
    return lambda body, dtype: frombuffer(body, dtype, items, start).reshape(shape)


def _text(header: bytes) -> str:
    """The text of a header that is whole."""
    version = header[6], header[7]
    if header[:6] != _MAGIC or version not in _VERSIONS:
        raise ValueError("it does not begin like a .npy file")
    length, encoding = _VERSIONS[version]
    start = 8 + struct.calcsize(length)
    if struct.unpack_from(length, header, 8)[0] != len(header) - start:
        raise ValueError("it ends within the header")
    if len(header) - start > HEADER_MAX:
        raise ValueError(f"its header has more than {HEADER_MAX:,} bytes")
    return header[start:].decode(encoding)


def _check_tokens(text: str) -> None:
    """Raise ValueError if this is more than strings, numbers and brackets, or nested deeply."""
    depth = position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"its header has something else at {position}")
        position = token.end()
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        if depth > DEPTH_MAX:
            raise ValueError(f"its header has more than {DEPTH_MAX} brackets inside one another")


def _unfit(dtype: Any) -> str:
    return (
        f"an array of {dtype} cannot be stored as a .npy file; create the Node with pickle=True, "
        "or convert the array with .astype() first"
    )
