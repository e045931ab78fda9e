"""Clients of a Global that asks for keys: typed errors at once, and no secrets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from pathlib import Path

import pytest

import dstore
from dstore.access.connect import Connect
from dstore.client.settings import Settings
from dstore.config import ADDRESS_VARIABLE, CONNECT_VARIABLE
from dstore.protocol.messages import Hello, Offer, Unwait
from dstore.testing import running_global
from dstore.transport.curve import new_pair
from tests.integration.keyed_router import (
    LARGE,
    Keys,
    calls,
    check_errors,
    file,
    keyed_global,
    keys,
    patient,
    recovered,
    server,
)
from tests.integration.owners import until
from tests.integration.processes import PATIENCE, free_port

__all__ = ["file", "keys", "server"]


# ---- with the right keys ----------------------------------------------------------------------


def test_a_node_with_keys_reads_writes_and_hears_of_deletions(
    keys: Keys, server: dstore.Global, tmp_path: Path
) -> None:
    deleted: list[object] = []
    one = keys.client(tmp_path / "one.json", server.address)
    two = keys.client(tmp_path / "two.json", server.address)
    with patient(one, on_deletion=deleted.append) as here, dstore.Node.from_file(two) as there:
        here.set("key", {"n": 1})
        here.set("large", LARGE)
        assert there.get("key") == {"n": 1}
        assert bytes(there.get("large")) == LARGE
        assert there.delete("key").confirmed
        until(lambda: "key" in deleted, "the deletion is heard of")
        assert here.get("key", None) is None


def test_a_node_with_keys_for_tasks(file: str) -> None:
    async def use() -> None:
        async with dstore.AsyncNode.from_file(file) as node:
            await node.set("key", 1)
            assert await node.get("key") == 1
            assert await node.get_many(["key", "absent"]) == {"key": 1}

    asyncio.run(use())


def test_the_connect_file_of_the_environment_wins_over_the_address(
    file: str, server: dstore.Global, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONNECT_VARIABLE, file)
    monkeypatch.setenv(ADDRESS_VARIABLE, "tcp://127.0.0.1:1")
    with dstore.Node() as node:
        assert node.address == server.address
        assert node.get("key", None) is None
    with dstore.Node("tcp://127.0.0.1:2") as other:  # neither applies
        assert other.address == "tcp://127.0.0.1:2"
        assert other._settings.connect is None


def test_an_address_takes_the_place_of_that_of_the_file(
    keys: Keys, server: dstore.Global, tmp_path: Path
) -> None:
    path = keys.client(tmp_path / "tunnel.json", "tcp://127.0.0.1:1")
    with dstore.Node(server.address, connect=path) as node:
        node.set("key", 1)
        assert node.address == server.address


def test_content_addresses_begin_with_the_first_prefix(
    keys: Keys, server: dstore.Global, tmp_path: Path
) -> None:
    path = keys.client(tmp_path / "app.json", server.address, prefixes=["app1/", "app2/"])
    plain = keys.client(tmp_path / "plain.json", server.address)
    with dstore.Node.from_file(plain) as node:
        address = node.put(b"value")
    with dstore.Node.from_file(path) as node:
        assert f"app1/{address}" in node._state.addresses
        assert f"app2/{address}" in node._state.addresses
        # (Whether Global knows such an address is not up to the client.)
        assert Settings(connect=path).addresses.of(bytes(32)) == f"app1/b3:{bytes(32).hex()}"


# ---- what is not let in -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "error", "text"),
    [
        ("unknown", dstore.AccessDenied, "does not admit 'unknown'"),
        ("astray", dstore.WrongServer, "does not have the server key"),
        ("plain", dstore.WrongServer, "asks for keys, and this client has none"),
    ],
)
def test_who_is_not_let_in_learns_why_at_once_from_every_call(
    keys: Keys,
    server: dstore.Global,
    tmp_path: Path,
    who: str,
    error: type[Exception],
    text: str,
) -> None:
    node = _stranger(who, keys, server, tmp_path)
    with node:
        check_errors(calls(node, tmp_path), error, text)
        with pytest.raises(error, match=text):
            node.watch("k")


@pytest.mark.parametrize(
    ("who", "error"),
    [
        ("unknown", dstore.AccessDenied),
        ("astray", dstore.WrongServer),
        ("plain", dstore.WrongServer),
    ],
)
def test_tasks_learn_it_too(
    keys: Keys, server: dstore.Global, tmp_path: Path, who: str, error: type[Exception]
) -> None:
    async def use() -> None:
        async with dstore.AsyncNode.sharing(node) as tasks:
            answers = await asyncio.gather(
                tasks.get("key"),
                tasks.set("key", 1),
                tasks.wait("key"),
                tasks.put(LARGE),
                return_exceptions=True,
            )
            assert [type(each) for each in answers] == [error] * 4
            with pytest.raises(error):
                await tasks.delete("key")

    with _stranger(who, keys, server, tmp_path) as node:
        asyncio.run(use())


def _stranger(who: str, keys: Keys, server: dstore.Global, folder: Path) -> dstore.Node:
    if who == "plain":
        return dstore.Node(server.address, timeout=10 * PATIENCE)
    if who == "unknown":
        path = Keys().client(
            folder / "unknown.json", server.address, server_keys=[keys.server_public]
        )
    else:
        path = keys.client(folder / "astray.json", server.address, server_keys=[new_pair()[0]])
    return patient(path)


def test_a_client_with_keys_learns_that_a_global_uses_none(keys: Keys, tmp_path: Path) -> None:
    with running_global() as plain:
        path = keys.client(tmp_path / "worker.json", plain.address)
        with patient(path) as node, pytest.raises(dstore.WrongServer, match="does not use keys"):
            node.get("key")


# ---- what Global denies -----------------------------------------------------------------------


def test_what_global_denies_is_denied_at_once_with_its_text(
    keys: Keys, file: str, tmp_path: Path
) -> None:
    asked: list[int] = []

    def denies(message: object) -> str | None:
        if not hasattr(message, "request") or type(message) is Unwait:
            return None
        asked.append(message.request)
        return "role read may not do that"

    with patient(file) as node:
        node.set("key", 1)
        node.get("key")
        keys.denies = denies
        check_errors(calls(node, tmp_path), dstore.AccessDenied, "role read may not do that")
        assert len(asked) == len(set(asked)) >= len(calls(node, tmp_path))  # none was sent twice
        keys.denies = lambda message: None
        node.set("new", 1)


def test_tasks_are_denied_the_same(keys: Keys, file: str) -> None:
    keys.denies = lambda message: "no" if hasattr(message, "request") else None

    async def use() -> None:
        async with dstore.AsyncNode.from_file(file, timeout=10 * PATIENCE) as node:
            for each in (node.get("key"), node.set("key", 1), node.put(LARGE), node.wait("key")):
                with pytest.raises(dstore.AccessDenied, match="no"):
                    await each

    asyncio.run(use())


def test_a_session_that_is_denied_is_access_denied(keys: Keys, file: str) -> None:
    keys.denies = lambda message: "no session for you" if type(message) is Hello else None
    with patient(file) as node:
        with pytest.raises(dstore.AccessDenied, match="no session for you"):
            node.get("key")
        keys.denies = lambda message: None
        assert recovered(node, lambda node: node.get("key", "absent")) == "absent"


def test_an_offer_that_is_denied_is_dropped(keys: Keys, tmp_path: Path) -> None:
    offers: list[object] = []

    def denies(message: object) -> str | None:
        if type(message) is not Offer:
            return None
        offers.append(message)
        return "no offers"

    keys.denies = denies
    address = f"tcp://127.0.0.1:{free_port()}"
    file = keys.client(tmp_path / "worker.json", address)
    data = tmp_path / "data"
    with patient(file) as node:
        with keyed_global(keys, address, data=data):
            node.set("key", 1)
        with keyed_global(keys, address, data=data):
            until(lambda: bool(offers), "the Node offers what it had cached")
            assert node.get("key") == 1
            assert node._state.denied is None
            assert node.stats()["revalidated"] == 0


# ---- no secrets -------------------------------------------------------------------------------


def test_a_pickled_node_names_its_file_only(
    file: str, server: dstore.Global, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = Connect.load(file).secret_key
    monkeypatch.chdir(Path(file).parent)
    with dstore.Node.from_file(os.path.basename(file)) as node:
        pickled = pickle.dumps(node)
        assert os.fsencode(file) in pickled
        assert secret.encode() not in pickled
        for shown in (repr(node), repr(node._settings), str(vars(node._settings))):
            assert secret not in shown
        monkeypatch.chdir("/")
        assert pickle.loads(pickled) is node
        assert node._settings == Settings(connect=file)
    again = pickle.loads(pickled)
    with again:
        assert again.get("key", None) is None


def test_one_file_is_one_node(file: str, server: dstore.Global) -> None:
    with dstore.connect(connect=file) as node:
        assert dstore.connect(connect=file) is node
        Connect.load(file).save(file)
        assert dstore.connect(connect=file) is node
    assert Settings(connect=file) != Settings(server.address, connect=file)
    assert Settings(connect=file) != Settings(server.address)


def test_a_forked_child_has_the_keys_though_it_cannot_read_the_file(file: str) -> None:
    with dstore.Node.from_file(file) as node:
        node.set("key", 1)
        os.rename(file, file + ".away")
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if node.get("key") == 1 else 2
                node.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_cannot_be_used_is_told_by_the_node(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chmod(file, 0o644)
    with pytest.raises(dstore.BadConnectFile, match="chmod 600"):
        dstore.Node.from_file(file)
    monkeypatch.setenv(CONNECT_VARIABLE, file)
    with pytest.raises(dstore.BadConnectFile, match=r"\$DSTORE_CONNECT: .*chmod 600"):
        dstore.Node()
    with pytest.raises(TypeError, match="connect is a path"):
        dstore.Node(connect=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="connect is empty"):
        dstore.Node(connect="")
