"""The lines typed in earlier runs of the REPL."""

from __future__ import annotations

import os
from pathlib import Path

HISTORY_LINES_MAX = 1000


class LineHistory:
    """A file with one typed line per line, readable by its owner alone.

    Each line is appended as it is typed, so that several REPLs may share the file. Whatever is
    wrong with the file or its folder, the REPL works without it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> list[str]:
        """The lines of earlier runs, oldest first; shortens the file if it has grown long."""
        if self._path is None:
            return []
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = self._path.read_text("utf-8", errors="replace").split("\n")[:-1]
            if len(lines) > 2 * HISTORY_LINES_MAX:
                self._rewrite(lines[-HISTORY_LINES_MAX:])
        except OSError:
            return []
        return lines[-HISTORY_LINES_MAX:]

    def add(self, line: str) -> None:
        """Append a line."""
        if self._path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with open(os.open(self._path, flags, 0o600), "ab") as file:
                file.write(line.encode("utf-8", "replace") + b"\n")
        except OSError:
            self._path = None

    def _rewrite(self, lines: list[str]) -> None:
        assert self._path is not None
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write("\n".join([*lines, ""]).encode("utf-8", "replace"))
        fresh.replace(self._path)


def history_path() -> Path | None:
    """``$XDG_STATE_HOME/dstore/history``, or the same under ``~/.local/state``."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        folder = state if state.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # this user has no home
        return None
    return folder / "dstore" / "history"
