"""Files that are stored or fetched: read in pieces, and visible to others only when complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

from dstore import codecs
from dstore.core.local.steps import Report
from dstore.protocol import content
from dstore.protocol.messages import Buffer

Path: TypeAlias = str | os.PathLike[str]
Progress: TypeAlias = Report
"""Called with what is going on (also ``reading``, ``writing``), bytes done, and bytes in all."""
PIECE_BYTES = 1 << 20
"""Bytes that are read, written or copied at a time."""
LINKS_MAX = 40
"""Symbolic links that are followed in one path, as many as in Linux."""


class Fetched(NamedTuple):
    """The result of writing a value to a file: its codec's name and its size in bytes."""

    codec: str
    size: int


class FileToStore:
    """An open regular file whose bytes are to be stored. For one thread at a time.

    It is read, piece by piece or by slices, and not mapped: access to a mapping beyond the end of a
    file that has become shorter would kill the process.
    """

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self._progress = progress

    def _shorter(self) -> ValueError:
        return ValueError(f"{self.file.name} became shorter while it was read")

    def pieces(self) -> Iterator[Buffer]:
        """Read the bytes that the file had when it was opened.

        Raises OSError, and ValueError if the file has become shorter.
        """
        self.file.seek(0)
        done = 0
        while done < self.size:
            piece = self.file.read(min(PIECE_BYTES, self.size - done))
            if not piece:
                raise self._shorter()
            yield piece
            done += len(piece)
            if self._progress is not None:
                self._progress("reading", done, self.size)

    def digest(self) -> bytes:
        """Read the file and return the content hash of its bytes. Raises what pieces() raises."""
        hasher = content.Hasher(codecs.BYTES)
        for piece in self.pieces():
            hasher.update(piece)
        return hasher.digest()

    def __getitem__(self, where: slice) -> bytes:
        """Read a slice. Raises OSError, and ValueError if the file has become shorter."""
        start, stop, _ = where.indices(self.size)
        pieces = []
        while start < stop:
            piece = os.pread(self.file.fileno(), stop - start, start)
            if not piece:
                raise self._shorter()
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)


@contextlib.contextmanager
def reading(path: Path, progress: Progress | None) -> Iterator[FileToStore]:
    """Open a file that is to be stored.

    Raises OSError; TypeError for anything but a path, such as a descriptor, which its owner has to
    close; ValueError for anything but a regular file, because its size must be known beforehand.
    """
    with open(os.fspath(path), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (not status.st_size and file.read(1)):
            raise ValueError(
                f"{os.fspath(path)} is not a regular file; read it, and store the bytes"
            )
        yield FileToStore(file, progress)


def destination(path: str) -> tuple[str, os.stat_result | None]:
    """Resolve where a file is to be written. Return the path without links, and the old status.

    The status is that of the file that is there, or None. In a sticky folder that all users may
    write to, such as /tmp, any user can plant files and links that others then write to or
    through. A file or link found there must belong to this user or to the folder's owner. (Linux
    has such a rule for links, fs.protected_symlinks, which is not set everywhere.) Raises OSError,
    which names ``path``.
    """
    try:
        return _destination(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _destination(path: str) -> tuple[str, os.stat_result | None]:
    place = os.sep if path.startswith(os.sep) else os.getcwd()
    left = path.split(os.sep)[::-1]  # the next part is the last one
    links = 0
    while left:
        part = left.pop()
        if part in ("", os.curdir):
            continue
        if part == os.pardir:
            place = os.path.dirname(place)
            continue
        found = os.path.join(place, part)
        try:
            status = os.lstat(found)
        except FileNotFoundError:
            if left:
                raise
            return _without_path(path) if links and os.path.exists(path) else (found, None)
        if stat.S_ISLNK(status.st_mode):
            _refuse_planted(place, found, status)
            if (links := links + 1) > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            link = os.readlink(found)
            place = os.sep if link.startswith(os.sep) else place
            left += link.split(os.sep)[::-1]
        elif stat.S_ISDIR(status.st_mode):
            place = found
        elif left:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        else:
            _refuse_planted(place, found, status)
            return found, status
    return place, os.stat(place)


def _refuse_planted(folder: str, found: str, status: os.stat_result) -> None:
    around = os.stat(folder)
    shared = around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
    if shared and status.st_uid not in (os.geteuid(), around.st_uid):
        raise PermissionError(
            errno.EACCES,
            f"another user has put {found} into a folder that everyone may write to; "
            "choose another place",
        )


def _without_path(path: str) -> tuple[str, os.stat_result]:
    """Resolve a path that only /proc knows, such as /dev/stdout to a pipe; not a deleted file."""
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return path, status


def keep_mode(new: str | int, before: os.stat_result) -> None:
    """Give a file (a path or a descriptor) the permissions of the one that it replaces.

    The old file may have been private. If it belongs to another user, its permissions can only
    take some away. Bits that would let others run the new file as this user are never kept.
    """
    mode = before.st_mode & 0o777
    if before.st_uid != os.geteuid():
        mode &= os.stat(new).st_mode
    os.chmod(new, mode)


class Destination:
    """A file that is being written, under another name in the folder where it will appear."""

    def __init__(self, descriptor: int, progress: Progress | None) -> None:
        self._descriptor = descriptor
        self._progress = progress

    def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at an offset in bytes. Raises OSError."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            view, offset = view[done:], offset + done

    def write_all(self, body: memoryview) -> None:
        """Write the whole value. Raises OSError."""
        for start in range(0, len(body), PIECE_BYTES):
            self.write(start, body[start : start + PIECE_BYTES])
            if self._progress is not None:
                self._progress("writing", min(start + PIECE_BYTES, len(body)), len(body))

    def end_at(self, size: int) -> None:
        """Cut off bytes beyond ``size``, which a failed attempt has left."""
        os.ftruncate(self._descriptor, size)


@contextlib.contextmanager
def writing(path: Path, progress: Progress | None) -> Iterator[Destination]:
    """Write a file that appears at ``path`` when the block has ended without an exception.

    It gets the permissions of the file that it replaces, if that belongs to this user. Raises
    OSError, which names ``path``; ValueError if something other than a regular file is there.
    """
    name = os.fspath(path)
    if name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    target, before = destination(name)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise ValueError(f"{name} is not a regular file; get the value, and write it there")
    unfinished = os.path.join(os.path.dirname(target), f".dstore-{secrets.token_hex(8)}.part")
    process = os.getpid()
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, name) from None
    try:
        try:
            if before is not None:
                keep_mode(descriptor, before)
            yield Destination(descriptor, progress)
        finally:
            os.close(descriptor)
        os.replace(unfinished, target)
    except BaseException:
        if os.getpid() == process:  # not in a forked child: the parent goes on writing it
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
        raise
