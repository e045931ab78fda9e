"""Clients of a Global that asks for keys: typed errors at once, recovery, rotation, no secrets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore.access.connect import Connect
from dstore.client.owner import HostOwner
from dstore.client.settings import Settings
from dstore.config import ADDRESS_VARIABLE, CONNECT_VARIABLE
from dstore.core.local.operations import direct, fetching
from dstore.protocol.messages import Get, Hello, Kind, Offer, Set, Stage, Unwait
from dstore.testing import running_global
from dstore.transport import router as routers
from dstore.transport.curve import new_pair
from tests.faults.raw_curve import RawKeys
from tests.faults.raw_peer import RawPeer, crowd
from tests.integration.keyed_router import Keys, keyed_global
from tests.integration.owners import until
from tests.integration.processes import PATIENCE, free_port

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01CURVE".ljust(64, b"\0")
LARGE = bytes(range(256)) * 1024


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def server(keys: Keys) -> Iterator[dstore.Global]:
    with keyed_global(keys) as server:
        yield server


@pytest.fixture
def file(keys: Keys, server: dstore.Global, tmp_path: Path) -> str:
    return keys.client(tmp_path / "worker.json", server.address)


def patient(path: str | None, **settings: Any) -> dstore.Node:
    """A Node whose calls would wait for minutes: an error of theirs is one that comes at once."""
    return dstore.Node(connect=path, timeout=10 * PATIENCE, **settings)


def calls(node: dstore.Node, folder: Path) -> dict[str, Callable[[], object]]:
    """One call of each kind."""
    small, large = folder / "small", folder / "large"
    small.write_bytes(b"small")
    large.write_bytes(LARGE)
    return {
        "get": lambda: node.get("absent"),
        "get_many": lambda: node.get_many(["absent", "other"]),
        "contains": lambda: "absent" in node,
        "set": lambda: node.set("new", 1),
        "set_large": lambda: node.set("new", LARGE),
        "set_many": lambda: node.set_many({"new": 1, "newer": 2}),
        "replace": lambda: node.set("key", 2, replace=True),
        "delete": lambda: node.delete("key"),
        "delete_many": lambda: node.delete_many(["key", "other"], wait=False),
        "put": lambda: node.put(b"value"),
        "put_large": lambda: node.put(LARGE),
        "put_file": lambda: node.put_file(small),
        "put_large_file": lambda: node.put_file(large),
        "set_file": lambda: node.set_file("new", large, replace=True),
        "get_file": lambda: node.get_file("absent", folder / "out"),
        "expire": lambda: node.expire("key", 60),
        "persist": lambda: node.persist("key"),
        "ttl": lambda: node.ttl("key"),
        "keys": lambda: list(node.keys()),
        "wait": lambda: node.wait("absent"),
        "global_stats": node.global_stats,
    }


@pytest.fixture
def seldom_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a request wait for minutes before it is sent again, so that this ends no call."""
    monkeypatch.setattr(direct, "RESEND_FIRST", 10 * PATIENCE)
    monkeypatch.setattr(fetching, "RESEND_MAX", 10 * PATIENCE)


def check_errors(
    calls: dict[str, Callable[[], object]], expected: type[Exception], text: str
) -> None:
    """Make all calls; each has to raise this error with this text."""
    errors: dict[str, BaseException] = {}
    for name, call in calls.items():
        _note_error(errors, name, call)
    assert {name: type(errors.get(name)) for name in calls} == dict.fromkeys(calls, expected)
    assert all(text in str(error) for error in errors.values())


def _note_error(errors: dict[str, BaseException], name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException as error:
        errors[name] = error


def recovered(node: dstore.Node, get: Callable[[dstore.Node], Any]) -> Any:
    """Ask until the Node is let in again. Returns the answer."""
    answers: list[Any] = []

    def asked() -> bool:
        with contextlib.suppress(dstore.AccessDenied, dstore.WrongServer):
            answers.append(get(node))
        return bool(answers)

    until(asked, "the Node recovers")
    return answers[0]


# ---- with the right keys -------------------------------------------------------------------------


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


# ---- what is not let in --------------------------------------------------------------------------


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


# ---- what changes while a Node is in use ---------------------------------------------------------


def test_a_revoked_client_keeps_its_cache_for_the_lease_and_comes_back(
    keys: Keys, file: str, tmp_path: Path
) -> None:
    with patient(file) as node:
        node.set("key", 1)
        lease_end = node._state.lease_end
        keys.revoke(file)
        until(lambda: node._state.denied is not None, "the Node knows that it is denied")
        check_errors(calls(node, tmp_path), dstore.AccessDenied, "does not admit 'worker'")
        assert node._state.session  # it is not ours to end: its lease may be out
        assert node._state.lease_end >= lease_end
        until(lambda: node.stats()["lease_left"] == 0, "the lease ends")
        with pytest.raises(dstore.AccessDenied):
            node.get("key")
        keys.add(file)
        assert recovered(node, lambda node: node.get("key")) == 1
        node.set("new", 2)


def test_a_cached_value_is_read_while_access_is_denied(keys: Keys, tmp_path: Path) -> None:
    with keyed_global(keys, lease=PATIENCE) as server:
        file = keys.client(tmp_path / "worker.json", server.address)
        with patient(file) as node:
            node.set("key", 1)
            keys.revoke(file)
            until(lambda: node._state.denied is not None, "the Node knows that it is denied")
            assert node.get("key") == 1


@pytest.mark.usefixtures("seldom_sent_again")
def test_calls_at_work_end_when_their_client_is_revoked(keys: Keys, file: str) -> None:
    """A write that was sent has an unknown outcome; the others have none."""
    keys.holds = lambda message: type(message) in (Set, Get, Stage)
    with patient(file) as node:
        node.join()
        watch = node.watch()
        assert watch.take(PATIENCE) is not None
        started = {
            "set": lambda: node.set("key", 1),
            "get": lambda: node.get("key"),
            "wait": lambda: node.wait("other"),
            "set_large": lambda: node.set("large", LARGE),
            "watch": lambda: next(watch),
        }
        errors: dict[str, BaseException] = {}
        threads = [
            threading.Thread(target=_note_error, args=(errors, name, call))
            for name, call in started.items()
        ]
        for thread in threads:
            thread.start()
        assert keys.held.wait(PATIENCE)
        until(lambda: len(node._state.in_flight) == 1, "the read is under way")
        until(lambda: bool(node._state.writer.writing), "the write is under way")
        keys.revoke(file)
        for thread in threads:
            thread.join(PATIENCE)
        assert set(errors) == set(started)
        unknown = errors.pop("set")
        assert isinstance(unknown, dstore.OutcomeUnknown)
        assert "does not admit 'worker'" in unknown.reason
        large = errors.pop("set_large")  # its first SET may have been sent
        assert isinstance(large, (dstore.AccessDenied, dstore.OutcomeUnknown))
        assert {type(error) for error in errors.values()} == {dstore.AccessDenied}
        keys.holds = lambda message: False
        keys.add(file)
        assert recovered(node, lambda node: node.get("new", "absent")) == "absent"
        node.set("new", 1)
        node.delete("new")
        event = watch.take(PATIENCE)
        while event is not None and event.key != "new":  # resyncs
            event = watch.take(PATIENCE)
        assert event is not None


@pytest.mark.usefixtures("seldom_sent_again")
def test_tasks_at_work_end_when_their_client_is_revoked(keys: Keys, file: str) -> None:
    keys.holds = lambda message: type(message) in (Set, Get)

    async def use() -> None:
        async with dstore.AsyncNode.from_file(file, timeout=10 * PATIENCE) as node:
            await node.join()
            tasks = [
                asyncio.ensure_future(each)
                for each in (node.set("key", 1), node.get("key"), node.wait("other"))
            ]
            state = node.node._state
            at_work = lambda: bool(state.in_flight and state.writer.writing)  # noqa: E731
            await asyncio.to_thread(until, at_work, "the calls are under way")
            keys.revoke(file)
            ended = asyncio.gather(*tasks, return_exceptions=True)
            errors = await asyncio.wait_for(ended, PATIENCE)
            assert isinstance(errors[0], (dstore.OutcomeUnknown, dstore.AccessDenied))
            assert [type(each) for each in errors[1:]] == [dstore.AccessDenied] * 2
            with pytest.raises(dstore.AccessDenied):
                await asyncio.wait_for(node.get("key"), PATIENCE)

    asyncio.run(use())


@pytest.mark.long
def test_a_global_that_is_started_again_with_keys_or_without_is_found_again(
    keys: Keys, tmp_path: Path
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    file = keys.client(tmp_path / "worker.json", address)
    with patient(file) as keyed, dstore.Node(address, timeout=10 * PATIENCE) as plain:
        with keyed_global(keys, address):
            keyed.set("key", 1)
            with pytest.raises(dstore.WrongServer, match="asks for keys"):
                plain.get("key")
        with running_global(address):
            assert recovered(plain, lambda node: node.get("key", "absent")) == "absent"
            until(lambda: keyed._state.denied is not None, "the Node finds another server")
            with pytest.raises(dstore.WrongServer, match="does not use keys"):
                keyed.get("other")
        with keyed_global(keys, address):
            assert recovered(keyed, lambda node: node.get("key", "absent")) == "absent"


def test_no_call_fails_when_the_server_changes_its_key(keys: Keys, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    file = keys.client(tmp_path / "worker.json", address)
    after = Keys()
    after.admitted = keys.admitted
    errors: list[BaseException] = []
    rounds = [0]
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            try:
                node.set(f"key {rounds[0]}", 1)
                node.get(f"absent {rounds[0]}", None)
                rounds[0] += 1
            except dstore.OutcomeUnknown:  # Global was ended in the middle of the write
                rounds[0] += 1
            except BaseException as error:
                errors.append(error)
                return

    def goes_on() -> None:
        enough = rounds[0] + 20
        until(lambda: rounds[0] > enough or bool(errors), "calls go on")

    with patient(file) as node:
        thread = threading.Thread(target=use)
        with keyed_global(keys, address):
            thread.start()
            goes_on()
            present = Connect.load(file)
            both = [*present.server_keys, after.server_public]
            Connect(address, both, present.name, [], present.public_key, present.secret_key).save(
                file
            )
        with keyed_global(after, address):
            goes_on()
            over.set()
            thread.join(PATIENCE)
            assert not errors


def test_a_client_whose_file_is_mended_comes_back(
    keys: Keys, server: dstore.Global, tmp_path: Path
) -> None:
    path = keys.client(tmp_path / "worker.json", server.address, server_keys=[new_pair()[0]])
    with patient(path) as node:
        with pytest.raises(dstore.WrongServer):
            node.get("key")
        keys.client(tmp_path / "worker.json", server.address)
        assert recovered(node, lambda node: node.get("key", "absent")) == "absent"


# ---- what only looks like a wrong server ---------------------------------------------------------


class Listener:
    """A server that sends something to each connection and ends it after an answer.

    That is one of more than ``enough`` bytes; a greeting has 64.
    """

    def __init__(self, greeting: bytes, enough: int = 0) -> None:
        self._greeting, self._enough = greeting, enough
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.accepted: list[float] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.accepted.append(time.monotonic())
                with connection, contextlib.suppress(OSError):
                    if self._greeting:
                        connection.sendall(self._greeting)
                        connection.settimeout(PATIENCE)
                        received = 0
                        while received <= self._enough:
                            more = len(connection.recv(4096))
                            received += more or self._enough + 1

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)


@pytest.mark.long
def test_a_proxy_without_a_global_is_no_wrong_server(keys: Keys, tmp_path: Path) -> None:
    with Listener(b"") as proxy:
        path = keys.client(tmp_path / "worker.json", proxy.address)
        with dstore.Node.from_file(path, timeout=2) as node:
            with pytest.raises(dstore.GlobalUnavailable, match=r"connection (closed|reset)"):
                node.get("key")
            assert node._state.denied is None


@pytest.mark.long
def test_what_ends_connections_that_it_has_greeted_is_no_wrong_server(
    keys: Keys, tmp_path: Path
) -> None:
    with Listener(GREETING) as full:
        path = keys.client(tmp_path / "worker.json", full.address)
        with dstore.Node.from_file(path, timeout=2) as node:
            with pytest.raises(dstore.GlobalUnavailable, match="accepts no further connections"):
                node.get("key")
            assert node._state.denied is None


@pytest.mark.long
def test_a_global_that_has_no_room_is_no_wrong_server(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routers, "CONNECTIONS_SPARE", 4)  # 8 in all, of which 6 are a share
    with keyed_global(keys, max_clients=1) as server, crowd() as peers:
        path = keys.client(tmp_path / "worker.json", server.address)
        connect = Connect.load(path)
        raw = RawKeys.decoded(keys.server_public, connect.public_key, connect.secret_key)
        for _ in range(6):
            peers.append(RawPeer(server.address, source="127.0.0.1", keys=raw))
        with dstore.Node.from_file(path, timeout=3) as node:
            # It may even be cut before it is greeted.
            with pytest.raises(dstore.GlobalUnavailable, match=r"accepts no further|closed|reset"):
                node.get("key")
            assert node._state.denied is None
            for peer in peers:
                peer.close()
            until(lambda: bool(node._state.session), "the Node has joined")
            assert node.get("key", "absent") == "absent"


@pytest.mark.long
def test_a_wrong_server_is_not_flooded(keys: Keys, tmp_path: Path) -> None:
    with Listener(GREETING, len(GREETING)) as other:
        path = keys.client(tmp_path / "worker.json", other.address)
        with patient(path) as node:
            with pytest.raises(dstore.WrongServer):
                node.get("key")
            before = len(other.accepted)
            for _ in range(50):
                with pytest.raises(dstore.WrongServer):
                    node.get("key")
            until(lambda: len(other.accepted) >= before + 2, "the server is tried again")
            later = other.accepted[before - 1 :]
            pauses = [end - begin for begin, end in itertools.pairwise(later)]
            assert min(pauses) > 0.5
        assert node._settings.connect is not None


# ---- what Global denies --------------------------------------------------------------------------


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


# ---- no secrets ----------------------------------------------------------------------------------


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


# ---- programs ------------------------------------------------------------------------------------


def command(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        env={**os.environ, **environment},
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_commands_take_a_connect_file(file: str, server: dstore.Global) -> None:
    assert command("set", "key", "value", "--connect", file)[0] == 0
    assert command("get", "key", **{CONNECT_VARIABLE: file})[:2] == (0, "value")
    code, out, _ = command("repl", "--connect", file, stdin="GET key\n")
    assert code == 0
    assert "global: key -> value" in out
    assert server.address.removeprefix("tcp://") in out


@pytest.mark.long
def test_commands_say_in_one_line_why_they_are_not_let_in(
    keys: Keys, file: str, server: dstore.Global, tmp_path: Path
) -> None:
    keys.revoke(file)
    astray = keys.client(tmp_path / "astray.json", server.address, server_keys=[new_pair()[0]])
    for arguments, expected, text in (
        (("--connect", file), 1, "does not admit 'worker'"),
        (("--connect", astray), 3, "does not have the server key"),
        (("--address", server.address), 3, "asks for keys, and this client has none"),
        (("--connect", str(tmp_path / "missing")), 2, "cannot be read: No such file"),
    ):
        code, out, errors = command("get", "key", "--timeout", "300", *arguments)
        assert (code, out) == (expected, "")
        assert text in errors
        assert errors.count("\n") == 1
    code, out, _ = command("repl", "--connect", astray, "--timeout", "300", stdin="GET key\n")
    assert code == 3
    assert "does not have the server key" in out


def test_the_owner_of_a_host_ends_when_it_is_not_let_in(
    keys: Keys, file: str, server: dstore.Global, tmp_path: Path
) -> None:
    astray = keys.client(tmp_path / "astray.json", server.address, server_keys=[new_pair()[0]])
    shm = os.environ["DSTORE_SHM"]
    del keys.admitted[Connect.load(file).public_key]
    for path, code, text in ((file, 1, "does not admit"), (astray, 3, "the server key")):
        ended = command("host", "--connect", path, "--shm", shm)
        assert ended[0] == code
        assert text in ended[2]


def test_the_owner_of_a_host_has_an_identity_of_its_own(
    keys: Keys, file: str, server: dstore.Global
) -> None:
    there = threading.Event()
    ended: list[BaseException] = []
    owner = HostOwner(connect=file, changed=lambda page: there.set() if page else None)

    def run() -> None:
        try:
            owner.run()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert there.wait(PATIENCE)
        assert Connect.load(file).secret_key not in repr(owner)
        with dstore.Node.from_file(file, host="require") as node:
            node.set("key", 1)
            assert node.stats()["membership"] == "shared"
        keys.revoke(file)
        thread.join(PATIENCE)
        assert [type(each) for each in ended] == [dstore.AccessDenied]
    finally:
        owner.stop()
        thread.join(PATIENCE)


def test_a_process_of_a_host_that_may_not_write_learns_it(
    keys: Keys, file: str, server: dstore.Global
) -> None:
    def denies(message: object) -> str | None:
        writer = isinstance(message, Hello) and message.kind is Kind.WRITER
        return "role read may not write" if writer else None

    keys.denies = denies
    there = threading.Event()
    owner = HostOwner(connect=file, changed=lambda page: there.set() if page else None)
    thread = threading.Thread(target=owner.run)
    thread.start()
    try:
        assert there.wait(PATIENCE)
        with patient(file, host="require") as node:
            assert node.get("key", "absent") == "absent"
            for _ in range(2):
                with pytest.raises(dstore.AccessDenied, match="role read may not write"):
                    node.set("key", 1)
            assert node.get("key", "absent") == "absent"
            keys.denies = lambda message: None
            node.set("key", 1)
    finally:
        owner.stop()
        thread.join(PATIENCE)
