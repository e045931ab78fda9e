"""Values on one line, however large they are.

A small value is written in full. One that would take more than ``SHOWN_MAX`` characters is shown by
its type, its size and its beginning, and only the beginning is turned into text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from dstore.quoting import is_plain, visible

SHOWN_MAX = 4096
"""The number of characters up to which a value is shown in full."""
BEGINNING = 100
"""The number of characters or bytes that are shown of a larger value."""
ARRAY_ITEMS_MAX, ARRAY_ITEM_BYTES_MAX = 2000, 256
"""NumPy shows six items in each dimension of a large array, which may be any number in all. An
array beyond these limits is only described.
"""
NUMPY_SHOWS_ALL = 1000
"""The number of items up to which NumPy shows an array in full."""
NUMPY_SHOWS_EACH = 6

_LINE_BREAK = re.compile(r"\n\s*")


def shown(item: Any) -> str:
    """Return a key or a value on one line: text as it is, everything else as Python writes it.

    Text that would break the line, steer the terminal or stay invisible is written as Python does,
    too. This holds in a pipe as well, since a reply of the REPL is one line.
    """
    if is_array(item):
        return visible(_shown_array(item))
    if isinstance(item, str) and len(item) <= SHOWN_MAX and is_plain(item):
        return item
    line, whole = _begun(item, SHOWN_MAX)
    return visible(line if whole else f"<{_described(item)}: {_beginning(item)} ...>")


def is_array(value: object) -> bool:
    """Return whether a value that a Node with the default codecs has read is a NumPy array."""
    return hasattr(value, "dtype")


def array_repr(array: Any) -> str:
    """Return an array as NumPy shows it, on several lines, or a description of a larger one."""
    items = array.size
    if items > NUMPY_SHOWS_ALL:
        items = math.prod(min(length, NUMPY_SHOWS_EACH) for length in array.shape)
    if items > ARRAY_ITEMS_MAX or array.dtype.itemsize > ARRAY_ITEM_BYTES_MAX:
        return f"<{_described(array)}>"
    return repr(array)


def unreadable(codec: str, instead: str) -> str:
    """Return why a value is not shown, and what to do ``instead``."""
    why = (
        "an array, and numpy is not installed" if codec == "ndarray" else f"of the codec {codec!r}"
    )
    return f"the value cannot be shown, since it is {why}; {instead} writes its bytes to a file"


def _shown_array(array: Any) -> str:
    line = _LINE_BREAK.sub(" ", array_repr(array))
    if line.startswith("<") or max(array.nbytes, len(line)) <= SHOWN_MAX:
        return line
    if len(line) > SHOWN_MAX:
        line = f"{line[:BEGINNING]} ..."
    return f"<{_described(array)}: {line}>"


def _described(value: Any) -> str:
    """Return the type and the size of a value."""
    if is_array(value):
        dtype = str(value.dtype)
        dtype = dtype if len(dtype) <= BEGINNING else f"{dtype[:BEGINNING]} ..."
        return f"array of {dtype}, shape {value.shape}, {value.nbytes:,} bytes"
    if isinstance(value, str):
        return f"text of {len(value):,} characters"
    if isinstance(value, (bytes, memoryview)):
        return f"{len(value):,} bytes"
    return f"{type(value).__name__} of {len(value):,} item{'' if len(value) == 1 else 's'}"


def _beginning(value: Any) -> str:
    if isinstance(value, (str, bytes, memoryview)):
        return next(_written(value[:BEGINNING]))
    return _begun(value, BEGINNING)[0]


def _begun(value: Any, most: int) -> tuple[str, bool]:
    """Return at most ``most`` characters of what Python writes, and whether that is all."""
    pieces = []
    left = most
    for piece in _written(value):
        pieces.append(piece[:left])
        if len(piece) > left:
            return "".join(pieces), False
        left -= len(piece)
    return "".join(pieces), True


def _written(value: Any) -> Iterator[str]:
    """Yield what Python writes, piece by piece; of long text and bytes only what is shown."""
    if isinstance(value, (str, bytes)):
        yield repr(value[: SHOWN_MAX + 1])
    elif isinstance(value, memoryview):
        yield repr(bytes(value[: SHOWN_MAX + 1]))
    elif isinstance(value, (list, tuple)):
        opened, closed = "[]" if isinstance(value, list) else "()"
        yield opened
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _written(item)
        yield "," + closed if len(value) == 1 and closed == ")" else closed
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _written(key)
            yield ": "
            yield from _written(item)
        yield "}"
    else:
        yield repr(value)
