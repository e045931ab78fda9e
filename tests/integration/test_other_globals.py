"""Other Globals at the addresses of members that have ended: they answer no Node of the cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import pytest

import dstore
from dstore.client import owner, owners
from dstore.client.cluster import members
from dstore.client.owners import HostOwners
from dstore.core.authority.partitions import Partitions
from dstore.server.engines.memory import MemoryEngine
from dstore.shm.page import SharedPage
from dstore.testing import running_global
from tests.integration.members import ALL, ANY_PORT, CLUSTER, Cluster, Member, key_in
from tests.integration.owners import page_of, until, valid_page

OTHER = b"another cluster."
FIRST, SECOND = range(128), range(128, 256)
MISSING = object()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "UPKEEP_EVERY", 0.1)


@contextmanager
def alone(address: str) -> Iterator[MemoryEngine]:
    """A Global by itself at an address, which shares nothing with this host."""
    engine = MemoryEngine()
    with running_global(address, publisher=ANY_PORT, engine=engine, shm="", lease=0.3):
        yield engine


@contextmanager
def of_another_cluster(address: str) -> Iterator[MemoryEngine]:
    """A member of another cluster at an address, which owns everything."""
    member = Member(ALL, address)
    with closing(member):

        def become() -> None:
            partitions = member.partitions = Partitions(1e12, OTHER)
            partitions.gain(ALL, 0.0)
            partitions.map = (1 << 40, [address], bytes(256))
            member.state._partitions = partitions

        member.do(become)
        yield member.engine


Stranger = Callable[[str], AbstractContextManager[MemoryEngine]]
STRANGERS = pytest.mark.parametrize("stranger", [alone, of_another_cluster])


@contextmanager
def two() -> Iterator[tuple[Cluster, Member, Member]]:
    """Two members. The caller ends the first one."""
    one = Member(FIRST)
    with closing(Member(SECOND)) as other:
        yield Cluster([one, other]), one, other


@pytest.mark.parametrize(
    ("stranger", "seeds"), [(alone, "all addresses"), (of_another_cluster, "one address")]
)
def test_a_global_at_the_address_of_a_member_that_was_killed_takes_no_write(
    stranger: Stranger, seeds: str
) -> None:
    """A Node that knows the cluster waits for the next owner of the keys instead."""
    with two() as (cluster, one, other), ExitStack() as stack:
        address = cluster.address if seeds == "all addresses" else other.address
        node = stack.enter_context(dstore.Node(address, timeout=0.15))
        key, new = key_in(FIRST), key_in(FIRST, "new")
        node.set(key, "value")
        rows = {key: one.engine.read(key)}
        one.close()
        engine = stack.enter_context(stranger(one.address))
        # A copy may have been sent before the Local notices who is there, and has no answer then.
        with pytest.raises((dstore.GlobalUnavailable, dstore.OutcomeUnknown)):
            node.set(new, 1)
        state = node._locals[one.address].state
        until(lambda: state.denied is not None, "it has been answered by the other one")
        for call in (
            lambda: node.set(new, 1),
            lambda: node.set_many({new: 1}),
            lambda: node.delete(new),
            lambda: node.get(new, MISSING),
            lambda: node.get_many([new]),
            lambda: next(node.keys()),
        ):
            with pytest.raises(dstore.GlobalUnavailable, match=r"by itself|another cluster"):
                call()
        assert len(engine) == 0
        other.gain(FIRST, rows)  # type: ignore[arg-type]
        cluster.publish(other)
        node.timeout = 10.0
        node.set(new, 1)
        assert node.get_many([key, new]) == {key: "value", new: 1}
        assert node.delete(key).confirmed >= 0
        assert len(engine) == 0


@STRANGERS
def test_a_node_with_one_address_belongs_to_the_cluster_too(stranger: Stranger) -> None:
    """It has never needed a map: its Global has had all keys."""
    one = Member(ALL)
    cluster = Cluster([one])
    with dstore.Node(one.address, timeout=10.0) as node:
        node.set("k", "value")
        one.close()
        with stranger(one.address) as engine:
            until(lambda: _raises(lambda: node.set("new", 1)), "the other one has answered")
            for call in (
                lambda: node.set("new", 1),
                lambda: node.get("new", MISSING),
                lambda: node.global_stats(),
            ):
                with pytest.raises(dstore.WrongServer, match=CLUSTER.hex()[:8]):
                    call()
            assert len(engine) == 0
        with closing(Member(ALL, one.address)) as again:
            cluster.members[0] = again
            cluster.version = 100
            cluster.publish()
            until(lambda: not _raises(lambda: node.set("new", 1, replace=True)), "it is back")
            assert again.engine.read("new") is not None


def _raises(call: Callable[[], object]) -> bool:
    """Whether a call says that another Global is there."""
    try:
        call()
    except dstore.WrongServer:
        return True
    except dstore.OutcomeUnknown:
        pass
    return False


@pytest.mark.parametrize("several", [False, True])
def test_a_forked_child_belongs_to_the_cluster_of_its_parent(several: bool) -> None:
    one, other = Member(FIRST if several else ALL), Member(SECOND)
    with closing(other), ExitStack() as stack:
        cluster = Cluster([one, other] if several else [one])
        node = stack.enter_context(dstore.Node(cluster.address, timeout=1.0))
        key = key_in(FIRST)
        node.set(key, 1)
        one.close()
        engine = stack.enter_context(alone(one.address))
        child = os.fork()
        if not child:
            code = 1
            try:
                node.set(key_in(FIRST, "new"), 1)
            except (dstore.GlobalUnavailable, dstore.WrongServer) as error:
                code = 0 if "by itself" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(engine) == 0


def test_a_node_of_a_plain_global_goes_on_when_that_becomes_a_member() -> None:
    with ExitStack() as stack:
        global_ = stack.enter_context(running_global(publisher=ANY_PORT, shm="", lease=0.3))
        node = stack.enter_context(dstore.Node(global_.address, timeout=10.0))
        node.set("first", 1)
        global_.close()
        with alone(global_.address) as engine:
            node.set("second", 1)
            assert len(engine) == 1
        member = stack.enter_context(closing(Member(ALL, global_.address)))
        Cluster([member])
        node.set("third", 1)
        assert member.engine.read("third") is not None


# ---- restored databases -------------------------------------------------------------------------


def test_a_node_follows_a_cluster_whose_database_was_restored() -> None:
    """Its versions are lower than those of the map that the Node has."""
    with two() as (cluster, one, other), closing(one):
        cluster.version = 1000
        cluster.publish()
        with dstore.Node(cluster.address, timeout=10.0) as node, node.watch() as watch:
            key = key_in(FIRST)
            node.set(key, 1)
            rows = one.give_up(FIRST)
            other.gain(FIRST, rows)
            one.gain(SECOND, other.give_up(SECOND))
            cluster.version = 5
            cluster.publish()
            assert node.get(key) == 1
            node.set(key, 2, replace=True)
            assert node._members is not None
            until(lambda: node._members.routes.map.version == 6, "the map is known")  # type: ignore[union-attr]
            event = watch.take(10)
            assert event is not None


def test_a_node_that_only_watches_follows_it_too() -> None:
    with two() as (cluster, one, other), closing(one):
        cluster.version = 1000
        cluster.publish()
        with dstore.Node(cluster.address, timeout=10.0) as node, node.watch():

            def known() -> int:
                assert node._members is not None
                return node._members.routes.map.version

            until(lambda: known() == 1001, "the map is known")
            cluster.version = 5
            cluster.publish(one)
            assert known() == 1001
            cluster.publish(other)
            until(lambda: known() == 7, "the lower map is known")


# ---- dstore host --------------------------------------------------------------------------------


@contextmanager
def owning(address: str, root: str) -> Iterator[HostOwners]:
    """``dstore host`` in a thread."""
    running = HostOwners(address, shm=root)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> str:
    return os.environ["DSTORE_SHM"]


def is_there(root: str, address: str) -> bool:
    page = page_of(root, address)
    if page is None:
        return False
    page.close()
    return True


def test_owners_follow_a_cluster_whose_database_was_restored(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "MAP_EVERY", 0.1)
    with two() as (cluster, one, other), closing(one):
        cluster.version = 1000
        cluster.publish()
        with owning(cluster.address, root) as running:
            until(lambda: running._map.version == 1001, "the map is known")
            cluster.version = 5
            cluster.publish(one)  # the other one still has the higher one
            asked = other.seen.count("AskMap")
            until(lambda: other.seen.count("AskMap") > asked + 3, "both have been asked often")
            assert running._map.version == 1001
            cluster.publish(other)
            until(lambda: running._map.version == 7, "the highest of the lower ones is known")


@pytest.mark.parametrize("stranger", [alone])
def test_the_owner_of_a_page_waits_for_the_member(
    stranger: Stranger, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "RETRY_EVERY", 0.2)
    with two() as (cluster, one, other), owning(cluster.address, root) as running:
        page: SharedPage = valid_page(root, one.address)
        assert page.identity.cluster == CLUSTER
        page.close()
        until(lambda: len(running._map.members) == 2, "the map is known")
        one.close()
        with stranger(one.address) as engine:
            until(lambda: not is_there(root, one.address), "the page is removed")
            state = running._owners[one.address].state
            until(lambda: CLUSTER.hex()[:8] in state.trouble, "it knows why there is none")
            with dstore.Node(other.address, shm=root, timeout=0.3) as node:
                node.set(key_in(SECOND), 1)
                with pytest.raises(dstore.GlobalUnavailable):
                    node.get(key_in(FIRST), None)
            assert len(engine) == 0
            assert not is_there(root, one.address)
        with closing(Member(FIRST, one.address)):
            valid_page(root, one.address).close()
