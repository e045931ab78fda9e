"""Owners of host memberships as tests see them: their pages, and ``dstore host`` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait

from dstore.config import HOST_BUCKETS
from dstore.core.local.key_hash import KeyHash
from dstore.runtime import clock
from dstore.shm.finding import find
from dstore.shm.page import SharedPage
from dstore.transport.addresses import canonical
from tests.ending import Closing, end, kill
from tests.integration.processes import PATIENCE, ROOT

READY = "Dstore host: the processes of this host share one cache of "


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds. Fails the test if it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.01)


def page_of(root: str | os.PathLike[str] | None, address: str) -> SharedPage | None:
    """The page that processes of this host find; ``root`` None is the default folder."""
    return find(None if root is None else str(root), canonical(address))


def valid_page(root: str | os.PathLike[str] | None, address: str) -> SharedPage:
    """Wait for a page with a valid lease."""
    found: list[SharedPage] = []

    def look() -> bool:
        page = page_of(root, address)
        if page is None:
            return False
        if not is_valid(page):
            page.close()
            return False
        found.append(page)
        return True

    until(look, f"a page of {address}")
    return found[0]


def is_valid(page: SharedPage) -> bool:
    """Whether hits are allowed now."""
    return page.usable() and page.lease[0] > clock.now() * 1e9


def word(page: SharedPage, key: str) -> int:
    """The invalidation word of a key."""
    return page.words[KeyHash(page.identity.hash_key)(key) % HOST_BUCKETS]


def files(root: str | os.PathLike[str]) -> list[str]:
    """The names of all files below a folder."""
    return sorted(name for _, _, names in os.walk(root) for name in names)


class HostProcess(Closing):
    """``dstore host`` as a process; its first line has come unless ``ready`` is False."""

    def __init__(
        self, address: str, root: str, *options: str, ready: bool = True, **env: str
    ) -> None:
        command = [sys.executable, "-m", "dstore", "host", "--address", address, "--shm", root]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                kill(self.process)
                raise

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert wait([self.process.stdout.fileno()], PATIENCE), "it is not ready"
        line = self.process.stdout.readline()
        assert line.startswith(READY), (line, self.process.poll())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """End it. Returns its exit code and what it wrote to standard error."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """Wait for its end."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def close(self) -> None:
        """End it in order, even if it is stopped, so that it leaves nothing."""
        end(self.process)
