"""How a command and the Globals that use a key folder meet: one file for each running Global.

A Global has a file ``running/ID`` in the folder and holds a lock of ``flock`` on it. The lock ends
with its process, so that the file of a killed Global is recognised, and removed. The file says
which generation of the folder the Global has applied, and which clients it has seen.

A report is a new file that is locked first and then renamed over the former one. So a reader finds
all of one report. It opens the file and tries the lock: if it gets the lock, the file is that of a
Global that has ended, or one that was replaced just now; then it looks again.

A Global calls :meth:`Running.open` *before* it reads the folder for the first time. From then on
each command that changes the folder waits for it, and what was changed before, it reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from dstore import checks
from dstore.access import files
from dstore.access.files import PrivateFolder, cannot
from dstore.access.keys import RUNNING
from dstore.errors import KeyFolderError
from dstore.quoting import quoted
from dstore.runtime import clock, native

GLOBALS_MAX = 64
"""Running Globals that may use one key folder."""
REPORT_BYTES_MAX = 1 << 20
"""Bytes of what one Global reports."""
POLL_PAUSE = 0.02
"""Seconds between two looks at what Globals have applied."""
NOTHING = -1
"""The generation that a Global reports which has applied none yet."""

_VERSION = 1
_ID = re.compile("[0-9a-f]{32}")
_LOOKS = 100
"""Looks at a file that is replaced each time."""


class Seen(NamedTuple):
    """What a Global knows about a client: its open sessions, and when it was last heard from.

    ``last_seen`` is in seconds since 1970; None if it was never seen.
    """

    last_seen: float | None
    sessions: int


class Status(NamedTuple):
    """What a running Global has reported last: the process, the generation, and the clients."""

    process: int
    generation: int
    clients: Mapping[str, Seen]


class Applied(NamedTuple):
    """Running Globals: those that have applied a generation, and those that have not yet."""

    confirmed: list[Status]
    missing: list[Status]


class Running:
    """A running Global's file in a key folder, from :meth:`open` until :meth:`close`.

    Safe from any thread. In a forked child it does nothing, and the file stays the parent's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._id = os.urandom(16).hex()
        self._file: int | None = None
        self._open = True
        with _fork_lock:
            _running.add(self)

    def __repr__(self) -> str:
        return f"<Running {self._id} in {self._path!r} {'open' if self._open else 'closed'}>"

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Running:
        """Make a file that says that nothing is applied yet; call it before reading the folder.

        Files of Globals that have ended are removed. Raises KeyFolderError, as when the folder
        cannot be written.
        """
        path = os.path.abspath(checks.path("keys", folder))
        made = cls(path)
        try:
            # Under the lock, or another Global would take the unfinished file for a killed one's.
            with files.opened(path) as keys, keys.locked():
                with keys.sub(RUNNING, create=True) as here:
                    _remove_ended(here)
                    count = len(_ids(here))
                if count >= GLOBALS_MAX:
                    raise KeyFolderError(
                        f"{count:,} Globals use the key folder {quoted(path)}, and "
                        f"{GLOBALS_MAX} may; end one"
                    )
                made.report(NOTHING, {})
        except BaseException:
            made.close()
            raise
        return made

    def report(self, generation: int, status: Mapping[str, Seen]) -> None:
        """Replace what the file says: the generation that is applied, and the clients by name.

        It takes some 100 microseconds and does not wait for the disk. Raises KeyFolderError, and
        then the former report stays. Does nothing when closed.
        """
        data = _encoded(generation, status)
        with _fork_lock:
            if self._open:
                try:
                    with files.opened(self._path) as keys, keys.sub(RUNNING) as here:
                        self._replace(here, data)
                except KeyFolderError as error:
                    raise KeyFolderError(
                        f"{error}. A Global says there what it has applied, so that "
                        "`dstore access revoke` can wait for it"
                    ) from None

    def _replace(self, here: PrivateFolder, data: bytes) -> None:
        new = files.unfinished(self._id)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(new, flags, files.FILE_MODE, dir_fd=here.fd)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it has its name
                files.write_all(file, data)
                os.rename(new, self._id, src_dir_fd=here.fd, dst_dir_fd=here.fd)
            except BaseException:
                os.close(file)
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=here.fd)
                raise
        except OSError as error:
            raise cannot(here.path_of(new), error) from None
        former, self._file = self._file, file
        if former is not None:
            os.close(former)

    def close(self) -> None:
        """Remove the file. Idempotent. A file that cannot be removed counts as one of the ended."""
        with _fork_lock:
            _running.discard(self)
            if not self._open:
                return
            self._open = False
            file, self._file = self._file, None
            if file is None:
                return
            try:
                with contextlib.suppress(KeyFolderError, OSError):
                    with files.opened(self._path) as keys, keys.sub(RUNNING) as here:
                        os.unlink(self._id, dir_fd=here.fd)
            finally:
                os.close(file)

    def forked(self) -> None:
        """In a forked child: let go of the lock, which stays the parent's. Idempotent.

        It is called by itself in each child that Python forks.
        """
        self._open = False
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


_fork_lock = native.RLock()
"""Guards all of the above. A fork waits for it: in a child, a lock on a file of which nobody knows
would live on, and with it the Global, for those that look.
"""
_running: set[Running] = set()


def _before_fork() -> None:
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock
    _fork_lock = native.RLock()
    for each in _running:
        each.forked()
    _running.clear()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


# ---- for commands -----------------------------------------------------------------------------


def statuses(folder: str | os.PathLike[str]) -> list[Status]:
    """Return what each running Global has reported last. Raises KeyFolderError."""
    with files.opened(os.path.abspath(checks.path("keys", folder))) as keys:
        if not keys.has(RUNNING):
            return []
        with keys.sub(RUNNING) as here:
            looked = [_look(here, each) for each in _ids(here)]
    return [each for each in looked if each is not None]


def wait_applied(folder: str | os.PathLike[str], generation: int, timeout: float) -> Applied:
    """Wait until every running Global has applied a generation of the folder, or a later one.

    A Global that ends meanwhile is not waited for, and one that starts is. Returns after at most
    ``timeout`` seconds, with those in ``missing`` that have not applied it. Raises KeyFolderError.
    """
    until = clock.now() + timeout
    while True:
        found = statuses(folder)
        missing = [each for each in found if each.generation < generation]
        if not missing or clock.now() >= until:
            return Applied([each for each in found if each not in missing], missing)
        native.sleep(POLL_PAUSE)


def _ids(here: PrivateFolder) -> list[str]:
    return [each for each in here.names() if _ID.fullmatch(each)]


def _remove_ended(here: PrivateFolder) -> None:
    """Remove the files of Globals that have ended; the lock of the key folder is held."""
    with contextlib.suppress(OSError):
        for each in _ids(here):
            if _look(here, each) is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each, dir_fd=here.fd)
        left = {files.unfinished(each) for each in _ids(here)}
        for name in here.names(unfinished=True):
            if name not in left:  # the Global that has it is not running
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here.fd)


def _look(here: PrivateFolder, name: str) -> Status | None:
    """Return the report of a running Global, or None if it has ended."""
    path = here.path_of(name)
    for _ in range(_LOOKS):
        try:
            file = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=here.fd
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot(path, error) from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise KeyFolderError(f"{quoted(path)} is not a regular file; remove it")
            if not files.try_lock(file, fcntl.LOCK_SH, path):
                return _decoded(files.read_whole(file, path, REPORT_BYTES_MAX))
            if _is_linked(file, here, name):
                return None
        except OSError as error:
            raise cannot(path, error) from None
        finally:
            os.close(file)
    raise KeyFolderError(f"{quoted(path)} is replaced again and again; try again")


def _is_linked(file: int, here: PrivateFolder, name: str) -> bool:
    """Whether an open file still has this name, so that no other report has replaced it."""
    try:
        there = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


def _encoded(generation: int, status: Mapping[str, Seen]) -> bytes:
    fields = {
        "dstore_running": _VERSION,
        "process": os.getpid(),
        "generation": generation,
        "clients": {name: [seen.last_seen, seen.sessions] for name, seen in status.items()},
    }
    data = json.dumps(fields).encode("ascii")
    if len(data) > REPORT_BYTES_MAX:
        raise ValueError(f"a report has at most {REPORT_BYTES_MAX:,} bytes, not {len(data):,}")
    return data


def _decoded(data: bytes) -> Status:
    """Return what a report says. Of one by another version of dstore nothing is known."""
    try:
        fields = json.loads(data)
        if fields["dstore_running"] != _VERSION:
            return Status(0, NOTHING, {})
        clients = {
            str(name): Seen(None if last is None else float(last), int(sessions))
            for name, (last, sessions) in fields["clients"].items()
        }
        return Status(int(fields["process"]), int(fields["generation"]), clients)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Status(0, NOTHING, {})
