"""The folder that has all shared memory: a setting, else ``$DSTORE_SHM``, else ``/dev/shm``."""

from __future__ import annotations

import errno
import os
from functools import lru_cache

from dstore.runtime.logs import INFO, WARNING, Log
from dstore.runtime.native import signals_blocked
from dstore.shm import directory, folder, mapping
from dstore.shm.directory import Unsafe, Unusable

log = Log("dstore.shm")

ROOT_VARIABLE = "DSTORE_SHM"
ROOT_DEFAULT = "/dev/shm"
NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}
"""Errors of a path at which there is no folder that this process may use."""
LOGGED_MAX = 100
"""Different messages that are remembered, so that each is logged once."""
AVAILABLE = hasattr(os, "posix_fallocate") and mapping.AVAILABLE
"""Whether this system has what shared memory needs. macOS cannot reserve a file in full."""


def chosen(root: str | None) -> str | None:
    """Return the root as an absolute path, or None if shared memory is off or unavailable."""
    given = os.environ.get(ROOT_VARIABLE) if root is None else root
    if given == "":
        return None
    if not AVAILABLE or (given is None and not os.path.isdir(ROOT_DEFAULT)):
        log_once(INFO, "shared memory is not available on this system")
        return None
    path = os.path.abspath(given or ROOT_DEFAULT)
    if not os.path.isdir(path):
        log_once(WARNING, f"no shared memory: {path} is not a folder")
        return None
    return path


def check_root(root: str | None = None) -> None:
    """Raise ValueError if the folder that ``root``, or else $DSTORE_SHM, names cannot be used.

    It must exist, and other users must not be able to replace what is in it. For the default folder
    there is only a warning, and no shared memory.
    """
    given = os.environ.get(ROOT_VARIABLE) if root is None else root
    if not given or not AVAILABLE:
        return
    try:
        # Ctrl-C must not come between the opening of a folder and the record that closes it.
        with signals_blocked():
            directory.walk(os.path.abspath(given))
    except (Unsafe, OSError) as error:
        setting = f"${ROOT_VARIABLE}" if root is None else "shm"
        if isinstance(error, Unsafe):
            raise ValueError(f"{setting} is {given}, which is not safe: {error}") from None
        if error.errno not in NO_FOLDER:
            return  # for example, no descriptor is left: what needs the folder reports that
        raise ValueError(
            f"{setting} is {given}, which is not a folder that can be used ({error.strerror}); "
            'create it, name another, or give "" to share no memory'
        ) from None


def clean(root: str | None = None) -> None:
    """Remove folders of this user that no process uses, as killed processes leave them.

    When this returns, no process can enter them; their files are removed in the background.
    """
    path = chosen(root)
    if path is None:
        return
    try:
        folder.clean(path)
    except (OSError, Unusable) as error:
        log_once(WARNING, f"unused folders in shared memory cannot be removed: {error}")


@lru_cache(LOGGED_MAX)
def log_once(level: int, message: str) -> None:
    log.log(level, "%s", message)
