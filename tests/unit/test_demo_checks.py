"""The checks of the demo, on right answers and on wrong ones: each of them can fail."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from dstore import KeyMissing
from dstore.cli.demo.worker import CheckedNode, LoadedFile, WorkerReport, digest_of, fault_of

OLD, NEW = digest_of(b"old"), digest_of(b"new")
DELETED = LoadedFile(0, "d", OLD, "")
REPLACED = LoadedFile(1, "r", OLD, NEW)
UNCHANGED = LoadedFile(2, "u", OLD, None)


@pytest.mark.parametrize("file", [DELETED, REPLACED, UNCHANGED])
def test_old_content_is_right_until_the_change_is_confirmed(file: LoadedFile) -> None:
    assert fault_of(file, OLD, confirmed=False) == ""
    assert "stale" in fault_of(file, OLD, confirmed=True)


@pytest.mark.parametrize("confirmed", [True, False])
def test_the_result_of_a_change_is_right_before_and_after_it_is_confirmed(confirmed: bool) -> None:
    assert fault_of(DELETED, "", confirmed=confirmed) == ""
    assert fault_of(REPLACED, NEW, confirmed=confirmed) == ""


@pytest.mark.parametrize(
    ("file", "digest", "wrong"),
    [
        (UNCHANGED, "", "nothing"),
        (UNCHANGED, NEW, "never written"),
        (DELETED, NEW, "never written"),
        (REPLACED, "", "nothing"),
        (DELETED, "no bytes", "never written"),
    ],
)
def test_what_was_never_written_is_wrong(file: LoadedFile, digest: str, wrong: str) -> None:
    for confirmed in (True, False):
        assert wrong in fault_of(file, digest, confirmed=confirmed)


class Found(NamedTuple):
    value: object
    from_local: bool


class FakeNode:
    """A Node with the given content; a missing key raises KeyMissing."""

    def __init__(self, **content: object) -> None:
        self.content: dict[Any, object] = content

    def lookup(self, key: Any) -> Found:
        if key not in self.content:
            raise KeyMissing(key)
        return Found(self.content[key], from_local=True)


def test_a_stale_node_is_found() -> None:
    report, confirmed = WorkerReport(7), bytearray(3)
    store = FakeNode(d=b"old", r=b"old", u=b"old")
    node = CheckedNode(store, confirmed, report)  # type: ignore[arg-type]
    for file in (DELETED, REPLACED, UNCHANGED):
        node.read(file)
    del store.content["d"]
    confirmed[0] = confirmed[1] = 1
    node.read(DELETED)
    assert (report.fault, report.hits, report.misses, report.proofs) == ("", 3, 1, 1)
    node.read(REPLACED)
    assert report.fault.startswith("worker 7 read 'r' and got the old content")
    assert report.proofs == 2


def test_each_new_object_is_hashed() -> None:
    report = WorkerReport(1)
    store = FakeNode(u=b"old")
    node = CheckedNode(store, bytearray(3), report)  # type: ignore[arg-type]
    node.read(UNCHANGED)
    store.content["u"] = b"olds"
    node.read(UNCHANGED)
    assert report.fault == "worker 1 read 'u' and got a value that was never written there"


def test_a_value_that_is_not_bytes_is_wrong() -> None:
    report = WorkerReport(1)
    CheckedNode(FakeNode(u="old"), bytearray(3), report).read(UNCHANGED)  # type: ignore[arg-type]
    assert report.fault
