"""Nodes of several Globals: routing, moves of partitions, many keys, watches, life."""

from __future__ import annotations

import io
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import cli, config
from dstore.client.cluster import members, routing
from dstore.client.commands import Command
from dstore.protocol.partitions import partition_of
from dstore.runtime import clock
from dstore.runtime import greenlets as green
from dstore.testing import running_global
from tests.integration.members import CLUSTER, Cluster, Member, cluster_of, key_in
from tests.integration.owners import until

KEYS = [f"key-{n:03}" for n in range(60)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "UPKEEP_EVERY", 0.1)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of(3) as made:
        yield made


@pytest.fixture(params=["all addresses", "one address"])
def node(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[dstore.Node]:
    address = cluster.address if request.param == "all addresses" else cluster.members[1].address
    with dstore.Node(address) as made:
        yield made


def in_thread(do: Callable[[], Any]) -> Callable[[], Any]:
    """Call a function in a thread. Returns a function that waits for its result."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(do())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(20)
        assert not thread.is_alive(), "it does not end"
        return results[0]

    return result


# ---- each method --------------------------------------------------------------------------------


def test_keys_go_to_their_owners(cluster: Cluster, node: dstore.Node) -> None:
    for key in KEYS:
        node.set(key, key.encode())
    for key in KEYS:
        assert cluster.owner(key).engine.read(key) is not None
    assert [node.get(key) for key in KEYS] == [key.encode() for key in KEYS]
    assert [node.lookup(key).from_local for key in KEYS] == [True] * len(KEYS)
    assert isinstance(node, dstore.Node)
    with pytest.raises(dstore.KeyOccupied):
        node.set(KEYS[0], b"other")
    assert node.delete(KEYS[0]) == (1, 0, 0)
    assert node.get(KEYS[0], "gone") == "gone"
    with pytest.raises(dstore.KeyMissing):
        node.delete(KEYS[0])


def test_many_keys_are_split_and_put_together(cluster: Cluster, node: dstore.Node) -> None:
    assert node.set_many({key: key for key in KEYS}) == []
    assert node.set_many(dict.fromkeys([*KEYS[:5], "new"], "other")) == KEYS[:5]
    with dstore.Node(cluster.address) as other:
        assert other.get_many([*KEYS, "missing"]) == {key: key for key in KEYS}
        assert list(other.get_many(KEYS[::-1])) == KEYS[::-1]
        assert other.stats()["hits"] == len(KEYS)
    assert list(node.delete_many([*KEYS, "missing"])) == KEYS
    assert list(node.keys()) == ["new"]
    assert node.get_many([]) == {}
    assert node.set_many({}) == []
    assert node.delete_many([]) == {}


def test_a_write_of_many_keys_takes_several_messages(cluster: Cluster, node: dstore.Node) -> None:
    values = {f"big-{n}": bytes(30_000) for n in range(120)}
    assert node.set_many(values) == []
    assert node.set_many(values) == list(values)
    assert sum(each.seen.count("Set") for each in cluster.members) >= 6


def test_large_values_and_files(cluster: Cluster, node: dstore.Node, tmp_path: Path) -> None:
    body = os.urandom(200_000)
    (tmp_path / "in").write_bytes(body)
    values = {f"large-{n}": body + bytes([n]) for n in range(4)}
    assert node.set_many({**values, "small": b"s"}) == []
    assert node.get_many([*values, "small"]) == {**values, "small": b"s"}
    address = node.put(body)
    assert node.put_file(tmp_path / "in") == address
    assert cluster.owner(address).engine.read(address) is not None
    node.set_file("file", tmp_path / "in")
    assert node.get_file("file", tmp_path / "out") == ("bytes", len(body))
    assert (tmp_path / "out").read_bytes() == body
    assert bytes(node.get_buffer(node.put(b"small"))) == b"small"


def test_expiry_and_metrics(cluster: Cluster, node: dstore.Node) -> None:
    for key in KEYS:
        node.set(key, 1, ttl=1000)
        node.persist(key)
        assert node.ttl(key) is None
        node.expire(key, 500)
        assert 490 < (node.ttl(key) or 0) <= 500
    assert KEYS[0] in node
    assert "missing" not in node
    found = node.global_stats()
    assert list(found["globals"]) == [each.address for each in cluster.members]
    assert found["keys"] == sum(row["keys"] for row in found["globals"].values()) == len(KEYS)
    here = node.stats()
    assert set(here["globals"]) == {each.address for each in cluster.members}
    assert here["keys"] == sum(row["keys"] for row in here["globals"].values()) == len(KEYS)
    assert here["membership"] == "private"
    assert here["address"] == node.address
    node.join()


def test_metrics_of_a_node_that_has_asked_for_nothing_else(cluster: Cluster) -> None:
    with dstore.Node(cluster.members[0].address) as node:
        assert len(node.global_stats()["globals"]) == 3


def test_keys_are_listed_in_order_and_by_prefix(cluster: Cluster, node: dstore.Node) -> None:
    names: list[Any] = [*(f"a{n}" for n in range(2500)), "é", b"\xff", "b"]
    node.set_many(dict.fromkeys(names, 1))
    assert list(node.keys()) == sorted(names, key=_raw)
    assert list(node.keys("a1")) == sorted(name for name in names if _raw(name)[:2] == b"a1")
    assert list(node.keys("none")) == []


def _raw(name: Any) -> bytes:
    return name if isinstance(name, bytes) else str(name).encode()


# ---- moves --------------------------------------------------------------------------------------


def test_calls_follow_a_partition(cluster: Cluster, node: dstore.Node) -> None:
    one, two, _ = cluster.members
    key = key_in(one.owned())
    node.set(key, "first")
    assert node.get(key) == "first"
    cluster.move([partition_of(key)], one, two)
    assert node.lookup(key).value == "first"
    node.set(key, "second", replace=True)
    assert node.get(key) == "second"
    with dstore.Node(cluster.address) as other:
        assert other.get(key) == "second"
    cluster.move([partition_of(key)], two, one)
    node.delete(key)
    assert node.get(key, None) is None


def test_a_call_waits_while_nobody_has_the_partition(cluster: Cluster, node: dstore.Node) -> None:
    one, two, three = cluster.members
    key = key_in(one.owned())
    node.set(key, "value")
    node.get_many(KEYS)
    rows = one.give_up([partition_of(key)])
    begun = len(one.seen)
    with dstore.Node(cluster.address) as fresh:
        calls = [
            in_thread(lambda: fresh.get(key)),
            in_thread(lambda: fresh.get_many([key, *KEYS])),
            in_thread(lambda: list(fresh.keys(key))),
            in_thread(lambda: fresh.expire(key, 100)),
        ]
        while not {"Get", "Scan", "Expire"} <= set(one.seen[begun:]):
            pass
        cluster.publish(three)  # it says that nobody has it
        two.gain([partition_of(key)], rows)
        cluster.publish(two)
        assert [each() for each in calls] == ["value", {key: "value"}, [key], None]


def test_many_keys_of_which_some_move_in_the_middle(cluster: Cluster) -> None:
    one, two, _ = cluster.members
    with dstore.Node(cluster.address) as node:
        assert node.set_many(dict.fromkeys(KEYS, 1)) == []
        moved = [partition_of(key) for key in KEYS if one.partitions.owns(key)]
        cluster.move(moved, one, two)
        assert node.set_many(dict.fromkeys([*KEYS, "new"], 2)) == KEYS
        with dstore.Node(cluster.address) as other:
            other.join()
            cluster.move(moved, two, one)
            assert other.get_many(KEYS) == dict.fromkeys(KEYS, 1)
            cluster.move(moved, one, two)
            assert set(other.delete_many(KEYS)) == set(KEYS)


def test_a_write_in_several_messages_of_a_node_that_knows_one_address(cluster: Cluster) -> None:
    """Those that the first Global has done are not done again, at the other ones."""
    one, two, three = cluster.members
    for member in (two, three):
        cluster.move(member.owned(), member, one)
    names = [f"n{n}" for n in range(3 * config.KEYS_PER_MESSAGE_MAX)]
    last = partition_of(names[-1])
    with dstore.Node(one.address) as node:
        node.join()
        cluster.move([last], one, two)
        first = [name for name in names if partition_of(name) != last]
        values = dict.fromkeys([*first, *(name for name in names if partition_of(name) == last)], 1)
        assert node.set_many(values) == []
        assert len(node.delete_many(values)) == len(names)


def test_a_read_of_many_keys_of_which_a_node_that_knows_one_address_has_some(
    cluster: Cluster,
) -> None:
    """The cache answers those, then the first Global refuses the others."""
    one = cluster.members[0]
    with dstore.Node(cluster.address) as writer:
        writer.set_many(dict.fromkeys(KEYS, 1))
    mine = [key for key in KEYS if one.partitions.owns(key)]
    assert 0 < len(mine) < len(KEYS)
    with dstore.Node(one.address) as node:
        assert node.get_many(mine) == dict.fromkeys(mine, 1)
        assert node.get_many([*KEYS, "nothing"]) == dict.fromkeys(KEYS, 1)


def test_a_value_that_is_cached_is_a_hit_wherever_its_partition_is(cluster: Cluster) -> None:
    one, two, _ = cluster.members
    key = key_in(one.owned())
    with dstore.Node(cluster.address) as node:
        node.set(key, "value")
        cluster.version += 1  # the Node believes another owner
        wrong = (cluster.version, [two.address], bytes(256))
        two.partitions.map = wrong
        node._members.routes.learn(_map(wrong))  # type: ignore[union-attr]
        asked = len(two.seen)
        assert node.get(key) == "value"
        assert node.get_many([key]) == {key: "value"}
        assert node.lookup(key).from_local
        assert "Get" not in two.seen[asked:]
    cluster.publish()


def _map(found: tuple[int, list[str], bytes]) -> Any:
    from dstore.client.cluster.routing import Map

    return Map(found[0], tuple(found[1]), found[2], CLUSTER)


def test_keys_are_listed_once_while_their_partitions_move(cluster: Cluster) -> None:
    one, two, three = cluster.members
    names = sorted(f"{n:05}" for n in range(5000))
    with dstore.Node(cluster.address) as node:
        node.set_many(dict.fromkeys(names, 1))
        found = []
        for count, key in enumerate(node.keys()):
            found.append(key)
            if count == 100:
                cluster.move(one.owned()[::2], one, two)
            if count == 2000:
                cluster.move(two.owned()[::3], two, three)
            if count == 3000:
                cluster.move(three.owned()[:20], three, one)
        assert found == names


def test_a_wait_follows_its_key(cluster: Cluster, node: dstore.Node) -> None:
    one, two, _ = cluster.members
    key = key_in(one.owned())
    waiting = in_thread(lambda: node.wait(key, 30))
    while "Wait" not in one.seen:
        pass
    cluster.move([partition_of(key)], one, two)
    while "Wait" not in two.seen:
        pass
    with dstore.Node(cluster.address) as other:
        other.set(key, "set")
    assert waiting() == "set"
    with pytest.raises(dstore.WaitTimedOut):
        node.wait("never", 0.05)


# ---- members that do not answer -----------------------------------------------------------------


def test_the_member_and_the_key_that_are_not_reached_are_named() -> None:
    with (
        cluster_of(3, lease=0.1) as cluster,
        dstore.Node(cluster.address, timeout=0.2) as node,
    ):
        one, two, _ = cluster.members
        key, other = key_in(one.owned()), key_in(two.owned())
        node.set(other, 1)
        one.deaf = True
        for call in (
            lambda: node.get(key),
            lambda: node.set(key, 1),  # its lease has ended meanwhile
            lambda: node.get_many([other, key]),
            lambda: node.keys(key).__next__(),
        ):
            with pytest.raises(dstore.GlobalUnavailable, match=one.address) as caught:
                call()
            assert "partitions" in str(caught.value) or repr(key) in str(caught.value)
            assert "its database" in str(caught.value)
        assert node.global_stats()["globals"][one.address]["error"]
        assert node.get(other) == 1
        one.deaf = False


def test_reads_find_the_keys_of_a_member_that_has_died(cluster: Cluster) -> None:
    one, two, _ = cluster.members
    key = key_in(one.owned())
    with dstore.Node(cluster.address) as node, dstore.Node(cluster.address) as writer:
        writer.set(key, "value")
        node.join()
        node.get("other", None)
        one.deaf = True
        rows = {key: one.engine.read(key)}
        two.gain(one.owned(), rows)  # type: ignore[arg-type]
        numbers, one.partitions = one.owned(), type(one.partitions)(1e12)
        assert partition_of(key) in numbers
        cluster.publish(two)
        assert node.get(key) == "value"
        node.set(key, "new", replace=True)
        one.deaf = False


def test_a_write_to_a_silent_member_ends_when_others_have_taken_over(cluster: Cluster) -> None:
    """Its Node asks them, long before the time of the write is up."""
    one, two, three = cluster.members
    key = key_in(one.owned())
    with dstore.Node(cluster.address, timeout=600) as node:
        node.join()
        node.get(key, None)
        one.deaf = True
        one.seen.clear()
        result = in_thread(lambda: node.set(key, 1))
        until(lambda: "Set" in one.seen, "the write has arrived")
        two.gain(one.owned(), {})
        one.partitions = type(one.partitions)(1e12)
        cluster.publish(two, three)
        error = result()
        assert isinstance(error, dstore.OutcomeUnknown) and "taken over" in error.reason
        node.set(key, 2)
        one.deaf = False


def test_a_write_that_was_refused_is_sent_there_again_only_when_that_member_has_answered(
    cluster: Cluster,
) -> None:
    """It may be about to end, and then the outcome would be unknown."""
    one = cluster.members[0]
    key = key_in(one.owned())
    with dstore.Node(cluster.address, timeout=600) as node:
        node.set(key, 1)
        one.do(one.state.hold_writes)
        one.seen.clear()
        result = in_thread(lambda: node.set(key, 2, replace=True))
        until(lambda: one.seen.count("Set") > 1, "the write has come again")
        one.do(lambda: one.state.take_writes(clock.now()))
        assert result() is None
        first = one.seen.index("Set")
        assert "AskMap" in one.seen[first : one.seen.index("Set", first + 1)]
        assert node.get(key) == 2


def test_keys_whose_outcome_is_unknown_are_named(cluster: Cluster) -> None:
    with cluster_of(2, lease=0.2) as short:
        one, two = short.members
        mine, theirs = key_in(one.owned()), key_in(two.owned())
        with dstore.Node(short.address, timeout=0.3) as node:
            node.set_many({mine: 1, theirs: 1})
            one.deaf = True
            with pytest.raises(dstore.OutcomeUnknown) as caught:
                node.delete_many([mine, theirs])
            assert caught.value.keys == [mine]
            assert node.get(theirs, None) is None
            one.deaf = False


def test_a_global_by_itself_is_no_member() -> None:
    with ExitStack() as stack:
        two = [stack.enter_context(running_global(shm=None)) for _ in range(2)]
        addresses = ",".join(each.address for each in two)
        with dstore.Node(addresses) as node, pytest.raises(dstore.WrongServer, match="by itself"):
            node.get("k")


def test_one_seed_of_several_is_enough(cluster: Cluster) -> None:
    one, two, _ = cluster.members
    one.deaf = True
    key = key_in(two.owned())
    with dstore.Node(cluster.address) as node:
        node.set(key, 1)
        assert node.get(key) == 1
    one.deaf = False


def test_a_read_goes_on_if_its_global_leaves_the_cluster_just_now(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has closed the Local after the read had looked it up."""
    with dstore.Node(cluster.address) as node:
        key = key_in(cluster.members[2].owned())
        node.set(key, 1)
        with dstore.Node(cluster.address) as other:
            assert other.get(key) == 1
            several = other._members
            assert several is not None
            gone = several._locals.pop(cluster.members[2].address)
            gone.close()
            other.delete(key)
            node.set(key, 2)
            monkeypatch.setattr(several, "owner_of", lambda _: gone)
            assert other.get(key) == 2


def test_a_local_is_not_closed_while_a_call_pauses_there(cluster: Cluster) -> None:
    with dstore.Node(cluster.members[0].address) as node:
        node.set_many(dict.fromkeys(KEYS))
        several = node._members
        assert several is not None
        taken: list[Any] = []

        def start(state: Any, large: Any, now: float) -> Any:
            several.routes.map, former = routing.NO_MAP, several.routes.map
            several.routes.seeds, seeds = (), several.routes.seeds
            taken.extend(several.take_idle())
            several.routes.map, several.routes.seeds = former, seeds
            return (yield from ())

        command: Command[None] = Command(start)
        green.finish(several._anywhere(command, members.THREAD))
        assert len(taken) == 2, "of three Locals one is in use"
        for each in taken:
            each.close()


def test_a_wait_ends_in_time_while_its_partition_is_refused(cluster: Cluster) -> None:
    """Each refusal is the sign of a Global, so that the timeout of the Node does not end it."""
    one = cluster.members[0]
    key = key_in(one.owned())
    with dstore.Node(cluster.address) as node:
        assert node.get(key, None) is None
        one.give_up([partition_of(key)])
        done = in_thread(lambda: node.wait(key, timeout=0.2))
        assert isinstance(done(), dstore.WaitTimedOut)


# ---- watching -----------------------------------------------------------------------------------


def _until_resyncs(watch: dstore.Watch, count: int) -> None:
    for _ in range(count):
        event = watch.take(10)
        assert event is not None
        assert event.resync


def test_a_watch_has_the_events_of_all_members(cluster: Cluster, node: dstore.Node) -> None:
    node.set_many(dict.fromkeys(KEYS, 1))
    with node.watch("key-") as watch:
        _until_resyncs(watch, 3)
        node.delete_many(KEYS)
        events = {watch.take(10) for _ in KEYS}
        assert events == {dstore.Event(key) for key in KEYS}


def test_a_watch_of_a_node_that_knows_one_address_finds_the_others(cluster: Cluster) -> None:
    one, two, _ = cluster.members
    key = key_in(two.owned())
    with dstore.Node(one.address) as node, dstore.Node(cluster.address) as other:
        seen: list[dstore.Event] = []
        gone = threading.Event()
        ready = threading.Semaphore(0)

        def note(event: dstore.Event) -> None:
            seen.append(event)
            ready.release() if event.resync else gone.set()

        with node.watch(callback=note):
            for _ in cluster.members:
                assert ready.acquire(timeout=10)
            other.set(key, 1)
            other.delete(key)
            assert gone.wait(10)
        assert dstore.Event(key) in seen


def test_a_watch_begins_at_a_member_that_is_added(cluster: Cluster) -> None:
    one, _, _ = cluster.members
    with dstore.Node(cluster.address) as node, node.watch() as watch:
        _until_resyncs(watch, 3)
        new = Member([])
        try:
            cluster.members.append(new)
            key = key_in(one.owned())
            cluster.move([partition_of(key)], one, new)
            _until_resyncs(watch, 2)  # one has a new epoch, and there is another member
            with dstore.Node(cluster.address) as other:
                other.set(key, 1)
                other.delete(key)
            while watch.take(10) != dstore.Event(key):
                pass
        finally:
            cluster.members.remove(new)
            node.close()
            new.close()


def test_a_member_that_has_left_is_forgotten(cluster: Cluster) -> None:
    one, two, three = cluster.members
    with dstore.Node(two.address) as node:
        node.set_many(dict.fromkeys(KEYS, 1))
        with node.watch() as watch:
            _until_resyncs(watch, 3)
            cluster.move(three.owned(), three, one)
            cluster.members.remove(three)
            cluster.publish()
            while three.address in node.stats()["globals"]:
                watch.take(0.1)
            assert node.get_many(KEYS) == dict.fromkeys(KEYS, 1)
            node.delete(KEYS[0])
            while watch.take(10) != dstore.Event(KEYS[0]):
                pass
        three.close()
        cluster.members.append(three)


# ---- life ---------------------------------------------------------------------------------------


def test_pickling_connect_and_the_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.ADDRESS_VARIABLE, cluster.address)
    with dstore.Node() as node:
        assert node.address == cluster.address
        node.set("k", 1)
        assert pickle.loads(pickle.dumps(node)) is node
        assert repr(node) == f"<dstore.Node {cluster.address} 1 cached>"
    again = dstore.connect(cluster.address)
    assert dstore.connect(cluster.address) is again
    assert again.get("k") == 1
    again.close()
    with pytest.raises(dstore.NodeClosed):
        again.get("k")
    with pytest.raises(dstore.AddressError, match="tcp://x"):
        dstore.Node("tcp://127.0.0.1:1,tcp://x")


def test_the_command_line_and_a_connect_file(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = cluster.address.replace("tcp://", "")
    keys = str(tmp_path / "keys")
    commands = [
        ["set", "--address", addresses, "a", "value"],
        ["get", "--address", addresses.partition(",")[0], "a"],
        ["keys", "--address", addresses],
        ["stats", "--address", addresses],
        ["stats", "--json", "--address", addresses],
        ["access", "init", keys],
        ["access", "add", "--keys", keys, "--role", "read", "--address", addresses, "one"],
        ["access", "add", "--keys", keys, "--role", "read", "--address", f"{addresses},x", "two"],
    ]
    assert [cli.main(each) for each in commands] == [0, 0, 0, 0, 0, 0, 0, 2]
    printed = capsys.readouterr().out
    assert printed.startswith("value" + "a\nkeys ")
    lines = printed.splitlines()
    everything = json.loads(next(line for line in lines if line.startswith("{")))
    for member in cluster.members:
        short = member.address.removeprefix("tcp://")
        assert len([line for line in lines if line.split()[0] == short]) == 1
        assert everything["globals"][member.address]["epoch"]
    assert f'"address": "{cluster.address}"' in printed


def test_the_prompt_shows_a_row_for_each_global(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cmd2")
    monkeypatch.setattr("sys.stdin", io.StringIO("SET a 1\nSTATS\n"))
    assert cli.main(["repl", "--address", cluster.address]) == 0
    printed = capsys.readouterr().out
    assert "globals." not in printed
    local, all_globals = printed.split("\nGlobal\n")
    for member in cluster.members:
        assert f"\n  {member.address.removeprefix('tcp://')} " in all_globals
    assert f"\n  {cluster.owner('a').address.removeprefix('tcp://')} " in local


def test_a_forked_child_goes_on(cluster: Cluster, node: dstore.Node) -> None:
    node.set_many(dict.fromkeys(KEYS, 1))
    child = os.fork()
    if not child:
        code = 1
        try:
            good = node.get_many(KEYS) == dict.fromkeys(KEYS, 1) and not node.set_many({"c": 1})
            node.close()
            code = not good
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert node.get("c") == 1


def test_the_caches_of_all_members_together_have_their_limit(cluster: Cluster) -> None:
    with dstore.Node(cluster.address, cache_bytes=90 << 20) as node:
        node.get_many(KEYS)
        rows = node.stats()["globals"].values()
        assert all((28 << 20) < row["bytes_limit"] < (32 << 20) for row in rows)
        assert (88 << 20) < node.stats()["bytes_limit"] <= 90 << 20
