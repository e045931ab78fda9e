"""A Node of members that are processes, over a real PostgreSQL: one is killed, one is stopped."""

from __future__ import annotations

import signal

import pytest

import dstore
from tests.integration.processes import GlobalProcess
from tests.integration.test_cluster_processes import KEYS, Start, serves_all, share, until
from tests.integration.test_cluster_processes import start as start
from tests.integration.test_cluster_processes import url as url

PATIENCE = 30


@pytest.mark.long
def test_a_global_without_the_database_at_the_address_of_a_killed_member(start: Start) -> None:
    """It takes no write of a Node that knows the cluster, and answers no read."""
    one = serves_all(start())
    with dstore.Node(one.address, timeout=PATIENCE) as node:
        assert node.set_many(dict.fromkeys(KEYS, 1)) == []
        one.kill()
        with GlobalProcess(one.address) as alone, dstore.Node(alone.address) as newcomer:
            for call in (
                lambda: node.set("new", 1),
                lambda: node.get("another", None),
                lambda: node.delete_many(KEYS),
                lambda: list(node.keys()),
            ):
                with pytest.raises(dstore.WrongServer, match="a Global by itself"):
                    call()
            assert newcomer.global_stats()["keys"] == 0
            assert newcomer.get(KEYS[0], None) is None, "one that knows no cluster takes it"
        one.start()
        serves_all(one)
        until(lambda: _is_back(node))
        assert node.get_many([*KEYS, "new"]) == dict.fromkeys(KEYS, 1)


def _is_back(node: dstore.Node) -> bool:
    try:
        return bool(node.get(KEYS[0]) == 1)
    except dstore.WrongServer:
        return False


@pytest.mark.long
def test_a_node_goes_on_when_members_are_killed_and_stopped(start: Start) -> None:
    one = serves_all(start())
    two = start()
    share(one, two)
    addresses = f"{one.address},{two.address}"
    with (
        dstore.Node(addresses, timeout=PATIENCE) as node,
        dstore.Node(addresses, timeout=PATIENCE) as writer,
        node.watch() as watch,
    ):
        assert writer.set_many(dict.fromkeys(KEYS, 1)) == []
        assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
        one.kill()
        assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
        with dstore.Node(addresses, timeout=PATIENCE) as fresh:
            assert fresh.get_many(KEYS) == dict.fromkeys(KEYS, 1)
        assert len(writer.delete_many(KEYS[:50])) == 50
        assert node.get_many(KEYS) == dict.fromkeys(KEYS[50:], 1)
        assert list(node.keys()) == sorted(KEYS[50:])
        seen: set[object] = set()
        while not seen >= set(KEYS[:50]):
            event = watch.take(PATIENCE)
            assert event is not None
            seen.update(KEYS if event.resync else [event.key])
        three = start()
        share(three, two)
        assert node.set_many(dict.fromkeys(KEYS, 2)) == KEYS[50:]
        two.signal(signal.SIGSTOP)
        try:
            with dstore.Node(f"{two.address},{three.address}", timeout=PATIENCE) as fresh:
                found = fresh.get_many(KEYS)
                assert found == {**dict.fromkeys(KEYS[:50], 2), **dict.fromkeys(KEYS[50:], 1)}
                fresh.set_many(dict.fromkeys(KEYS, 3), replace=True)
        finally:
            two.process.send_signal(signal.SIGCONT)
        assert node.get_many(KEYS) == dict.fromkeys(KEYS, 3)
        assert [node.get(key) for key in KEYS] == [3] * len(KEYS)
