"""Ends a process with the one that started it: ``python -m tests.faults.tether PID ARGUMENTS``.

It runs ``dstore ARGUMENTS`` as a child of the process PID. Linux kills it when that process ends,
even if it is stopped or its parent was killed.
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


if __name__ == "__main__":
    tether()
    if os.getppid() != int(sys.argv[1]):  # it has ended before
        sys.exit(1)
    from dstore import cli

    sys.exit(cli.main(sys.argv[2:]))
