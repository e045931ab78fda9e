"""The large values of one epoch, as the processes of a host share them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable

from dstore.runtime.background import janitor
from dstore.runtime.logs import INFO, WARNING, Log
from dstore.runtime.rate_limited_log import RateLimitedLog
from dstore.shm import eviction, folder, locks, mapping, parts, pieces, place
from dstore.shm.folder import COPIES, OWN, Folder
from dstore.shm.locks import held
from dstore.shm.parts import PART, NoRoom, Writer
from dstore.shm.place import Unsafe, Unusable

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
COMPLAINTS_EVERY = 60.0
"""Least seconds between two lines of one kind in the log: what is wrong with a folder stays so."""
ENTER_EVERY = 1.0
"""Seconds until the next try to enter a folder again that could not be entered."""
LOST = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
"""What the system says when the folder is not there any more, or is none."""
NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}
"""What the system says of a path at which there is no folder that this process may use."""
SAID_MAX = 100
"""The number of different things that are said once."""
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
    caller's, but nothing of a parent process. When somebody has removed or replaced the folder,
    it is entered again with the next :meth:`begin`.

    Files are trusted to stay as they are, but not their sizes: what is shorter than it was is not
    found, and not read. But who has mapped a file that another process then cuts short is ended by
    SIGBUS when it touches what is missing; the system has no other answer. So Global reads.
    """

    def __init__(self, root: str, epoch: int, entered: Folder, limit: int) -> None:
        self.limit = limit
        self.path = entered.path
        self._root = root
        self._epoch = epoch
        self._entered: Folder | None = entered
        self._enter_at = float("-inf")
        self._rate_limited_log = RateLimitedLog(log, COMPLAINTS_EVERY)
        self._full_until = 0.0
        self._spare = 0  # what may be added before anybody looks at the limit again

    def __repr__(self) -> str:
        folder = self._folder
        state = f"open {folder!r}" if folder is not None else f"closed {self.path}"
        return f"<HostMemory {state} limit={self.limit}>"

    @property
    def _folder(self) -> Folder | None:
        """The folder that this process has entered; held open as long as it is in use here."""
        entered = self._entered
        return entered if entered is not None and entered.alive else None

    def find(self, token: bytes, size: int) -> memoryview | None:
        """The value, read-only, if it is here in full and has ``size`` bytes."""
        name, folder = _name(token), self._folder
        if folder is None:
            return None
        # Global may move it from the copies to its own between two looks.
        for where in (_own(name), _copy(name), _own(name)):
            with contextlib.suppress(FileNotFoundError):
                return _mapped(folder, where, size)
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
            folder, writer = self._claimed(name, size, own)
            if writer is None:
                if self._unreadable(folder, token, name, size, own):
                    raise NoRoom("it is there, but has another size or cannot be mapped")
                return None
            try:
                self._reserve(folder, writer, _copy(name) + PART, own)
            except BaseException:
                writer.abandon()
                raise
            return writer
        except OSError as error:
            raise NoRoom(f"{size:,} bytes find no room: {error}") from error

    def _claimed(self, name: str, size: int, own: bool) -> tuple[Folder, Writer | None]:
        folder = self._folder
        if folder is None:
            raise NoRoom("the shared memory is closed")
        try:
            return folder, self._claim(folder, name, size, own)
        except OSError as error:
            if error.errno not in LOST or (again := self._entered_again(folder)) is None:
                raise
        return again, self._claim(again, name, size, own)

    def _claim(self, folder: Folder, name: str, size: int, own: bool) -> Writer | None:
        final = _own(name) if own else _copy(name)
        with held.lock:
            if folder is not self._folder:
                raise NoRoom("the shared memory is closed")
            part = parts.claim(folder, final + PART, self)
            if part is None:
                return None
            make_room = self._make_own_room if own else self._make_room
            writer = Writer(part, final, size, make_room)
            # It may have been sealed just before the lock was ours.
            if self._sealed(folder, name, own):
                writer.abandon()
                return None
            return writer

    def _entered_again(self, lost: Folder) -> Folder | None:
        """The folder to go on in, since something is wrong with this one. None if there is none.

        What is being written into the lost one is abandoned, and begun afresh by who needs it.
        """
        with held.lock:
            now = time.monotonic()
            if self._folder is not lost or now < self._enter_at:
                return self._folder if self._folder is not lost else None
            try:
                entered = folder.enter(self._root, self._epoch, tries=1)
            except (OSError, Unusable) as error:
                self._enter_at = now + ENTER_EVERY
                self._rate_limited_log.warning(
                    "%s cannot be used any more: %s", self.path, str(error)
                )
                return None
            self._entered = entered
            self._abandon(lost)
            folder.leave(lost)
        self._rate_limited_log.warning(
            "%s was removed by somebody; a new one was created", self.path
        )
        return entered

    def _sealed(self, folder: Folder, name: str, own: bool) -> bool:
        """Whether it is here in full: for a Node anywhere, for Global among its own."""
        # In this order, since a file moves from the copies to Global's own, and never back.
        places = (_own(name),) if own else (_copy(name), _own(name))
        return any(_there(folder, each) is not None for each in places)

    def _unreadable(self, folder: Folder, token: bytes, name: str, size: int, own: bool) -> bool:
        """Whether it is here and yet :meth:`find` does not find it, now or ever."""
        # It may be sealed, or evicted, at any moment: it is missed only by who looks in between.
        return (
            self._sealed(folder, name, own)
            and self.find(token, size) is None
            and self._sealed(folder, name, own)
        )

    def _reserve(self, folder: Folder, writer: Writer, mine: str, own: bool) -> None:
        """Reserve all the memory, of Global's own the beginning; then keep the limit.

        In this order: of two who do this at the same time, at least one sees the other's file.
        Raises NoRoom.
        """
        now = min(writer.size, parts.RESERVE_BYTES) if own else writer.size
        needed = self._promised(folder)
        free = eviction.free(folder.here)
        make_room = self._make_own_room if own else self._make_room
        if free < needed and not make_room(needed, now):
            raise NoRoom(f"{writer.size:,} bytes do not fit into the file system")
        writer.reserve(now)
        if not own:
            writer.view()  # now, since this may fail as well, and sealing is not to
            self._keep_limit(folder, mine, writer.size)

    @staticmethod
    def _promised(folder: Folder) -> int:
        """How much of what this process is writing is not reserved yet, in bytes."""
        with held.lock:
            refs = [part.writer for part in folder.parts.values()]
        writers = [writer for ref in refs if ref is not None and (writer := ref()) is not None]
        return sum(writer.size - writer.reserved for writer in writers)

    def _make_room(self, needed: int, now: int, stall_timeout: float | None = None) -> bool:
        folder = self._folder
        return folder is not None and eviction.make_room(folder, needed, now, stall_timeout)

    def _make_own_room(self, needed: int, now: int) -> bool:
        """The same for Global, which must not stand still: it waits for nobody for long, and
        does not look again and again where there is no room.
        """
        if time.monotonic() < self._full_until:
            return False
        if self._make_room(needed, now, OWN_PATIENCE):
            return True
        self._full_until = time.monotonic() + FULL_SECONDS
        return False

    def _keep_limit(self, folder: Folder, mine: str, size: int) -> None:
        with held.lock:
            self._spare -= size
            if self._spare >= 0:
                return
        left = eviction.keep_limit(folder, mine, size, self.limit)
        if left is None:
            raise NoRoom(f"others are writing so much that {size:,} bytes exceed the limit")
        self._spare = left // SHARES

    def progress(self, token: bytes) -> int | None:
        """A number that grows while somebody writes the copy. None if there is none unfinished."""
        name, folder = _name(token), self._folder
        status = None if folder is None else _there(folder, _copy(name) + PART)
        return None if status is None else max(status.st_mtime_ns, status.st_ctime_ns)

    def adopt(self, token: bytes, size: int) -> bool:
        """Make a copy that a Node has written Global's own.

        False if there is no such copy, or it has another size: of two who would adopt the same
        one, the second comes too late.
        """
        name, folder = _name(token), self._folder
        if folder is None:
            return False
        here = folder.here
        try:
            with locks.open_sealed(here, _copy(name)) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
            os.rename(_copy(name), _own(name), src_dir_fd=here.fd, dst_dir_fd=here.fd)
            return True
        except OSError:  # no such copy, or evicted this very moment
            return False

    def read(
        self,
        token: bytes,
        size: int,
        offset: int,
        count: int,
        mapped: memoryview | None,
        take: Callable[[int], memoryview] = pieces.fresh,
    ) -> memoryview | None:
        """A piece of a value of ``size`` bytes, copied. None if the bytes are lost.

        It is read from the file, and where there is none any more, from what is ``mapped`` of it.
        ``take`` gives the memory to read it into.
        """
        name, folder = _name(token), self._folder
        count = max(0, min(count, size - offset))
        places = () if folder is None else (_own(name), _copy(name), _own(name))
        for where in places:
            assert folder is not None
            try:
                with locks.open_sealed(folder.here, where) as file:
                    if os.fstat(file.fileno()).st_size != size:
                        return None
                    piece = take(count)
                    # It may have been cut short just now.
                    whole = os.preadv(file.fileno(), [piece], offset) == count
                    return piece.toreadonly() if whole else None
            except FileNotFoundError:
                continue
            except (OSError, OverflowError):  # no descriptors left, or no such place
                break
        return None if mapped is None else mapping.copied(mapped[offset : offset + count])

    def drop(self, token: bytes) -> None:
        """Remove a copy. Who has it mapped keeps it. That there is none is fine."""
        self._remove(_copy(_name(token)))

    def drop_own(self, token: bytes) -> None:
        """Remove one of Global's own, as :meth:`drop` does."""
        self._remove(_own(_name(token)))

    def _remove(self, name: str) -> None:
        folder = self._folder
        if folder is not None:
            parts.remove(folder.here, name)

    def linked(self, token: bytes, size: int | None = None) -> bool:
        """Whether the value is here in full, so that others can find it.

        With ``size``, one of another size does not count. It stays: if it made way for a good one,
        those who have the damaged one mapped could not tell.
        """
        name, folder = _name(token), self._folder
        if folder is None:
            return False
        # In this order, since a file moves from the copies to Global's own, and never back.
        return any(
            status is not None and size in (None, status.st_size)
            for status in (_there(folder, _copy(name)), _there(folder, _own(name)))
        )

    def touch(self, token: bytes) -> None:
        """Note that the value was used, so that it is evicted later than others."""
        name, folder = _name(token), self._folder
        if folder is not None:
            with contextlib.suppress(OSError):
                parts.touch(_copy(name), folder.here)

    def close(self, *, wait: bool = True) -> None:
        """Leave. The last process to leave an epoch removes its folder. Idempotent.

        What is being written through this memory is abandoned. With ``wait``, whoever closes the
        last memory of a process waits until all that it has removed is gone, which may take a
        while; else that is done in the background, before Python exits.
        """
        with held.lock:
            entered, self._entered = self._entered, None
            if entered is None:
                return
            try:
                self._abandon(entered)
            finally:
                folder.leave(entered)
        if wait and not held.folders:
            janitor.wait()

    def _abandon(self, entered: Folder) -> None:
        for part in list(entered.parts.values()):
            if part.owner is self:
                part.abandon()


def _own(name: str) -> str:
    return f"{OWN}/{name}"


def _copy(name: str) -> str:
    return f"{COPIES}/{name}"


def _there(folder: Folder, name: str) -> os.stat_result | None:
    """What there is with this name, if anything."""
    try:
        return os.stat(name, dir_fd=folder.here.fd, follow_symlinks=False)
    except OSError:
        return None


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
    chosen = _chosen(root)
    if chosen is None:
        return None
    try:
        most = eviction.limit_default(chosen) if limit is None else limit
        entered = folder.enter(chosen, epoch)
    except (OSError, Unusable) as error:
        _say_once(WARNING, f"no shared memory, each process keeps its own copies: {error}")
        return None
    memory = HostMemory(chosen, epoch, entered, most)
    try:
        parts.sweep(entered)
        clean(chosen)
    except BaseException:
        memory.close()
        raise
    return memory


def clean(root: str | None = None) -> None:
    """Remove what processes that were killed have left behind: unused folders of this user.

    Nobody can enter them any more when this returns; their files go in the background.
    """
    chosen = _chosen(root)
    if chosen is None:
        return
    try:
        folder.clean(chosen)
    except (OSError, Unusable) as error:
        _say_once(WARNING, f"what others left in shared memory stays: {error}")


def check_root(root: str | None = None) -> None:
    """Raise ValueError if the folder that ``root``, or else $DSTORE_SHM, names cannot be used.

    It must exist, and other users must not be able to replace what is in it. For the default folder
    there is only a warning, and no shared memory.
    """
    chosen = os.environ.get(ROOT_VARIABLE) if root is None else root
    if not chosen or not AVAILABLE:
        return
    try:
        place.walk(os.path.abspath(chosen))
    except (Unsafe, OSError) as error:
        which = f"${ROOT_VARIABLE}" if root is None else "shm"
        if isinstance(error, Unsafe):
            raise ValueError(f"{which} is {chosen}, which is not safe: {error}") from None
        if error.errno not in NO_FOLDER:
            return  # for example, there are no more descriptors: whatever needs the folder says so
        raise ValueError(
            f"{which} is {chosen}, which is not a folder that can be used ({error.strerror}); "
            'create it, name another, or give "" to share no memory'
        ) from None


def _chosen(root: str | None) -> str | None:
    """The folder to be in, as an absolute path; None if there is none."""
    chosen = os.environ.get(ROOT_VARIABLE) if root is None else root
    if chosen == "":
        return None
    if not AVAILABLE or (chosen is None and not os.path.isdir(ROOT_DEFAULT)):
        _say_once(INFO, "shared memory is not available on this system")
        return None
    path = os.path.abspath(chosen or ROOT_DEFAULT)
    if not os.path.isdir(path):
        _say_once(WARNING, f"no shared memory: {path} is not a folder")
        return None
    return path


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    if message not in _said:
        if len(_said) >= SAID_MAX:
            _said.clear()
        _said.add(message)
        log.log(level, "%s", message)


def _name(token: bytes) -> str:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}")
    return token.hex()


def _mapped(folder: Folder, name: str, size: int) -> memoryview | None:
    """The sealed file, mapped and touched; None if it has another size or cannot be mapped.

    Raises FileNotFoundError.
    """
    try:
        with locks.open_sealed(folder.here, name) as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            view = mapping.read_only(file.fileno(), size)
            with contextlib.suppress(OSError):  # the file system may be read-only by now
                parts.touch(file.fileno())
            return view
    except FileNotFoundError:
        raise
    except OSError:
        return None
