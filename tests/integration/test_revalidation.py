"""What caches had before a restart of a durable Global is not sent again."""

from __future__ import annotations

from pathlib import Path

import dstore
from tests.integration.owners import HostProcess, until
from tests.integration.sharing import gets, host_folder, membership
from tests.integration.test_durable import Durable

KEYS = 1_000
VALUES = {f"k{number}": f"value {number}" if number % 2 else number for number in range(KEYS)}
LARGE = bytes(1 << 20)


def revalidated(node: dstore.Node) -> int:
    """How many values Global has found unchanged in this life."""
    return int(node.global_stats()["revalidated"])


def test_a_node_keeps_its_cache_over_a_restart(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data")
    with (
        served,
        dstore.Node(served.address) as node,
        dstore.Node(served.address) as writer,
    ):
        writer.set_many(VALUES)
        writer.set_many({"changed": 1, "gone": 1, "large": LARGE})
        wanted = [*VALUES, "changed", "gone", "large"]
        assert len(node.get_many(wanted)) == len(wanted)
        fills = node.stats()["fills"]
        served.start_again()
        until(lambda: node.stats()["revalidated"] == KEYS + 2, "all small values taken back")
        assert node.stats()["fills"] == fills + KEYS + 2
        before = gets(node)
        assert node.get_many(VALUES) == VALUES
        assert gets(node) == before, "no value has been sent again"
        assert node.get("large") == LARGE
        writer.set("changed", 2, replace=True)
        assert writer.delete("gone").confirmed >= 1, "a holder again"
        assert node.get("changed") == 2
        assert node.get("gone", None) is None


def test_a_host_keeps_its_cache_over_a_restart(tmp_path: Path) -> None:
    served = Durable(tmp_path / "data")
    with (
        served,
        host_folder() as here,
        dstore.Node(served.address, host="off", shm="") as outside,
        HostProcess(served.address, here),
        dstore.Node(served.address, host="require", shm=here) as node,
    ):
        outside.set_many(VALUES)
        node.join()
        assert node.get_many(VALUES) == VALUES
        first = node.stats()["epoch"]
        served.start_again()
        until(lambda: revalidated(outside) == 2 * KEYS, "those of the writer and of the host")
        until(lambda: membership(node) == "shared" and node.stats()["epoch"] != first, "a new page")
        before = gets(outside)
        assert node.get_many(VALUES) == VALUES
        assert gets(outside) == before, "no value has been sent again"
        assert outside.delete("k0").confirmed >= 1, "the host is a holder again"
        assert node.get("k0", None) is None
