"""What a person sees of the demo: lines and tables, and on a terminal what is going on now."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from dstore.quoting import visible


@contextmanager
def phase(title: str) -> Iterator[list[str]]:
    """Show that a phase is going on, and then the line that the body puts into the list."""
    result: list[str] = []
    start = time.monotonic()
    with _spinner(title):
        yield result
    say(f"{result[0]} ({time.monotonic() - start:.1f} s)")


def _spinner(title: str) -> AbstractContextManager[object]:
    """A moving sign on a terminal; nothing in a pipe, or where rich is not installed."""
    if not sys.stdout.isatty():
        return nullcontext()
    try:
        from rich.console import Console
    except ImportError:
        return nullcontext()
    return Console(highlight=False).status(title)


def say(line: str) -> None:
    """Print a line; on a terminal it is broken between words."""
    line = visible(line)
    if sys.stdout.isatty():
        line = textwrap.fill(line, shutil.get_terminal_size().columns, break_on_hyphens=False)
    print(line, flush=True)


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose cells are numbers, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    say("")
    say(title)
    for row in (headings, ["-" * width for width in widths], *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    say("")
