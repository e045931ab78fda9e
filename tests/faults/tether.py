"""Ends a process with the one that has started it.

Linux kills it when that process ends, even if it is stopped, or its parent was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def tether() -> None:
    """Have this process killed when the thread that has started it ends."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL))


def tether_to(parent: int) -> None:
    """Do the same, and exit if the process ``parent``, which has started this, has ended before."""
    tether()
    if os.getppid() != parent:
        sys.exit(1)
