"""Values in and out of files, as ``dstore get`` and GETFILE write them.

Bytes and text are written as they are, an array as a ``.npy`` file, a value that only some program
can read as it is stored, and all others as JSON. No file has half of a value: a file appears when
it is complete.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from dstore import config
from dstore.cli.show import is_array
from dstore.client import files
from dstore.client.files import PIECE_BYTES, Progress
from dstore.client.node import Node
from dstore.errors import DstoreError, UnknownCodec

Bytes: TypeAlias = "bytes | bytearray | memoryview"
UNFINISHED = ".dstore-"
"""How the name of the folder begins in which a file is written until it is complete."""
JSON_CODEC = "msgpack"
"""The codec of the values that are written as JSON."""


# From files ---------------------------------------------------------------------------------


def is_large_file(path: str) -> bool:
    """Return whether the Node itself should read a file, piece by piece, and not into memory.

    These are regular files of some size; other files may have more bytes than the system says, or
    never end. Raises OSError.
    """
    status = os.stat(path)
    return stat.S_ISREG(status.st_mode) and status.st_size >= config.LARGE_FROM_DEFAULT


def read_all(file: BinaryIO, name: str) -> bytearray:
    """Read a file or a pipe to its end. Raises ValueError if that is too much for a value.

    ``file.read(limit)`` would ask the system for that much memory in advance.
    """
    data = bytearray()
    ended = False
    while not ended:
        piece = file.read(PIECE_BYTES)
        ended = len(piece) < PIECE_BYTES  # asked once more, a terminal would want a second Ctrl-D
        data += piece
        if len(data) > config.VALUE_LIMIT_DEFAULT:
            raise ValueError(
                f"{name} has more than the {config.VALUE_LIMIT_DEFAULT:,} bytes that one value "
                "may have"
            )
    return data


def read_file(path: str) -> bytearray:
    """Read a file. Raises OSError, or ValueError if it is a device, a pipe, or too large."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise ValueError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        return read_all(file, path)


# Values as bytes ----------------------------------------------------------------------------


def as_bytes(node: Node, key: str | bytes) -> Bytes:
    """Return a value as it is written to a file. Raises what ``get`` does, but no UnknownCodec."""
    try:
        value = node.get(key)
    except UnknownCodec:
        return node.get_buffer(key)
    if is_array(value):
        del value  # before the next read, since it may have memory of its own
        return node.get_buffer(key)
    return written(value)


def written(value: object) -> Bytes:
    """Return a value as bytes: bytes and text as they are, everything else as JSON.

    JSON has no bytes, so bytes in a list or a dict become Base64 text. Keys of a dict that are
    neither text nor numbers become text, too.
    """
    if isinstance(value, (bytes, memoryview)):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(_plain(value), ensure_ascii=False).encode()


def _plain(value: object, *, as_key: bool = False) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return json.dumps(items) if as_key else items
    if isinstance(value, Mapping):
        return {_plain(key, as_key=True): _plain(item) for key, item in value.items()}
    return value


def pieces(data: Bytes) -> Iterator[memoryview]:
    """Yield bytes in parts of at most ``PIECE_BYTES``, so that Ctrl-C works between two of them."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


# To files -----------------------------------------------------------------------------------


def get_to_file(node: Node, key: str | bytes, path: str, progress: Progress | None) -> int:
    """Write a value to a file and return its number of bytes.

    The file is replaced; a device or a pipe is written to. A large value is written piece by piece.
    Raises what ``get`` does, except for UnknownCodec, and OSError, which names ``path``.
    """
    try:
        target, before = files.destination(path)
        if before is None or stat.S_ISREG(before.st_mode):
            return _replace(node, key, target, before, progress)
        if stat.S_ISDIR(before.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        data = as_bytes(node, key)
        with open(target, "wb", opener=_as_it_was(before)) as device:
            device.writelines(pieces(data))
        return len(data)
    except OSError as error:
        if isinstance(error, DstoreError) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def _as_it_was(before: os.stat_result) -> Callable[[str, int], int]:
    """Return an opener for a device or a pipe that fails if something else has taken its place."""

    def opener(path: str, _: int) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        if _identity(os.fstat(descriptor)) != _identity(before):
            os.close(descriptor)
            raise OSError(errno.ESTALE, "something else has taken its place meanwhile")
        return descriptor

    return opener


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Return what identifies a file. The inode alone does not: the next file may get its number."""
    return (status.st_dev, status.st_ino, status.st_mode, status.st_uid)


def _replace(
    node: Node,
    key: str | bytes,
    target: str,
    before: os.stat_result | None,
    progress: Progress | None,
) -> int:
    import tempfile  # here, since it imports a lot

    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=os.path.dirname(target)) as place:
        unfinished = os.path.join(place, "value")
        fetched = node.get_file(key, unfinished, progress=progress)
        size = fetched.size
        if fetched.codec == JSON_CODEC:
            data = as_bytes(node, key)
            size = len(data)
            with open(unfinished, "wb") as file:
                file.writelines(pieces(data))
        if before is not None:
            files.keep_mode(unfinished, before)
        os.replace(unfinished, target)
    return size
