"""A progress bar for a large value: on a terminal, and only if the transfer takes a while.

It goes to standard error, so that standard output has nothing but the value, and disappears at the
end. The thread that moves the value draws it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dstore.client.files import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

SHOW_AFTER = 0.5
"""Seconds before a bar appears."""
DRAW_EVERY = 0.1
"""Seconds between two updates of the bar."""
BAR_MAX, BAR_MIN = 30, 5
"""Columns of the bar itself."""
WIDEST = {"done": 16, "what": 8, "speed": 11, "left": 9}
"""Columns that the other parts may take; a narrow window shows the first ones."""


@contextlib.contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress | None]:
    """Yield the ``progress`` for a Node: None without a terminal, without rich, and with ``quiet``.

    The bar is removed when the block ends.
    """
    if quiet or not sys.stderr.isatty() or find_spec("rich") is None:  # rich: the extra "cli"
        yield None
        return
    bar = Bar()
    try:
        yield bar.update
    finally:
        bar.stop()


class Bar:
    """One bar. It starts again when the Node does something else, such as sending after reading."""

    def __init__(self) -> None:
        self._draw_at = time.monotonic() + SHOW_AFTER
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._done = 0

    def update(self, what: str, done: int, total: int) -> None:
        """Show how much is done, if the next update is due."""
        again = what != self._what or done < self._done
        self._what, self._done = what, done
        if again and self._rich is not None and self._task is not None:
            self._rich.reset(self._task, total=total, description=what)
        elif time.monotonic() < self._draw_at:
            return
        with contextlib.suppress(OSError):  # a terminal that has gone must not end the transfer
            if self._rich is None:
                self._rich = _new_bar()
                self._rich.start()
            if self._task is None:
                self._task = self._rich.add_task(what, total=total)
            self._rich.update(self._task, completed=done)
            self._rich.refresh()
        self._draw_at = time.monotonic() + DRAW_EVERY

    def stop(self) -> None:
        """Remove the bar."""
        if self._rich is not None:
            with contextlib.suppress(OSError):
                self._rich.stop()


def parts_that_fit(columns: int) -> dict[str, int]:
    """Return the parts of a bar for which a window of this width has room, with their widths.

    The first part is always there. The bar itself takes what is left.
    """
    shown: dict[str, int] = {}
    for name, width in WIDEST.items():
        if shown and width > columns:
            break
        shown[name] = width
        columns -= width + 1  # a blank follows
    if columns >= BAR_MIN:
        shown["bar"] = min(columns, BAR_MAX)
    return shown


def _new_bar() -> RichProgress:
    """Create a bar. rich is imported here, so that commands without a bar start quickly."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    shown = parts_that_fit(console.width)
    parts: dict[str, ProgressColumn] = {
        "what": progress.TextColumn("{task.description}"),
        "bar": progress.BarColumn(shown.get("bar")),
        "done": progress.DownloadColumn(),
        "speed": progress.TransferSpeedColumn(),
        "left": progress.TimeRemainingColumn(),
    }
    return progress.Progress(
        *(column for name, column in parts.items() if name in shown),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
