"""Ctrl-C and SIGTERM end a run.

An exception that a signal raises is lost if it comes while a finalizer runs, and those of peers run
at any time. The signal is therefore noted, and the note is checked between blocks.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

_asked = False


def install() -> None:
    """Handle the signals, except a Ctrl-C that the shell ignores. Call it in the main thread."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    report = sys.unraisablehook

    def report_others(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            report(lost)

    sys.unraisablehook = report_others


def check() -> None:
    """Raise KeyboardInterrupt if the run is to end."""
    if _asked:
        raise KeyboardInterrupt


def _interrupt(_: int, __: FrameType | None) -> None:
    global _asked
    _asked = True
    raise KeyboardInterrupt
