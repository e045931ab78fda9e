"""What tests of shared memberships have in common: a folder for each "host", and what to wait for.

Processes with different folders of shared memory know nothing of each other, as on two hosts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import dstore
from dstore.shm import clean
from tests.integration.owners import files, until

LEASE = 0.5
"""Seconds. Most tests wait for the end of one."""
LONG_LEASE = 60.0
"""Seconds: while a test runs no lease lapses by itself."""


@contextlib.contextmanager
def host_folder() -> Iterator[str]:
    """A folder for the shared memory of one host; no owner may leave anything there."""
    folder = Path(os.environ["DSTORE_SHM"]) / f"host-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o700)
    try:
        yield str(folder)
        clean(str(folder))  # what killed processes have left; it is removed in the background
        until(lambda: files(folder) == [], "a folder without files")
    finally:
        for place, _, names in os.walk(folder, topdown=False):
            for name in names:
                os.unlink(os.path.join(place, name))
            os.rmdir(place)


def membership(node: dstore.Node) -> str:
    """Which membership the Node has: "shared", "private" or "none".

    It asks Global for something, since an idle Node looks for nothing.
    """
    with contextlib.suppress(dstore.GlobalUnavailable):
        node.get(f"nothing {os.urandom(4).hex()}", None)
    return str(node.stats()["membership"])


def wait_until(node: dstore.Node, wanted: str, owner: str = "") -> None:
    """Wait until the Node's membership is ``wanted``, and that of an owner with this name."""

    def is_so() -> bool:
        return membership(node) == wanted and owner in str(node.stats()["owner"])

    until(is_so, f"a membership that is {wanted}, not {node.stats()['membership']}")


def gets(node: dstore.Node) -> int:
    """How many keys Global was asked for."""
    return int(node.global_stats()["gets"])


def host_hits(node: dstore.Node) -> int:
    return int(node.stats()["host_hits"])


def is_idle(node: dstore.Node) -> bool:
    """Whether nothing of a Node wakes up by itself, nor has a connection to Global."""
    local = node._local
    return local is not None and (
        not local._thread.started or local.host.asleep_until == float("inf")
    )
