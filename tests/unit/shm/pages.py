"""Pages of host memberships for the tests, and a root for them on a tmpfs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from dstore.runtime import clock
from dstore.shm import hosts, page
from dstore.shm.ownership import MakeTable, Ownership
from dstore.shm.page import Identity, OwnedPage
from tests.unit.shm.children import Child, files

TCP = "tcp://127.0.0.1:50051"
TCP6 = "tcp://[::1]:50051"
IPC = "ipc:///run/dstore.sock"
EPOCH = 0xFEDC_BA98_7654_3210
BUCKETS = 1024
LEASE = 5.0


def identity(**changes: Any) -> Identity:
    plain = Identity(
        epoch=EPOCH,
        session=(1 << 63) - 1,
        lease=LEASE,
        value_limit=1 << 31,
        large_from=1 << 20,
        publisher="tcp://*:50052",
        endpoint="",
        owner="global, process 1",
        table="",
        hash_key=bytes(range(16)),
        buckets=BUCKETS,
        keyed=False,
        cluster=b"",
    )
    return plain._replace(**changes)


def lease_end(seconds: float = LEASE / 2) -> int:
    return page.now_ns() + int(seconds * 1e9)


@pytest.fixture(name="root")
def _root() -> Iterator[Path]:
    """A root on the tmpfs of the tests, in which nothing may be left."""
    root = Path(tempfile.mkdtemp(dir=os.environ["DSTORE_SHM"]))
    yield root
    left = files(root)
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    root.rmdir()
    assert left == []


@contextlib.contextmanager
def owned(root: Path, *addresses: str, owner: str = "a test") -> Iterator[Ownership]:
    own = Ownership.take(str(root), addresses or [TCP], owner)
    try:
        yield own
    finally:
        own.close()


@contextlib.contextmanager
def published(
    root: Path, *addresses: str, table: MakeTable | None = None, **changes: Any
) -> Iterator[OwnedPage]:
    with owned(root, *addresses) as own:
        yield own.publish(identity(**changes), table)


def folder(root: Path) -> Path:
    return root / f"dstore-{os.geteuid()}" / "hosts"


def page_path(root: Path, address: str = TCP) -> Path:
    return folder(root) / f"{hosts.name_of(address)}.page"


class Owner(Child):
    """A process that owns these addresses until it is told to close, or killed."""

    def __init__(
        self,
        root: Path,
        *addresses: str,
        table: MakeTable | None = None,
        **changes: Any,
    ) -> None:
        def body(pipe: Connection) -> None:
            with published(root, *addresses, table=table, **changes) as own:
                own.lease[0] = lease_end()
                pipe.send(clock.now())
                pipe.recv()

        super().__init__(body)
        assert self.hear()
