"""POSIX record locks, by which processes see that another one is alive.

Such a lock ends with its process, however that ends, and a forked child does not inherit it. (A
lock of ``flock`` would live on in the child.) There are two traps:

- These locks exclude processes, not threads. So threads of one process exclude each other with
  ``locks.process_lock``, and look at what this process has locked before they try a file lock.
- When a process closes *any* descriptor of a file, all its locks on that file are gone. So a file
  that is locked here is opened nowhere else in this process: ``folder.entered`` knows the lock
  files of the folders that were entered, and each folder knows the partial files that are written.
"""

from __future__ import annotations

import errno
import fcntl
import io

from dstore.runtime import native

process_lock = native.RLock()
"""Guards the folders that this process has entered and their partial files.

The thread that has it may take it again: a destructor or a signal handler that runs in between may
close things. Always use it as ``locks.process_lock``, since a forked child has another one.
"""


@native.in_forked_child
def _after_fork_in_child() -> None:
    global process_lock
    process_lock = native.RLock()


def try_shared(file: io.FileIO) -> bool:
    """Take the shared lock. Returns False if another process has it exclusively."""
    return _try(file, fcntl.LOCK_SH)


def try_exclusive(file: io.FileIO | int) -> bool:
    """Take the lock exclusively. Returns False if another process has it."""
    return _try(file, fcntl.LOCK_EX)


def release(file: io.FileIO | int) -> None:
    fcntl.lockf(file, fcntl.LOCK_UN)


def _try(file: io.FileIO | int, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
