"""NumPy arrays: the body is a ``.npy`` file, and a decoded array reads it in place.

The file has NumPy's own format: a header, padded so that the data begins at a multiple of 64 bytes,
then the raw data, in C or in Fortran order. NumPy writes and reads the header, see
``array_header.py``. Parsed headers are cached by their bytes, since the readers of a key meet the
same header each time.

A header cannot describe Python objects, a dtype that another package has registered, or fields that
overlap. Such arrays are refused when the value is stored: every header is read back at once.

A decoded array is made by ``frombuffer`` and not by ``ndarray(buffer=...)``: the latter releases
the memoryview, and then shared memory could be unmapped under the array.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

from dstore.codecs import array_header
from dstore.codecs.array_header import Header
from dstore.codecs.encoded import NDARRAY, Encoded, joint
from dstore.protocol.messages import Buffer

HEADERS_CACHED = 256
"""Parsed headers that are kept, each of at most HEADER_MAX bytes."""

Maker = Callable[[Buffer, Any], Any]
"""Makes an array of a body and a dtype."""


def is_array_type(kind: type) -> bool:
    """Whether this is NumPy's type of arrays, not a subclass. Does not import NumPy."""
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
        header = array_header.write(array)
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


def decode(body: Buffer) -> tuple[object, bool]:
    """A new array over the body, which the caller has made read-only.

    Raises UnknownCodec without NumPy, and any exception if the body is damaged or hostile.
    """
    dtype, size, make = _layout(array_header.split(body))
    if len(body) != size:
        raise ValueError(f"it has {len(body):,} bytes, and its header speaks of {size:,}")
    if dtype.names is not None:
        # The user can rename the fields of a dtype, and would rename those of all other arrays.
        # This is how NumPy copies a dtype and all within it: dtype(..., copy=True) does not.
        dtype = dtype.newbyteorder("|")
    return make(body, dtype), False


@lru_cache(HEADERS_CACHED)
def _layout(header: bytes) -> tuple[Any, int, Maker]:
    """The dtype, the bytes of the whole body, and what makes an array over it."""
    parsed = array_header.parse(header)
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
