"""The lines typed in earlier runs of the REPL."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

HISTORY_LINES_MAX = 1000
ROOT = 0
"""The user whose links are followed, since root can read everything in any case."""
FILE_MODE, FOLDER_MODE = 0o600, 0o700
"""Only the owner may read what was typed, since it may be secret."""


class LineHistory:
    """A file of typed lines, which only its owner may read, as well as its folder.

    Each line is appended as it is typed, so that several REPLs may share the file. If something is
    wrong with the file or its folder, the REPL works without it. ``refusal`` is not empty if they
    belong to another user, who could read what is typed or redirect it to another file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.refusal = ""

    def read(self) -> list[str]:
        """Return the lines of earlier runs, oldest first, and shorten a long file."""
        if self._path is None:
            return []
        try:
            self._path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            _narrow_folder(self._path.parent)
            with open(_open(self._path, os.O_RDONLY), "rb") as file:
                lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
            if len(lines) > 2 * HISTORY_LINES_MAX:
                self._rewrite(self._path, lines[-HISTORY_LINES_MAX:])
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        return lines[-HISTORY_LINES_MAX:]

    def add(self, line: str) -> None:
        """Append a line."""
        if self._path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with open(_open(self._path, flags), "ab") as file:
                file.write(line.encode("utf-8", "replace") + b"\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if isinstance(error, NotOurs):
            self.refusal = f"what is typed is not kept: {error.filename} {error.strerror}"
        self._path = None

    @staticmethod
    def _rewrite(path: Path, lines: list[str]) -> None:
        target = path.resolve()  # a link that this user has made stays a link
        fresh = target.with_name(f"{target.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
            with open(descriptor, "wb") as file:
                file.write("\n".join([*lines, ""]).encode("utf-8", "replace"))
            fresh.replace(target)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


class NotOurs(PermissionError):
    """A file or folder of the history, or a link to it, belongs to another user."""


def _narrow_folder(folder: Path) -> None:
    _refuse_links_of_others(folder)
    status = folder.stat()
    _refuse_others(folder, status)
    if stat.S_IMODE(status.st_mode) & ~FOLDER_MODE:
        folder.chmod(FOLDER_MODE)


def _open(path: Path, flags: int) -> int:
    """Open the file and restrict its permissions. Raises OSError, of which NotOurs is one."""
    _refuse_links_of_others(path)
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    try:
        status = os.fstat(descriptor)
        _refuse_others(path, status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if stat.S_IMODE(status.st_mode) & ~FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_links_of_others(path: Path) -> None:
    if path.is_symlink() and path.lstat().st_uid != ROOT:
        _refuse_others(path, path.lstat())


def _refuse_others(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise NotOurs(errno.EACCES, "belongs to another user", str(path))


def history_path() -> Path | None:
    """Return ``$XDG_STATE_HOME/dstore/history``, or the same file under ``~/.local/state``."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        folder = state if state.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # this user has no home
        return None
    return folder / "dstore" / "history"
