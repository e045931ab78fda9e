"""Files in and out: read piece by piece, and written so that nobody sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

from dstore import codecs, content
from dstore.messages import Buffer

Path: TypeAlias = "str | os.PathLike[str]"
Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what is going on (``reading``, ``sending``, ``fetching`` or ``writing``), how many bytes
are done, and of how many.
"""
PIECE_BYTES = 1 << 20


class Fetched(NamedTuple):
    """What was written to a file: ``size`` bytes, which the codec of this name can read."""

    codec: str
    size: int


class Source:
    """A regular file that is to be stored, open."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self._progress = progress

    def shorter(self) -> ValueError:
        return ValueError(f"{self.file.name} became shorter while it was read")

    def pieces(self) -> Iterator[Buffer]:
        """Its bytes, from the beginning, as many as it had when it was opened.

        Raises ValueError if it has become shorter.
        """
        self.file.seek(0)
        done = 0
        while done < self.size:
            piece = self.file.read(min(PIECE_BYTES, self.size - done))
            if not piece:
                raise self.shorter()
            yield piece
            done += len(piece)
            if self._progress is not None:
                self._progress("reading", done, self.size)

    def body(self) -> FileBody:
        """Its bytes, of which each slice is read when it is asked for. Not after it is closed."""
        return FileBody(self)

    def digest(self) -> bytes:
        """The hash of its bytes, as a value."""
        hasher = content.Hasher(codecs.BYTES)
        for piece in self.pieces():
            hasher.update(piece)
        return hasher.digest()


class FileBody:
    """The bytes of a file, by slices. (A mapping would kill who reads it, if it became shorter.)"""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, where: slice) -> bytes:
        """Raises OSError; ValueError if the file has become shorter."""
        start, stop, _ = where.indices(self._source.size)
        pieces = []
        while start < stop:
            piece = os.pread(self._source.file.fileno(), stop - start, start)
            if not piece:
                raise self._source.shorter()
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)


@contextlib.contextmanager
def reading(path: Path, progress: Progress | None) -> Iterator[Source]:
    """Open a file that is to be stored.

    Raises OSError; TypeError for what is no path, such as a descriptor, which is its owner's to
    close; ValueError for what is not a regular file, whose size is known beforehand.
    """
    with open(os.fspath(path), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (not status.st_size and file.read(1)):
            raise ValueError(
                f"{os.fspath(path)} is not a regular file; read it, and store the bytes"
            )
        yield Source(file, progress)


class Destination:
    """A file that is being written, beside the place where it will be."""

    def __init__(self, descriptor: int, progress: Progress | None) -> None:
        self._descriptor = descriptor
        self._progress = progress

    def write(self, offset: int, data: Buffer) -> None:
        """Write a part. Raises OSError."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done

    def write_all(self, body: memoryview) -> None:
        """Write the whole, and nothing else."""
        for start in range(0, len(body), PIECE_BYTES):
            self.write(start, body[start : start + PIECE_BYTES])
            if self._progress is not None:
                self._progress("writing", min(start + PIECE_BYTES, len(body)), len(body))

    def end_at(self, size: int) -> None:
        """What is beyond was of an attempt that came to nothing."""
        os.ftruncate(self._descriptor, size)


@contextlib.contextmanager
def writing(path: Path, progress: Progress | None) -> Iterator[Destination]:
    """A file that appears at ``path`` when the block ends well, whole, and else not at all.

    It has the mode of the one that it replaces. Raises OSError, which names ``path``; ValueError if
    something other than a regular file is there.
    """
    name = os.fspath(path)
    target = os.path.realpath(path)
    if os.path.isdir(target) or name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    mode = None
    if os.path.lexists(target):
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{name} is not a regular file; get the value, and write it there")
    unfinished = os.path.join(os.path.dirname(target), f".dstore-{secrets.token_hex(8)}.part")
    process = os.getpid()
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, name) from None
    try:
        try:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            yield Destination(descriptor, progress)
        finally:
            os.close(descriptor)
        os.replace(unfinished, target)
    except BaseException:
        if os.getpid() == process:  # a forked child drops what the parent goes on with
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        raise
