"""Members of a cluster as processes, over a real PostgreSQL: killed, stopped, and asked to leave.

Client programs see the same through a Node; here each member is asked by itself.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple

import pytest
import zmq

import dstore
from dstore import cli
from dstore.protocol import wire
from dstore.protocol.messages import (
    AskMap,
    Get,
    GetReply,
    MapReply,
    Set,
    SetItem,
    Stats,
    StatsReply,
    Stored,
)
from dstore.protocol.partitions import PARTITIONS, partition_of
from dstore.server import postgres
from dstore.testing import start_global
from tests.integration.processes import PATIENCE, GlobalProcess, RawClient
from tests.postgres import Postgres

OWNERSHIP = 1.0
"""Seconds of an ownership lease in these tests."""
LEASE = 0.3
KEYS = [f"k{number}" for number in range(100)]
LARGE = bytes(range(256)) * 1024
ANSWER_MS = 200
"""Milliseconds to wait for an answer before a member is asked again."""
PAUSE = 0.01
"""Seconds between two looks."""
OK, REFUSED, USAGE = 0, 1, 2


class Ran(NamedTuple):
    """What a command has printed."""

    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``dstore`` in this process, and checks its exit code."""

    def run(*arguments: str, code: int = OK) -> Ran:
        capsys.readouterr()
        ended = cli.main(arguments)
        ran = Ran(*capsys.readouterr())
        assert "Traceback" not in ran.err
        assert ended == code, ran.err
        return ran

    return run


class MemberProcess(GlobalProcess):
    """``dstore global --engine`` as a process."""

    def __init__(self, url: str, *options: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        ownership = ("--ownership-lease", str(OWNERSHIP))
        super().__init__("tcp://127.0.0.1:0", LEASE, ("--engine", url, *ownership, *options))

    def start(self) -> None:
        self.address, self.process = start_global(
            *self._options, address=self.address, stderr=self._log
        )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> MemberProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        assert "Traceback" not in self.log
        self._log.close()

    def map(self) -> MapReply | None:
        """The map as this member knows it; None if it does not answer soon."""
        with RawClient(self.address) as raw:
            raw.socket.send(wire.encode(AskMap(0, 0, 1)))
            if not raw.socket.poll(ANSWER_MS):
                return None
            found = raw.receive()
        assert isinstance(found, MapReply)
        return found

    def serving(self) -> int:
        """How many partitions it serves; 0 if it does not answer soon."""
        with RawClient(self.address) as raw:
            raw.socket.send(wire.encode(Stats(0, 0, 1)))
            if not raw.socket.poll(ANSWER_MS):
                return 0
            found = raw.receive()
        assert isinstance(found, StatsReply)
        return int(str(found.metrics["partitions"]))

    def owned(self) -> set[int]:
        """The numbers of the partitions that belong to this member, as it knows."""
        found = self.map()
        if found is None or self.address not in found.members:
            return set()
        place = found.members.index(self.address)
        return {number for number in range(PARTITIONS) if found.owners[number] == place}

    def mine(self) -> list[str]:
        """The keys that belong to this member."""
        owned = self.owned()
        return [key for key in KEYS if partition_of(key) in owned]


@pytest.fixture
def url(postgres_url: str) -> str:
    assert postgres.init(postgres_url, standby=False)
    return postgres_url


Start = Callable[..., MemberProcess]


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """A function that starts a member, which ends with the test."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(MemberProcess(url, *options))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(PAUSE)


def serves_all(member: MemberProcess) -> MemberProcess:
    until(lambda: member.serving() == PARTITIONS)
    return member


def share(*members: MemberProcess) -> None:
    """Wait until the members have shared all partitions, and serve them."""
    until(lambda: all(served := [each.serving() for each in members]) and sum(served) == PARTITIONS)


def get_many(member: MemberProcess, keys: list[str]) -> dict[str, Any]:
    """Read keys of one member."""
    with dstore.Node(member.address, timeout=PATIENCE) as node:
        found: dict[str, Any] = node.get_many(keys)
    return found


# ---- joining and leaving -------------------------------------------------------------------------


class Reader:
    """A simple client: it reads keys in turn, each from whichever member has it, without a cache.

    ``missed`` has the keys that a member that serves them did not have, or had another value of.
    """

    def __init__(self, addresses: list[str], keys: list[str]) -> None:
        self.rounds = 0
        self.missed: list[tuple[str, Any]] = []
        self._stop = threading.Event()
        self._addresses, self._keys = addresses, keys
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with ExitStack() as stack:
            peers = [stack.enter_context(RawClient(each)) for each in self._addresses]
            for peer in peers:
                peer.socket.RCVTIMEO = 100
            while not self._stop.is_set():
                for key in self._keys:
                    end = time.monotonic() + PATIENCE
                    while (reply := self._ask(peers[0], key)) is None:
                        peers = peers[1:] + peers[:1]
                        if time.monotonic() > end:
                            self.missed.append((key, "no answer"))
                            return
                    if reply.bodies != [key.upper().encode()]:
                        self.missed.append((key, reply))
                self.rounds += 1

    def _ask(self, peer: RawClient, key: str) -> GetReply | None:
        """Ask a member without a session. Returns None if it does not serve the key now."""
        request = self.requests = self.requests + 1
        peer.socket.send(wire.encode(Get(0, 0, request, [key])))
        reply: Any = None
        while reply is None or reply.request != request:
            try:
                reply = peer.receive()
            except zmq.Again:
                return None
        return reply if isinstance(reply, GetReply) else None

    requests = 0

    def goes_on(self) -> None:
        """Return when it has read all keys since now."""
        rounds = self.rounds
        until(lambda: self.rounds > rounds + 1 or self.missed)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def test_members_share_the_keys_and_hand_them_over_without_a_failed_read(start: Start) -> None:
    one = serves_all(start())
    with dstore.Node(one.address) as node:
        node.set_many({key: key.upper() for key in KEYS})
        node.set("large", LARGE)
        node.set("expires", 1, ttl=1000.0)
    two = start()
    with Reader([one.address, two.address], KEYS) as reader:
        share(one, two)
        reader.goes_on()
        for each in (one, two):
            assert get_many(each, each.mine()) == {key: key.upper() for key in each.mine()}
        assert one.stop() == OK
        assert "hands over" in one.log and "left the cluster" in one.log
        assert f"serves {PARTITIONS} partitions now" in one.log
        serves_all(two)
        reader.goes_on()
    assert reader.missed == []
    with dstore.Node(two.address) as node:
        assert node.get_many(KEYS) == {key: key.upper() for key in KEYS}
        assert bytes(node.get("large")) == LARGE
        assert 900.0 < (node.ttl("expires") or 0.0) <= 1000.0


@pytest.mark.long
def test_a_second_signal_ends_a_member_that_waits_for_its_database(
    new_postgres: Callable[..., Postgres],
) -> None:
    servers = new_postgres()
    url = servers.url()
    postgres.init(url, standby=False)
    with MemberProcess(url, "--ownership-lease", str(PATIENCE)) as member:
        serves_all(member)
        servers.primary.pause()
        until(lambda: ended(member))
        assert member.process.returncode == 128 + signal.SIGTERM
        servers.primary.resume()


def ended(member: MemberProcess) -> bool:
    """Ask a member to end, once more. Returns whether it has ended."""
    member.process.terminate()
    return member.process.poll() is not None


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.long
def test_what_a_killed_member_had_is_taken_over(start: Start) -> None:
    one = serves_all(start())
    two = start()
    share(one, two)
    theirs = two.mine()
    with dstore.Node(two.address) as node:
        node.set_many({key: key.upper() for key in theirs})
    two.kill()
    serves_all(one)
    assert get_many(one, theirs) == {key: key.upper() for key in theirs}
    with dstore.Node(one.address, timeout=PATIENCE) as node:
        node.delete_many(theirs)  # when its Locals' leases are over
    assert get_many(one, theirs) == {}


def test_a_member_that_stood_still_answers_and_writes_nothing(start: Start, url: str) -> None:
    one = serves_all(start())
    with RawClient(one.address) as raw:
        two = start()
        share(one, two)
        (key, *_) = one.mine()
        raw.join()
        assert isinstance(raw.ask(Get(raw.epoch, raw.session, 1, [key])), GetReply)
        one.signal(signal.SIGSTOP)
        raw.socket.send(wire.encode(Get(raw.epoch, raw.session, 2, [key])))
        item = SetItem(key, Stored(bytes(16), "bytes", b"of a member that owns it no more"))
        raw.socket.send(wire.encode(Set(raw.epoch, raw.session, 3, 1, 0, False, [item])))
        serves_all(two)
        one.signal(signal.SIGCONT)
        until(lambda: one.map() is not None)  # it has joined again
        reply = raw.ask(AskMap(0, 0, 4))
        assert isinstance(reply, MapReply)  # the others were not answered: this is the first one
    assert "owns nothing any more" in one.log
    import psycopg  # here, since it may not be installed

    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT key FROM dstore.kept").fetchall() == []


@pytest.mark.long
def test_without_the_database_members_end_and_come_back(
    new_postgres: Callable[..., Postgres],
) -> None:
    servers = new_postgres()
    url = servers.url()
    postgres.init(url, standby=False)
    with MemberProcess(url) as member:
        serves_all(member)
        with dstore.Node(member.address) as node:
            node.set_many({key: key.upper() for key in KEYS})
        servers.primary.kill()
        until(lambda: member.map() is None)
        with MemberProcess(url) as another:
            servers.primary.start()
            share(member, another)
            assert another.stop() == OK
        serves_all(member)
        assert get_many(member, KEYS) == {key: key.upper() for key in KEYS}


@contextlib.contextmanager
def served(url: str, **options: Any) -> Iterator[dstore.Global]:
    """A member in a thread of this process, once it serves all partitions."""
    settings: dict[str, Any] = {"engine": url, "ownership_lease": OWNERSHIP, "lease": LEASE}
    with dstore.Global("tcp://127.0.0.1:0", **settings, **options) as member:
        with dstore.Node(member.address, timeout=PATIENCE) as node:
            until(lambda: node.global_stats()["partitions"] == PARTITIONS)
        yield member


def test_a_slow_read_of_a_large_value_disturbs_nobody_else(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dstore.server.postgres import values

    with served(url) as member, dstore.Node(member.address) as node:
        node.set("large", LARGE)
        node.set("small", 1)
    held, asked = threading.Event(), threading.Event()
    real = values.read_part

    def slow(*arguments: Any) -> bytes | None:
        asked.set()
        assert held.wait(PATIENCE)
        return real(*arguments)

    monkeypatch.setattr(values, "read_part", slow)
    with (
        served(url) as member,  # the bytes are in the database alone
        dstore.Node(member.address, timeout=PATIENCE, host="off") as reader,
        dstore.Node(member.address, host="off") as other,
        ThreadPoolExecutor(1) as threads,
    ):
        got = threads.submit(lambda: bytes(reader.get("large")))
        try:
            assert asked.wait(PATIENCE)
            figures = other.global_stats()
            assert other.get("small") == 1
            assert other.delete("small")
            assert figures["loading"] > 0
            assert not got.done()
        finally:
            held.set()
        assert got.result(PATIENCE) == LARGE
        assert reader.global_stats()["failed_loads"] == 0


# ---- the command line ----------------------------------------------------------------------------


def test_status_and_drain(url: str, command: Command) -> None:
    def served(server: dstore.Global) -> dict[str, Any]:
        with RawClient(server.address) as raw:
            raw.socket.send(wire.encode(Stats(0, 0, 1)))
            if not raw.socket.poll(ANSWER_MS):
                return {"partitions": 0}
            found = raw.receive()
        assert isinstance(found, StatsReply)
        return dict(found.metrics)

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(command("cluster", "status", url, "--json").out)
        return found

    def states() -> dict[str, str]:
        return {each["address"]: each["state"] for each in shown()["members"]}

    assert shown()["members"] == []
    said = command("cluster", "init", url, "--no-standby").err
    assert "nothing was changed; its members need no standby" in said
    options: dict[str, Any] = {"engine": url, "ownership_lease": OWNERSHIP, "lease": LEASE}
    with dstore.Global("tcp://127.0.0.1:0", **options) as one:
        until(lambda: served(one)["partitions"] == PARTITIONS)
        assert 0 < served(one)["ownership_left"] <= OWNERSHIP
        with dstore.Global("tcp://127.0.0.1:0", **options) as two:
            until(lambda: served(two)["partitions"])
            found = shown()
            members = {each["address"]: each for each in found["members"]}
            assert set(members) == {one.address, two.address}
            assert all(each["beats"] for each in members.values())
            assert found["partitions"]["owned"] == PARTITIONS
            lines = command("cluster", "status", url).out.splitlines()
            assert lines[0].split()[:3] == ["MEMBER", "ADDRESS", "PARTITIONS"]
            assert two.address.removeprefix("tcp://") in "".join(lines)
            command("cluster", "drain", url, two.address.removeprefix("tcp://"))
            assert served(two)["partitions"] == 0
            until(lambda: served(one)["partitions"] == PARTITIONS)
            assert states() == {one.address: "up", two.address: "drained"}
            lines = command("cluster", "status", url).out.splitlines()
            assert sorted(each.split()[-1] for each in lines[1:3]) == ["drained", "up"]
            said = command("cluster", "drain", url, "nobody", code=REFUSED).err
            assert "there is no member 'nobody'" in said
        said = command("cluster", "drain", url, one.address, "--wait", "0.1", code=REFUSED).err
        assert "needs another member" in said
        assert states() == {one.address: "draining"}
    assert shown()["partitions"]["free"] == PARTITIONS


def test_a_database_that_cannot_be_used_is_said_in_one_line(
    postgres_url: str, command: Command
) -> None:
    secret = "hunter2"
    _, _, rest = postgres_url.partition("@")
    wrong = [
        postgres_url,  # it is not prepared
        f"postgresql://dstore:{secret}@{rest}",
        f"postgresql://dstore:{secret}@[/name",
    ]
    away = [
        f"postgresql://dstore:{secret}@127.0.0.1:9/name",
        f"postgresql://dstore:{secret}@nowhere.invalid/name",
    ]
    calls: list[tuple[str, ...]] = [("cluster", "status", each) for each in wrong + away]
    calls += [("global", "--address", "127.0.0.1:0", "--engine", each) for each in wrong]
    for call in calls:
        said = command(*call, code=USAGE).err.splitlines()
        lines = [line for line in said if "warning" not in line]
        assert len(lines) == 1 and lines[0].startswith("dstore: the ")
        assert secret not in "".join(said)


def test_a_member_that_starts_without_its_database_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = "postgresql://dstore:hunter2@127.0.0.1:9/name"
    with dstore.Global("tcp://127.0.0.1:0", engine=url, ownership_lease=OWNERSHIP) as served:
        assert "tried again until it can be used" in caplog.text
        assert "hunter2" not in caplog.text
        with RawClient(served.address) as raw:
            raw.socket.send(wire.encode(AskMap(0, 0, 1)))
            assert not raw.socket.poll(ANSWER_MS)


def test_options_that_do_not_go_together_are_refused(command: Command) -> None:
    url = "postgresql://localhost/name"
    for arguments, said in [
        (("--engine", "mysql://localhost/name"), "begins with postgresql://"),
        (("--engine", url, "--data", "folder"), "--data is for a Global without --engine"),
        (("--advertise", "host:1"), "--advertise is for a member"),
        (("--ownership-lease", "5"), "--ownership-lease is for a member"),
        (("--engine", url, "--address", "*:0", "--insecure"), "give advertise"),
    ]:
        assert said in command("global", *arguments, code=USAGE).err
