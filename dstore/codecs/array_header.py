"""Headers of ``.npy`` files: written by NumPy, checked before NumPy reads them.

NumPy's reader hands the header to Python's parser. That can be driven deep enough to overflow the
stack of a thread that has a small one. So the header is scanned first: it may have nothing but
strings, numbers and brackets, and these only to a limited depth.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress
from math import prod
from typing import Any, NamedTuple

from dstore.codecs.encoded import NDARRAY
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

    The version is given, since NumPy warns when it chooses a later one. Version 2 is for headers
    that are longer than HEADER_MAX.
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
