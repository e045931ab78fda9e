"""Members of a cluster as processes, over a real PostgreSQL: killed, stopped, and asked to leave.

Client programs see the same through a Node; here each member is asked by itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pytest
import zmq

import dstore
from dstore.protocol import wire
from dstore.protocol.messages import (
    AskMap,
    Get,
    GetReply,
    MapReply,
    Set,
    SetItem,
    Stored,
)
from dstore.protocol.partitions import PARTITIONS, partition_of
from dstore.testing import start_global
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess, RawClient
from tests.postgres import Postgres

OWNERSHIP = 1.0
"""Seconds of an ownership lease in these tests."""
LEASE = 0.3
KEYS = [f"k{number}" for number in range(100)]
LARGE = bytes(range(256)) * 1024
PAUSE = 0.01
"""Seconds between two looks."""
OK, REFUSED, USAGE = 0, 1, 2


def command(*arguments: str, code: int = OK) -> subprocess.CompletedProcess[str]:
    """Run ``dstore`` as a process of its own, and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done


def status(url: str) -> Any:
    return json.loads(command("cluster", "status", url, "--json").stdout)


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
            if not raw.socket.poll(int(1000 * OWNERSHIP)):
                return None
            found = raw.receive()
        assert isinstance(found, MapReply)
        return found

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
    command("cluster", "init", postgres_url, "--no-standby")
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
    until(lambda: len(member.owned()) == PARTITIONS)
    return member


def share(*members: MemberProcess) -> None:
    """Wait until the members have shared all partitions."""
    until(lambda: all(each.owned() for each in members))
    until(lambda: sum(len(each.owned()) for each in members) == PARTITIONS)


def get_many(member: MemberProcess, keys: list[str]) -> dict[str, Any]:
    """Read keys of one member, when it serves them."""
    with dstore.Node(member.address, timeout=PATIENCE) as node:
        until(lambda: reads(node, keys))
        found: dict[str, Any] = node.get_many(keys)
    return found


def reads(node: dstore.Node, keys: list[str]) -> bool:
    try:
        node.get_many(keys)
    except dstore.DstoreError:
        return False
    return True


# ---- joining and leaving -------------------------------------------------------------------------


def test_members_share_the_keys_and_hand_them_over(start: Start, url: str) -> None:
    one = serves_all(start())
    values = {key: key.upper() for key in KEYS}
    with dstore.Node(one.address) as node:
        node.set_many({**values, "large": LARGE})
        node.set("expires", 1, ttl=1000.0)
    two = start()
    share(one, two)
    for each in (one, two):
        assert get_many(each, each.mine()) == {key: values[key] for key in each.mine()}
    assert one.stop() == OK
    serves_all(two)
    assert get_many(two, KEYS) == values
    with dstore.Node(two.address) as node:
        assert bytes(node.get("large")) == LARGE
        assert 900.0 < (node.ttl("expires") or 0.0) <= 1000.0
        figures = node.global_stats()
    assert figures["partitions"] == PARTITIONS and figures["members"] == 1


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


def test_no_read_fails_while_members_come_and_go(start: Start) -> None:
    one = serves_all(start())
    with dstore.Node(one.address) as node:
        node.set_many({key: key.upper() for key in KEYS})
    two = start()
    with Reader([one.address, two.address], KEYS) as reader:
        share(one, two)
        reader.goes_on()
        assert one.stop() == OK
        assert "hands over" in one.log and "left the cluster" in one.log
        serves_all(two)
        reader.goes_on()
    assert reader.missed == []


def test_a_second_signal_ends_a_member_that_waits_for_its_database(
    new_postgres: Callable[..., Postgres],
) -> None:
    servers = new_postgres()
    url = servers.url()
    command("cluster", "init", url, "--no-standby")
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
    with dstore.Node(one.address) as node:
        node.set("k", "old")
    with RawClient(one.address) as raw:
        raw.join()
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
        until(lambda: one.map() is not None)  # it has joined again, as a new member
        reply = raw.ask(AskMap(0, 0, 4))
        assert isinstance(reply, MapReply)  # the others were not answered: this is the first one
        until(lambda: one.owned())
        share(one, two)
    owner = one if key in one.mine() else two
    assert get_many(owner, [key]) == {}


def test_without_the_database_members_end_and_come_back(
    new_postgres: Callable[..., Postgres],
) -> None:
    servers = new_postgres()
    url = servers.url()
    command("cluster", "init", url, "--no-standby")
    with MemberProcess(url) as member:
        serves_all(member)
        with dstore.Node(member.address) as node:
            node.set_many({key: key.upper() for key in KEYS})
        servers.primary.kill()
        until(lambda: member.map() is None)
        servers.primary.start()
        serves_all(member)
        assert get_many(member, KEYS) == {key: key.upper() for key in KEYS}


# ---- the command line ----------------------------------------------------------------------------


def test_status_and_drain(start: Start, url: str) -> None:
    one = serves_all(start())
    two = start()
    share(one, two)
    found = status(url)
    members = {each["address"]: each for each in found["members"]}
    assert set(members) == {one.address, two.address}
    assert all(each["beats"] for each in members.values())
    assert sum(each["partitions"] for each in members.values()) == PARTITIONS
    lines = command("cluster", "status", url).stdout.splitlines()
    assert lines[0].split()[:2] == ["MEMBER", "ADDRESS"]
    command("cluster", "drain", url, two.address.removeprefix("tcp://"))
    assert two.owned() == set()
    assert len(one.owned()) == PARTITIONS
    assert command("cluster", "drain", url, "nobody", code=REFUSED).stderr
    stats = json.loads(command("stats", "--address", one.address, "--json").stdout)
    assert stats["partitions"] == PARTITIONS
    assert 0 < stats["ownership_left"] <= OWNERSHIP


def test_a_database_that_cannot_be_used_is_said_in_one_line(postgres_url: str) -> None:
    secret = "hunter2"
    _, _, rest = postgres_url.partition("@")
    wrong = [
        postgres_url,  # it is not prepared
        f"postgresql://dstore:{secret}@{rest}",
        f"postgresql://dstore:{secret}@127.0.0.1:9/name",
        f"postgresql://dstore:{secret}@nowhere.invalid/name",
    ]
    for each in wrong:
        for arguments in (("global", "--address", "127.0.0.1:0", "--engine", each),
                          ("cluster", "status", each)):  # fmt: skip
            said = command(*arguments, code=USAGE).stderr.splitlines()
            lines = [line for line in said if "warning" not in line]
            assert len(lines) == 1 and lines[0].startswith("dstore: the database ")
            assert secret not in "".join(said)


def test_options_that_do_not_go_together_are_refused() -> None:
    url = "postgresql://localhost/name"
    for arguments, said in [
        (("--engine", "mysql://localhost/name"), "begins with postgresql://"),
        (("--engine", url, "--data", "folder"), "--data is for a Global without --engine"),
        (("--advertise", "host:1"), "--advertise is for a member"),
        (("--ownership-lease", "5"), "--ownership-lease is for a member"),
        (("--engine", url, "--address", "*:0", "--insecure"), "give advertise"),
    ]:
        assert said in command("global", *arguments, code=USAGE).stderr
