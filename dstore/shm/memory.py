"""The large values of one epoch, as the processes of a host share them."""

from __future__ import annotations

import contextlib
import io
import os
import time

from dstore.background import janitor
from dstore.logs import INFO, WARNING, Log
from dstore.shm import eviction, folder, locks, mapping, parts
from dstore.shm.folder import Folder, Unusable
from dstore.shm.locks import held
from dstore.shm.parts import PART, NoRoom, Writer

log = Log("dstore.shm")

ROOT_VARIABLE = "DSTORE_SHM"
ROOT_DEFAULT = "/dev/shm"
TOKEN_BYTES = 16
SHARES = 16
"""Of what the limit leaves, a process adds this fraction before it looks again. If more processes
than that do so at the same time, the limit may be exceeded by as much, until one looks.
"""
OWN_PATIENCE = 0.1
"""So many seconds Global waits for memory that is being given back."""
FULL_SECONDS = 1.0
"""So long Global does not look for room again that it has not found."""
AVAILABLE = locks.AVAILABLE and mapping.AVAILABLE


class HostMemory:
    """One copy of each large value on this host. Safe from any thread.

    A reader loops: :meth:`find` it; else :meth:`begin`, and fetch and write it; where that gives
    None, wait a little and look again, since the other one may finish or die; where it raises
    NoRoom, fetch it into memory of its own.

    Closed, or inherited from a parent process, it is empty and takes nothing: :meth:`find` finds
    nothing, :meth:`begin` raises NoRoom. Views stay readable for ever. Removed is what is the
    caller's, also when it is closed, but nothing of a parent process.
    """

    def __init__(self, entered: Folder, limit: int) -> None:
        self.limit = limit
        self._folder = entered
        self._process = os.getpid()
        self._closed = False
        self._full_until = 0.0
        self._spare = 0  # what may be added before anybody looks at the limit again

    def __repr__(self) -> str:
        state = "open" if self._usable else "closed"
        return f"<HostMemory {state} {self._folder!r} limit={self.limit}>"

    @property
    def path(self) -> str:
        """The folder of this epoch."""
        return self._folder.path

    @property
    def _usable(self) -> bool:
        return self._folder.alive and not self._closed

    def find(self, token: bytes, size: int) -> memoryview | None:
        """The value, read-only, if it is here in full and has ``size`` bytes."""
        name = _name(token)
        if not self._usable:
            return None
        # Global may move it from the copies to its own between two looks.
        for path in (self._own(name), self._copy(name), self._own(name)):
            with contextlib.suppress(FileNotFoundError):
                return _mapped(path, size)
        return None

    def begin(self, token: bytes, size: int, *, own: bool = False) -> Writer | None:
        """Become the one on this host who writes the value, all of its memory reserved.

        None if another process or thread is writing it, or has just written it. Copies are evicted
        to make room. Raises NoRoom.

        With ``own`` the file is Global's: there is no limit on those, and they are never evicted.
        Its memory is reserved step by step as it is written, and so is room made for it, since
        nothing that Global does may take long; NoRoom says that there is not enough for the whole.
        """
        name = _name(token)
        if not own and size > self.limit:
            raise NoRoom(f"{size:,} bytes are more than the limit of {self.limit:,}")
        try:
            writer = self._claim(name, size, own)
            if writer is None:
                if self._unreadable(token, name, size, own):
                    raise NoRoom("it is there, but has another size or cannot be mapped")
                return None
            try:
                self._reserve(writer, self._copy(name) + PART, own)
            except BaseException:
                writer.abandon()
                raise
            return writer
        except OSError as error:
            raise NoRoom(f"{size:,} bytes find no room: {error}") from error

    def _claim(self, name: str, size: int, own: bool) -> Writer | None:
        final = self._own(name) if own else self._copy(name)
        with held.lock:
            if not self._usable:
                raise NoRoom("the shared memory is closed")
            part = parts.claim(self._folder, final + PART, self)
            if part is None:
                return None
            make_room = self._make_own_room if own else self._make_room
            writer = Writer(part, final, size, make_room)
            # It may have been sealed just before the lock was ours.
            if self._sealed(name, own):
                writer.abandon()
                return None
            return writer

    def _sealed(self, name: str, own: bool) -> bool:
        """Whether it is here in full: for a Node anywhere, for Global among its own."""
        # In this order, since a file moves from the copies to Global's own, and never back.
        places = (self._own(name),) if own else (self._copy(name), self._own(name))
        return any(map(os.path.lexists, places))

    def _unreadable(self, token: bytes, name: str, size: int, own: bool) -> bool:
        """Whether it is here and yet :meth:`find` does not find it, now or ever."""
        # It may be sealed, or evicted, at any moment: it is missed only by who looks in between.
        return (
            self._sealed(name, own) and self.find(token, size) is None and self._sealed(name, own)
        )

    def _reserve(self, writer: Writer, mine: str, own: bool) -> None:
        """Reserve all the memory, of Global's own the beginning; then keep the limit.

        In this order: of two who do this at the same time, at least one sees the other's file.
        Raises NoRoom.
        """
        now = min(writer.size, parts.RESERVE_BYTES) if own else writer.size
        needed = self._promised()
        free = eviction.free(self._folder.copies)
        make_room = self._make_own_room if own else self._make_room
        if free < needed and not make_room(needed, now):
            raise NoRoom(f"{writer.size:,} bytes do not fit into the file system")
        writer.reserve(now)
        if not own:
            writer.view()  # now, since this may fail as well, and sealing is not to
            self._keep_limit(mine, writer.size)

    def _promised(self) -> int:
        """How much of what this process is writing is not reserved yet, in bytes."""
        with held.lock:
            refs = [part.writer for part in self._folder.parts.values()]
        writers = [writer for ref in refs if ref is not None and (writer := ref()) is not None]
        return sum(writer.size - writer.reserved for writer in writers)

    def _make_room(self, needed: int, now: int) -> bool:
        return eviction.make_room(self._folder, needed, now)

    def _make_own_room(self, needed: int, now: int) -> bool:
        """The same for Global, which must not stand still: it waits for nobody for long, and
        does not look again and again where there is no room.
        """
        if time.monotonic() < self._full_until:
            return False
        if eviction.make_room(self._folder, needed, now, OWN_PATIENCE):
            return True
        self._full_until = time.monotonic() + FULL_SECONDS
        return False

    def _keep_limit(self, mine: str, size: int) -> None:
        with held.lock:
            self._spare -= size
            if self._spare >= 0:
                return
        left = eviction.keep_limit(self._folder, mine, size, self.limit)
        if left is None:
            raise NoRoom(f"others are writing so much that {size:,} bytes exceed the limit")
        self._spare = left // SHARES

    def progress(self, token: bytes) -> int | None:
        """A number that grows while somebody writes the copy. None if there is none unfinished."""
        try:
            status = os.stat(self._copy(_name(token)) + PART)
        except OSError:
            return None
        return max(status.st_mtime_ns, status.st_ctime_ns)

    def adopt(self, token: bytes, size: int) -> bool:
        """Make a copy that a Node has written Global's own.

        False if there is no such copy, or it has another size: of two who would adopt the same
        one, the second comes too late.
        """
        name = _name(token)
        if not self._usable:
            return False
        try:
            if os.stat(self._copy(name)).st_size != size:
                return False
            os.rename(self._copy(name), self._own(name))
            return True
        except OSError:  # no such copy, or evicted this very moment
            return False

    def read_own(self, token: bytes, offset: int, count: int) -> memoryview | None:
        """A piece of one of Global's own, copied. None if it is not there."""
        if not self._usable:
            return None
        try:
            with io.FileIO(self._own(_name(token))) as file:
                return memoryview(os.pread(file.fileno(), count, offset))
        except (OSError, OverflowError):  # taken away, no descriptors left, or no such place
            return None

    def drop(self, token: bytes) -> None:
        """Remove a copy. Who has it mapped keeps it. That there is none is fine."""
        self._remove(self._copy(_name(token)))

    def drop_own(self, token: bytes) -> None:
        """Remove one of Global's own, as :meth:`drop` does."""
        self._remove(self._own(_name(token)))

    def _remove(self, path: str) -> None:
        # Closed or not: a token is never used again, and others may be in the folder.
        if self._process == os.getpid():
            with contextlib.suppress(OSError), io.FileIO(path) as file:
                parts.unlink(path, file)
                return
            with contextlib.suppress(OSError):  # as when there are no more descriptors
                os.unlink(path)

    def linked(self, token: bytes) -> bool:
        """Whether the value is here in full, so that others can find it."""
        return self._usable and self._sealed(_name(token), own=False)

    def touch(self, token: bytes) -> None:
        """Note that the value was used, so that it is evicted later than others."""
        name = _name(token)
        if self._usable:
            with contextlib.suppress(OSError):
                parts.touch(self._copy(name))

    def close(self, *, wait: bool = True) -> None:
        """Leave. The last process to leave an epoch removes its folder. Idempotent.

        What is being written through this memory is abandoned. With ``wait``, whoever closes the
        last memory of a process waits until all that it has removed is gone, which may take a
        while; else that is done in the background, before Python exits.
        """
        with held.lock:
            if self._closed:
                return
            self._closed = True
            try:
                for part in list(self._folder.parts.values()):
                    if part.owner is self:
                        part.abandon()
            finally:
                folder.leave(self._folder)
        if wait and not held.folders:
            janitor.wait()

    def _own(self, name: str) -> str:
        return f"{self._folder.own}/{name}"

    def _copy(self, name: str) -> str:
        return f"{self._folder.copies}/{name}"


def open_memory(
    epoch: int, *, root: str | None = None, limit: int | None = None
) -> HostMemory | None:
    """The shared memory of this host and user for one life of a Global.

    ``root`` is the folder to be in: by default what ``$DSTORE_SHM`` says, else /dev/shm. An empty
    one means that shared memory is switched off. ``limit`` is how many bytes the copies may take
    on this host, by default half of the file system.

    None where there is none to be had; why is logged once. A process may open an epoch several
    times, and closes each. Folders of other epochs that nobody uses any more are removed.
    """
    if not 0 <= epoch <= folder.EPOCH_MAX:
        raise ValueError(f"an epoch is not negative and has at most 64 bits: {epoch}")
    place = _place(root)
    if place is None:
        return None
    try:
        most = eviction.limit_default(place) if limit is None else limit
        entered = folder.enter(place, epoch)
    except (OSError, Unusable) as error:
        _say_once(WARNING, f"no shared memory, each process keeps its own copies: {error}")
        return None
    memory = HostMemory(entered, most)
    try:
        parts.sweep(entered)
        clean(place)
    except BaseException:
        memory.close()
        raise
    return memory


def clean(root: str | None = None) -> None:
    """Remove what processes that were killed have left behind: unused folders of this user.

    Nobody can enter them any more when this returns; their files go in the background.
    """
    place = _place(root)
    if place is None:
        return
    try:
        folder.clean(place)
    except (OSError, Unusable) as error:
        _say_once(WARNING, f"what others left in shared memory stays: {error}")


def _place(root: str | None) -> str | None:
    """The folder to be in, as an absolute path; None if there is none."""
    chosen = os.environ.get(ROOT_VARIABLE) if root is None else root
    if chosen == "":
        return None
    if not AVAILABLE or (chosen is None and not os.path.isdir(ROOT_DEFAULT)):
        _say_once(INFO, "shared memory is not available on this system")
        return None
    place = os.path.abspath(chosen or ROOT_DEFAULT)
    if not os.path.isdir(place):
        _say_once(WARNING, f"no shared memory: {place} is not a folder")
        return None
    return place


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.log(level, "%s", message)


def _name(token: bytes) -> str:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
    return token.hex()


def _mapped(path: str, size: int) -> memoryview | None:
    """The sealed file, mapped and touched; None if it has another size or cannot be mapped.

    Raises FileNotFoundError.
    """
    try:
        with io.FileIO(path) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            view = mapping.read_only(file.fileno(), size)
            parts.touch(file.fileno())
            return view
    except FileNotFoundError:
        raise
    except OSError:
        return None
