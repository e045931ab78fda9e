"""NumPy arrays: the body is a ``.npy`` file, and a decoded array reads it in place.

The file has NumPy's own format: a header, padded so that the data begins at a multiple of 64 bytes,
then the raw data, in C or in Fortran order. NumPy writes and reads the header. Parsed headers are
cached by their bytes, since the readers of a key meet the same header each time.

NumPy's reader hands the header to Python's parser. That can be driven deep enough to overflow the
stack of a thread that has a small one. So the header is scanned first: it may have nothing but
strings, numbers and brackets, and these only to a limited depth.

A header cannot describe Python objects, a dtype that another package has registered, or fields that
overlap. Such arrays are refused when the value is stored: every header is read back at once.

A decoded array is made by ``frombuffer`` and not by ``ndarray(buffer=...)``: the latter releases
the memoryview, and then shared memory could be unmapped under the array.
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
"""Bytes of a header's text; NumPy reads no more from a file that it does not trust."""
DEPTH_MAX = 32
"""Brackets inside one another in a header. A structure within a structure takes two."""
EMPTY_ITEMS_MAX = 1 << 20
"""Items without bytes that an array or one of its fields may have, unless it has more bytes than
that. A header can claim any number of them, and a loop over 2**62 items would have no end. Lengths
of 0 do not count.
"""
HEADERS_CACHED = 256
"""Parsed headers that are kept, each of at most HEADER_MAX bytes."""
Maker = Callable[[Buffer, Any], Any]
"""Makes an array of a body and a dtype."""

_MAGIC = b"\x93NUMPY"
_PREFIX = struct.Struct("<6sBBHH")  # magic, version, and the length, of two bytes or of four
_VERSIONS = {(1, 0): ("<H", "latin-1"), (2, 0): ("<I", "latin-1"), (3, 0): ("<I", "utf-8")}
_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"""
_TOKEN = re.compile(
    rf"""(?P<open>[(\[{{])|(?P<close>[)\]}}])|[,:]|[ \n]+|[0-9]+|True|False"""
    rf"""|'(?:[^'\\\n]|{_ESCAPE})*'|"(?:[^"\\\n]|{_ESCAPE})*\""""
)


class Header(NamedTuple):
    """A parsed header. ``length`` is its own, ``size`` that of the data, both in bytes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: Any
    length: int
    size: int


# ---- writing ----------------------------------------------------------------------------------


class _HeaderWritten(Exception):
    pass


class _HeaderOnly:
    """A file that takes the first write of NumPy, which is the header, and no more."""

    header = b""

    def write(self, data: bytes) -> None:
        self.header = data
        raise _HeaderWritten


def write(array: Any) -> bytes:
    """The header that NumPy writes for an array. Raises ValueError.

    The version is given, since NumPy warns when it chooses a later one.
    """
    from numpy.lib import format as npy

    file = _HeaderOnly()
    with suppress(_HeaderWritten):
        try:
            npy.write_array(file, array, version=(1, 0), allow_pickle=False)
        except UnicodeEncodeError:  # names of fields that latin-1 cannot write
            npy.write_array(file, array, version=(3, 0), allow_pickle=False)
    return file.header


# ---- reading ----------------------------------------------------------------------------------


def split(body: Buffer) -> bytes:
    """The header at the beginning of a body, not checked. Raises ValueError."""
    if len(body) < _PREFIX.size:
        raise ValueError("it ends within the header")
    _, major, _, low, high = _PREFIX.unpack_from(body)
    start = 10 + low if major == 1 else 12 + low + (high << 16)
    if start > 12 + HEADER_MAX:
        raise ValueError(f"its header has more than {HEADER_MAX:,} bytes")
    return bytes(body[:start])


def parse(header: bytes) -> Header:
    """Check a header and have NumPy read it. Raises ValueError, and what NumPy raises."""
    try:
        from numpy.lib import format as npy
    except ImportError as error:
        raise UnknownCodec(NDARRAY) from error
    text = _text(header)
    _check_tokens(text)
    # One version serves for all: letters that it cannot write are spelled in ASCII.
    spelled = text.encode("latin-1", "backslashreplace")
    file = io.BytesIO(struct.pack("<I", len(spelled)) + spelled)
    shape, fortran, dtype = npy.read_array_header_2_0(file)
    if dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"an array of {dtype} is not stored like this")
    if any(type(length) is not int for length in shape):  # it may be True; none can have a minus
        raise ValueError(f"{shape} is not the shape of an array")
    size = prod(shape) * dtype.itemsize
    _check_empty(shape, dtype, max(size, EMPTY_ITEMS_MAX))
    return Header(shape, fortran, dtype, len(header), size)


def _text(header: bytes) -> str:
    """The text of a header. Raises ValueError unless the header is complete."""
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
    """Raise ValueError unless this is strings, numbers and brackets, not nested deeply."""
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


def _check_empty(shape: tuple[int, ...], dtype: Any, most: int) -> None:
    """Raise ValueError if lengths that are not 0 make more than ``most`` items."""
    items = prod(length for length in shape if length)
    if items > most:
        raise ValueError(f"it has no bytes for {items:,} items, of which it may have {most:,}")
    for field, *_ in (dtype.fields or {}).values():
        _check_empty((items, *field.shape), field.base, most)


def is_array_type(kind: type) -> bool:
    """Whether this is NumPy's type of arrays, not a subclass. Does not import NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and kind is getattr(numpy, "ndarray", None)


def encode(array: Any) -> Encoded:
    """A header, and the array's own memory where that is contiguous. Raises TypeError."""
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(
            "an array of Python objects cannot be stored as it is; create the Node with "
            "pickle=True, or convert the array with .astype() or .tolist() first"
        )
    try:
        header = write(array)
        kept = _layout(header)[0] == dtype
    except (TypeError, ValueError) as error:
        raise TypeError(f"{_refusal(dtype)} ({error})") from None
    if not kept:
        raise TypeError(_refusal(dtype))
    return joint(NDARRAY, (header, _data(array)))


def _data(array: Any) -> memoryview:
    """The memory of an array in C or in Fortran order; that of a copy if it is in neither."""
    if not array.nbytes:
        return memoryview(b"")
    if not array.flags.c_contiguous:
        array = array.T if array.flags.f_contiguous else array.copy(order="C")
    # First as bytes, since memoryview does not know all dtypes.
    return memoryview(array.reshape(-1).view("u1"))


def _refusal(dtype: Any) -> str:
    return (
        f"an array of {dtype} cannot be stored as a .npy file; create the Node with pickle=True, "
        "or convert the array with .astype() first"
    )


def decode(body: Buffer) -> object:
    """A new array over the body, which the caller has made read-only.

    Raises UnknownCodec without NumPy, and any exception if the body is damaged or hostile.
    """
    dtype, size, make = _layout(split(body))
    if len(body) != size:
        raise ValueError(f"it has {len(body):,} bytes, and its header speaks of {size:,}")
    if dtype.names is not None:
        # The user can rename the fields of a dtype, and would rename those of all other arrays.
        # This is how NumPy copies a dtype and all within it: dtype(..., copy=True) does not.
        dtype = dtype.newbyteorder("|")
    return make(body, dtype)


@lru_cache(HEADERS_CACHED)
def _layout(header: bytes) -> tuple[Any, int, Maker]:
    """The dtype, the bytes of the whole body, and what makes an array over it."""
    parsed = parse(header)
    return parsed.dtype, parsed.length + parsed.size, _maker(parsed)


def _maker(header: Header) -> Maker:
    from numpy import frombuffer, ndarray

    shape, start = header.shape, header.length
    items = prod(shape)
    if not header.size:  # frombuffer does not make arrays without bytes
        return lambda _, dtype: ndarray(shape, dtype, b"", order="F" if header.fortran else "C")
    # The array is made in few steps, since each read of a value does this.
    if len(shape) == 1:
        return lambda body, dtype: frombuffer(body, dtype, items, start)
    if header.fortran:
        reversed_shape = shape[::-1]
        return lambda body, dtype: frombuffer(body, dtype, items, start).reshape(reversed_shape).T
    return lambda body, dtype: frombuffer(body, dtype, items, start).reshape(shape)
