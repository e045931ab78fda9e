"""Peers that do not follow the protocol, against a real Global that honest Nodes use meanwhile.

    python -m tests.faults.hostile [--scale 0.1] [--seed N] [--only NAME ...]

Each attack is bounded in what it sends and in time. While it runs, honest processes read, write and
delete (see :mod:`tests.faults.honest`), and Global's memory is measured. The table at the end has
for each attack its bound and what was measured. The exit code is 1 if a value was stale, an honest
call was refused or took longer than ``DELAY_MAX``, Global took more memory than the bound, died, or
kept descriptors or sessions afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import msgpack

import dstore
from dstore import config
from dstore.protocol import wire
from dstore.protocol.content import Hasher
from dstore.protocol.messages import (
    Ack,
    Del,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Large,
    Scan,
    Set,
    SetItem,
    SetReply,
    SetStatus,
    Stage,
    Stats,
    Stored,
    Sync,
    Unstage,
    Wait,
    Welcome,
)
from dstore.testing import private_shared_memory, start_global
from tests.faults.honest import NOTHING, Honest, Told
from tests.faults.raw_peer import MORE, RawPeer, crowd, frame, frame_head
from tests.integration.processes import ROOT, GlobalProcess, free_port

MIB = 1 << 20
LEASE = 0.5
MAX_CLIENTS = 300
MEMORY_LIMIT = 128 * MIB
DELAY_MAX = 5.0
"""Seconds that an honest call may take while Global is attacked: a Node's usual timeout."""
ATTACK_SECONDS = 20.0
"""After this time an attack sends no more."""
SETTLE_SECONDS = 30.0
"""Within this time after an attack Global must be rid of it."""
SAMPLE_SECONDS = 0.01


class Target:
    """A Global to be attacked, and how."""

    def __init__(
        self, address: str, pid: int, dice: random.Random, scale: float, source: str
    ) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self.publisher = f"{host}:{int(port) + 1}"
        self.pid = pid
        self.dice = dice
        self.scale = scale
        self.source = source  # its peers' address; one may be banned for a while after an attack
        self.until = time.monotonic() + ATTACK_SECONDS

    def count(self, number: int) -> int:
        """The given number in a full run, less in a short one."""
        return max(1, int(number * self.scale))

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def peer(self, kind: str = "DEALER", identity: bytes = b"", *, shake: bool = True) -> RawPeer:
        where = self.publisher if kind == "SUB" else self.address
        return RawPeer(where, kind, identity, shake=shake, source=self.source)

    def joined(self) -> RawPeer:
        peer = self.peer()
        peer.join()
        return peer


class Attack(NamedTuple):
    """``bound`` is in bytes, of memory that Global may take beyond what it had before."""

    name: str
    bound: int
    run: Callable[[Target], str]


ATTACKS: list[Attack] = []


def attack(bound: int) -> Callable[[Callable[[Target], str]], Callable[[Target], str]]:
    """Register an attack. It returns in a few words what it did, or what was refused."""

    def register(run: Callable[[Target], str]) -> Callable[[Target], str]:
        ATTACKS.append(Attack(run.__name__.replace("_", " "), bound, run))
        return run

    return register


@contextlib.contextmanager
def until_cut() -> Iterator[None]:
    """What is sent here may end with the connection."""
    with contextlib.suppress(OSError):
        yield


# ---- connections ------------------------------------------------------------------------------


@attack(bound=16 * MIB)
def claimed_names(target: Target) -> str:
    """Claim the names that ZeroMQ would give to the next peers, of every Global so far."""
    first = _first_name()
    claimed = target.count(200)
    with crowd() as peers:
        for number in range(first, first + claimed):
            name = struct.pack(">I", number & 0xFFFFFFFF)
            peers.append(target.peer(identity=b"\0" + name))
        for _ in range(10):
            target.joined().close()
        twins = [target.peer(identity=b"twin") for _ in range(3)]
        peers += twins
        served = sum(isinstance(each.join(), Welcome) for each in twins)
    return f"{claimed} names claimed, {served} of 3 peers of one name served"


def _first_name() -> int:
    """The number of the first peer of the first ROUTER of a process, always the same."""
    script = (
        "import zmq; c = zmq.Context(); r = c.socket(zmq.ROUTER); d = c.socket(zmq.DEALER); "
        "d.connect(f'tcp://127.0.0.1:{r.bind_to_random_port(\"tcp://127.0.0.1\")}'); "
        "d.send(b''); print(r.recv().hex()); d.close(0); r.close(0); c.term()"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int.from_bytes(bytes.fromhex(said.stdout.decode())[1:], "big")


@attack(bound=64 * MIB)
def many_connections(target: Target) -> str:
    """One address opens connections without end, some with a handshake, and keeps them."""
    opened = cut = 0
    with crowd() as peers:
        for number in range(target.count(3_000)):
            with until_cut():
                peers.append(target.peer(shake=number % 3 == 0))
                opened += 1
            if target.over:
                break
        cut = sum(each.is_cut for each in peers)
    return f"{opened} opened, {cut} cut"


@attack(bound=16 * MIB)
def many_sessions(target: Target) -> str:
    """Say HELLO without end, over some connections."""
    said = welcome = 0
    with crowd() as peers:
        peers += (target.peer() for _ in range(10))
        for number in range(target.count(20_000)):
            with until_cut():
                peer = peers[number % len(peers)]
                answer = peer.ask(Hello(os.urandom(16), 0, 0, "\U0001f600" * 256))
                said, welcome = said + 1, welcome + isinstance(answer, Welcome)
            if target.over:
                break
    return f"{said} said, {welcome} welcome"


@attack(bound=16 * MIB)
def joins_and_leaves(target: Target) -> str:
    """Come and go without end."""
    count = 0
    while count < target.count(3_000) and not target.over:
        count += 1
        with until_cut(), target.peer() as peer, target.peer("SUB") as listener:
            listener.send(b"\x01" + wire.PREFIX)
            peer.join()
            peer.say(Goodbye(peer.epoch, peer.session))
    return f"{count} joins and leaves"


@attack(bound=16 * MIB)
def slow_handshakes(target: Target) -> str:
    """Send a handshake byte by byte, or half of one, or garbage."""
    with crowd() as peers:
        for number in range(target.count(100)):
            with until_cut():
                peer = target.peer(shake=False)
                peers.append(peer)
                peer.socket.sendall(
                    (b"\xff" + bytes(8), os.urandom(64), b"GET / HTTP/1.1")[number % 3]
                )
        time.sleep(1.0)
    return f"{len(peers)} connections"


# ---- frames -----------------------------------------------------------------------------------


@attack(bound=256 * MIB)
def a_message_without_end(target: Target) -> str:
    """Frames that announce another one, until the connection is cut."""
    part = frame(bytes(MIB), MORE)
    sent = 0
    with target.peer() as peer, until_cut():
        while sent < target.count(4096 * MIB) and not target.over:
            peer.socket.sendall(part)
            sent += len(part)
    return f"{sent / MIB:,.0f} MiB sent"


@attack(bound=256 * MIB)
def empty_frames(target: Target) -> str:
    """A message of millions of frames without bytes."""
    some = frame(b"", MORE) * 100_000
    sent = 0
    with target.peer() as peer, until_cut():
        while sent < target.count(8_000_000) and not target.over:
            peer.socket.sendall(some)
            sent += 100_000
        peer.socket.sendall(frame(b""))
    return f"{sent:,} frames sent"


@attack(bound=384 * MIB)
def complete_messages_of_empty_frames(target: Target) -> str:
    """Several peers send hundreds of thousands of frames each, and the last one all at once."""
    count = target.count(400_000)
    with crowd() as peers:
        peers += (target.peer() for _ in range(6))
        for peer in peers:
            with until_cut():
                peer.socket.sendall(frame(b"", MORE) * count)
        for peer in peers:
            with until_cut():
                peer.socket.sendall(frame(b""))
        time.sleep(1.0)
        with until_cut():
            peers.append(target.peer())
            peers[-1].join()
            return f"6 times {count:,} frames, and heard again"
    return f"6 times {count:,} frames, then refused"


@attack(bound=128 * MIB)
def halves_of_frames(target: Target) -> str:
    """Many peers send most of a large frame each, and then nothing."""
    size = config.FRAME_BYTES_MAX
    with crowd() as peers:
        for _ in range(target.count(100)):
            with until_cut():
                peer = target.peer()
                peers.append(peer)
                peer.socket.sendall(frame_head(size) + bytes(size - 1))
        time.sleep(1.0)
        cut = sum(each.is_cut for each in peers)
    return f"{len(peers)} halves of {size / MIB:.1f} MiB, {cut} cut"


@attack(bound=64 * MIB)
def huge_frames(target: Target) -> str:
    """Frames that say that they are larger than any of ours."""
    count = target.count(100)
    cut = 0
    for exponent in range(count):
        with target.peer() as peer, until_cut():
            peer.socket.sendall(frame_head(1 << (25 + exponent % 38)) + bytes(1000))
            peer.hear()
        cut += 1
    return f"{cut} sent"


@attack(bound=128 * MIB)
def shapes_that_are_none(target: Target) -> str:
    """Frames of ours, as large as may be, whose items are not those of any message."""
    room = config.FRAME_BYTES_MAX - 64
    pairs = b"\x92" * (room // 2) + b"\xc0" * (room // 2)
    bombs = [
        b"\xdd" + struct.pack(">I", room) + b"\x00" * room,
        b"\xdd" + struct.pack(">I", room) + b"\x90" * room,
        b"\xdd" + struct.pack(">I", room) + b"\x80" * room,
        b"\x97\x05\x01\x01\x01\xdd" + struct.pack(">I", room) + b"\x90" * room,
        b"\x98\x06\x01\x01\x01\x01\x00\xc2\xdd" + struct.pack(">I", room) + b"\x90" * room,
        b"\x95\x05\x01\x01\x01" + pairs,
        b"\x91" * room,
        b"\xdf" + struct.pack(">I", room // 2) + b"\x00\x90" * (room // 2),
    ]
    refused = 0
    for _ in range(target.count(5)):
        with target.peer() as peer, until_cut():
            peer.join()
            for bomb in bombs:
                peer.send(wire.PREFIX + bomb)
                peer.hear()
                refused += 1
    return f"{refused} refused"


@attack(bound=64 * MIB)
def garbage(target: Target) -> str:
    """Frames at random, single and several, on both ports."""
    sent = 0
    for number in range(target.count(300)):
        kind = ("DEALER", "SUB", "REQ", "ROUTER", "PAIR")[number % 5]
        with until_cut(), target.peer(kind) as peer:
            for _ in range(20):
                size = target.dice.choice((0, 1, 5, 60, 300, 5_000))
                start = target.dice.choice((b"", wire.PREFIX, b"\x01", b"\x00"))
                body = start + target.dice.randbytes(size)
                flags = target.dice.choice((0, 0, 1, 4, 2 if size > 255 else 0, 7, 64))
                peer.socket.sendall(frame(body, flags & ~2))
                sent += 1
    return f"{sent} frames"


# ---- sockets that are not read ----------------------------------------------------------------


@attack(bound=320 * MIB)
def replies_that_are_not_read(target: Target) -> str:
    """Ask for a large reply again and again, and never read."""
    with dstore.Node(target.address) as node:
        node.set("hostile/big", os.urandom(60_000), replace=True)
    asked = 0
    with crowd() as peers:
        for _ in range(4):
            peer = target.joined()
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peers.append(peer)
        while asked < target.count(40_000) and not target.over:
            with until_cut():
                peer = peers[asked % len(peers)]
                peer.say(Get(*peer.envelope, ["hostile/big"]))
            asked += 1
        time.sleep(0.5)
        cut = sum(_is_cut_unread(each) for each in peers)
    with dstore.Node(target.address, timeout=DELAY_MAX) as node:
        node.delete("hostile/big")
    return f"{asked * 60_000 / MIB:,.0f} MiB asked for, {cut} of 4 cut"


def _is_cut_unread(peer: RawPeer) -> bool:
    with contextlib.suppress(OSError):
        peer.socket.settimeout(0.2)
        for _ in range(2):
            peer.socket.sendall(b"\0")
            time.sleep(0.05)
        return False
    return True


@attack(bound=32 * MIB)
def subscriptions(target: Target) -> str:
    """Subscribe to long topics, and to many short ones."""
    sent = 0
    for _ in range(target.count(16)):
        with until_cut(), target.peer("SUB") as peer:
            peer.socket.sendall(frame(b"\x01" + os.urandom(MIB - 1)))
            sent += MIB
            peer.hear()
    with until_cut(), target.peer("SUB") as peer:
        for number in range(target.count(2_000_000) // 1000):
            some = b"".join(frame(b"\x01" + struct.pack(">II", number, n)) for n in range(1000))
            peer.socket.sendall(some)
            sent += len(some)
    return f"{sent / MIB:.1f} MiB of topics sent"


@attack(bound=96 * MIB)
def a_subscriber_that_does_not_read(target: Target) -> str:
    """Hear every deletion, and never read; while others delete keys with long names."""
    with target.peer("SUB") as peer, target.joined() as writer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.socket.sendall(frame(b"\x01"))
        write = 0
        for turn in range(target.count(100)):
            if target.over:
                break
            keys = [f"hostile/{turn}/{n}/".ljust(500, "x") for n in range(1000)]
            items = [SetItem(key, Stored(os.urandom(16), "bytes", b"")) for key in keys]
            for message in (
                Set(*writer.envelope, write + 1, write + 1, False, items),
                Del(*writer.envelope, write + 2, write + 2, True, keys),
            ):
                with until_cut():
                    writer.ask(message)
            write += 2
            writer.say(Sync(writer.epoch, writer.session, turn + 1, 0, write + 1, False))
            writer.hear()
    return f"{write // 2} times 1,000 deletions"


# ---- what Global keeps for a session ------------------------------------------------------------


@attack(bound=16 * MIB)
def sessions_of_others(target: Target) -> str:
    """Acknowledge, say goodbye and write for sessions that may be anybody's."""
    tried = answered = 0
    with target.joined() as peer:
        for number in range(target.count(3_000)):
            ident = number if number % 2 else target.dice.getrandbits(63)
            if ident == peer.session:
                continue
            for message in (
                Ack(peer.epoch, ident, 1 << 40),
                Sync(peer.epoch, ident, 1, 0, 1 << 40, False),
                Unstage(peer.epoch, ident, bytes(16)),
                Goodbye(peer.epoch, ident),
                Del(peer.epoch, ident, 1, 1 << 40, 1 << 40, True, ["honest0"]),
            ):
                with until_cut():
                    peer.say(message)
                    tried += 1
            if target.over:
                break
        with until_cut():
            reply = peer.ask(Stats(*peer.envelope))
            answered += getattr(reply, "refusal", None) is None
    return f"{tried} messages in other names"


@attack(bound=96 * MIB)
def outcomes(target: Target) -> str:
    """Write again and again, and never say that an outcome was seen."""
    refused = writes = 0
    items = [f"no such key {number}" for number in range(config.KEYS_PER_MESSAGE_MAX)]
    with target.joined() as peer, until_cut():
        for write in range(1, target.count(300)):
            message = Del(*peer.envelope, write, 0, True, items)
            refused += type(peer.ask(message)).__name__ == "Refused"
            writes += 1
            if target.over:
                break
    return f"{writes} writes of {len(items):,} keys, {refused} refused"


@attack(bound=64 * MIB)
def holders(target: Target) -> str:
    """Many sessions hold many keys."""
    keys = [f"hostile/held/{number}" for number in range(target.count(20_000))]
    with dstore.Node(target.address) as node:
        node.set_many(dict.fromkeys(keys, 1))
    joined = cacheable = 0
    with crowd() as peers:
        for _ in range(target.count(200)):
            with until_cut():
                peers.append(target.joined())
                joined += 1
                for at in range(0, len(keys), 2_000):
                    reply = peers[-1].ask(Get(*peers[-1].envelope, keys[at : at + 2_000]))
                    if isinstance(reply, GetReply):
                        cacheable += sum(bool(each and each.cacheable) for each in reply.items)
            if target.over:
                break
    with dstore.Node(target.address, timeout=30) as node:
        node.delete_many(keys)
    return f"{joined} sessions hold {cacheable:,} values"


@attack(bound=144 * MIB)
def waits(target: Target) -> str:
    """Wait for many keys that nobody sets."""
    asked = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(5))
        for number in range(target.count(150_000)):
            with until_cut():
                peer = peers[number % len(peers)]
                peer.say(Wait(*peer.envelope, f"never/{number}".ljust(300, "é"), 60.0))
                asked += 1
            if target.over:
                break
    return f"{asked:,} asked"


@attack(bound=96 * MIB)
def uploads(target: Target) -> str:
    """Begin uploads of large values without end, and finish none."""
    begun = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        chunk = bytes(1 << 16)
        for number in range(target.count(2_000)):
            with until_cut():
                peer = peers[number % len(peers)]
                stored = Stored(os.urandom(16), "bytes", Large(16 * MIB, bytes(32)))
                peer.ask(Stage(*peer.envelope, stored, 0, chunk))
                begun += 1
            if target.over:
                break
    return f"{begun} begun"


@attack(bound=64 * MIB)
def lying_syncs(target: Target) -> str:
    """Ask for the whole log of deletions again and again, and for metrics, and for all keys."""
    asked = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        for number in range(target.count(4_000)):
            peer = peers[number % len(peers)]
            with until_cut():
                peer.say(Sync(peer.epoch, peer.session, number + 1, 0, 0, False))
                peer.hear()
                peer.ask(Stats(*peer.envelope))
                peer.ask(Scan(*peer.envelope, "", "", config.KEYS_PER_MESSAGE_MAX))
                asked += 3
            if target.over:
                break
    return f"{asked} asked"


# ---- values -----------------------------------------------------------------------------------


@attack(bound=144 * MIB)
def wide_keys_and_long_codecs(target: Target) -> str:
    """Fill the store with what Python needs much memory for; the limit counts it."""
    stored = refused = 0
    keys: list[str] = []
    with target.joined() as peer:
        for turn in range(target.count(2_000)):
            items = [
                SetItem(
                    f"{turn}.{n}".ljust(120, "\U0001f600"),
                    Stored(os.urandom(16), f"{turn}.{n}".ljust(64, "c"), b""),
                )
                for n in range(100)
            ]
            with until_cut():
                reply = peer.ask(Set(*peer.envelope, turn + 1, turn + 1, False, items))
                if isinstance(reply, SetReply):
                    good = [
                        item.key
                        for item, result in zip(items, reply.items)
                        if result.status is SetStatus.STORED
                    ]
                    keys += good
                    stored, refused = stored + len(good), refused + len(items) - len(good)
            if target.over or refused:
                break
    with dstore.Node(target.address, timeout=30) as node:
        for at in range(0, len(keys), 1_000):
            node.delete_many(keys[at : at + 1_000])
    return f"{stored:,} keys stored, {refused} refused"


@attack(bound=64 * MIB)
def values_that_hurt_readers(target: Target) -> str:
    """Store values that take much memory or time to decode; a reader must survive them."""
    one = 512 << 10
    colliding = {  # hash(-1) == hash(-2)
        msgpack.ExtType(1, msgpack.packb([-1 - (number >> bit & 1) for bit in range(15)])): 0
        for number in range(1 << 15)
    }
    bombs = {
        "lists": ("msgpack", b"\xdd" + struct.pack(">I", one) + b"\x90" * one),
        "maps": ("msgpack", b"\xdd" + struct.pack(">I", one) + b"\x80" * one),
        "keys": ("msgpack", msgpack.packb(colliding)),
        "deep": ("msgpack", b"\x91" * one),
        "array": ("ndarray", b"\x93NUMPY\x01\x00" + _array_header("(4611686018427387904, 0)")),
        "text": ("text", b"\xff" * 100),
    }
    read = 0
    with target.joined() as peer, dstore.Node(target.address, timeout=10) as node:
        for write, (name, (codec, body)) in enumerate(bombs.items(), 1):
            key = f"hostile/bomb/{name}"
            items = [SetItem(key, Stored(os.urandom(16), codec, body))]
            reply = peer.ask(Set(*peer.envelope, write, write, True, items))
            assert isinstance(reply, SetReply), reply
            before = _peak(os.getpid())
            for _ in range(3):
                try:
                    node.get(key)
                except (dstore.ValueCorrupt, dstore.UnknownCodec):
                    read += 1
            grown = _peak(os.getpid()) - before
            assert grown < 128 * MIB, f"{name}: the reader took {grown / MIB:.0f} MiB"
            node.delete(key)
    return f"{read} of {3 * len(bombs)} reads refused, none hurt"


def _array_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return struct.pack("<H", len(text)) + text.encode()


@attack(bound=64 * MIB)
def fetches_of_others(target: Target) -> str:
    """Ask for bytes of large values by guessing, far beyond the end, and without reading."""
    asked = 0
    with target.joined() as peer, until_cut():
        for _ in range(target.count(3_000)):
            peer.ask(Fetch(*peer.envelope, os.urandom(16), 1 << 61, config.CHUNK_BYTES_MAX))
            asked += 1
            if target.over:
                break
    return f"{asked} asked"


@attack(bound=64 * MIB)
def large_values_of_one_byte(target: Target) -> str:
    """Begin many uploads that are complete at once, and never bind them."""
    begun = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        for number in range(target.count(4_000)):
            with until_cut():
                peer = peers[number % len(peers)]
                stored = Stored(os.urandom(16), "bytes", Large(1, content_digest(b"x")))
                peer.ask(Stage(*peer.envelope, stored, 0, b"x"))
                begun += 1
            if target.over:
                break
    return f"{begun} begun"


def content_digest(data: bytes) -> bytes:
    hasher = Hasher("bytes")
    hasher.update(data)
    return hasher.digest()


# ---- the host -----------------------------------------------------------------------------------


@attack(bound=64 * MIB)
def shared_files_cut_short(target: Target) -> str:
    """Cut the files of large values short, as any process of the same user can, and read them."""
    folder = Path(os.environ["DSTORE_SHM"])
    cut = refused = 0
    with (
        dstore.Node(target.address) as writer,
        dstore.Node(target.address, shm="", timeout=DELAY_MAX) as reader,
    ):
        for turn in range(target.count(10)):
            key = f"hostile/shared/{turn}"
            writer.set(key, os.urandom(3 * MIB))
            for path in folder.rglob("*"):
                if path.is_file() and path.stat().st_size >= 3 * MIB:
                    os.truncate(path, target.dice.choice((0, 1, 4096, MIB, 3 * MIB - 4096)))
                    cut += 1
            try:
                reader.get(key)
            except dstore.DstoreError:
                refused += 1
            writer.delete(key)
    return f"{cut} files cut short, {refused} reads refused"


@attack(bound=16 * MIB)
def a_path_that_is_taken(target: Target) -> str:
    """Start a second Global at an ipc path whose first one accepts no more connections."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        address = f"ipc://{folder}/g"
        first = stack.enter_context(GlobalProcess(address))
        first.signal(signal.SIGSTOP)
        for _ in range(500):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            if waiting.connect_ex(f"{folder}/g"):
                break
        second = subprocess.run(
            [sys.executable, "-m", "dstore", "global", "--address", address],
            capture_output=True,
            timeout=30,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert b"in use" in second.stderr, second.stderr
        first.signal(signal.SIGCONT)
        stack.pop_all().close()
    return f"refused with exit code {second.returncode}"


# ---- the run ----------------------------------------------------------------------------------


@dataclass
class Row:
    """What an attack did."""

    attack: Attack
    said: str
    grown: int
    seconds: float
    told: Told
    left: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        told, wrong = self.told, list(self.left)
        if told.stale:
            wrong.append(f"{told.stale} stale reads")
        if told.refused:
            wrong.append(f"{told.refused} honest calls refused ({told.complaint})")
        if told.longest > DELAY_MAX:
            wrong.append(f"an honest call took {told.longest:.1f} s")
        if self.grown > self.attack.bound:
            wrong.append(f"{self.grown / MIB:.0f} MiB of memory")
        return wrong

    def __str__(self) -> str:
        told = self.told
        return (
            f"{self.attack.name:32} {self.attack.bound / MIB:5.0f} {self.grown / MIB:6.0f} "
            f"{told.longest:6.2f} {told.calls:7,} {told.stale:3} {told.refused:3}  {self.said}"
            + "".join(f"\n    WRONG: {each}" for each in self.wrong)
        )


HEADING = (
    f"{'attack':32} {'MiB':>5} {'MiB':>6} {'s':>6} {'calls':>7}\n"
    f"{'':32} {'bound':>5} {'seen':>6} {'worst':>6} {'honest':>7} old ref  what it did"
)


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.wait()


class Meter:
    """The most memory that a process has had, from when the block begins."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self.before = self.most = _memory(pid)
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                self.most = max(self.most, _memory(self._pid))

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.before


def _memory(pid: int) -> int:
    """Resident bytes of a process, without what it shares."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _peak(pid: int) -> int:
    """The most that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Run:
    """A Global, honest processes, and the attacks one after the other."""

    def __init__(self, seed: int, scale: float, names: list[str]) -> None:
        self._seed = seed
        self._scale = scale
        self._attacks = [each for each in ATTACKS if not names or each.name in names]

    def run(self, say: Callable[[object], None] = print) -> list[Row]:
        rows = []
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(private_shared_memory())
            log = stack.enter_context(open(Path(folder) / "log", "w+b"))
            server = self._global(log)
            stack.callback(_end, server)
            honest = stack.enter_context(Honest(self._address, self._seed))
            say(HEADING)
            for each in self._attacks:
                rows.append(self._attack(each, server, honest))
                say(rows[-1])
                if server.poll() is not None:
                    log.seek(0)
                    say(log.read().decode(errors="replace")[-3000:])
                    break
        return rows

    def _global(self, log: IO[bytes]) -> subprocess.Popen[str]:
        self._address = f"tcp://127.0.0.1:{free_port()}"
        options = ["--lease", str(LEASE), "--memory-limit", str(MEMORY_LIMIT)]
        options += ["--max-clients", str(MAX_CLIENTS)]
        return start_global(*options, address=self._address, stderr=log).process

    def _attack(self, each: Attack, server: subprocess.Popen[str], honest: Honest) -> Row:
        honest.ask()
        calm = _descriptors(server.pid)
        dice = random.Random(f"{self._seed} {each.name}")
        source = f"127.0.1.{1 + ATTACKS.index(each)}"
        target = Target(self._address, server.pid, dice, self._scale, source)
        begun = time.monotonic()
        with Meter(server.pid) as meter:
            try:
                said = each.run(target)
                left = []
            except Exception as error:
                said, left = "", [f"{type(error).__name__}: {error}"]
            told = honest.ask()
        row = Row(each, said, meter.grown, time.monotonic() - begun, told, left)
        if server.poll() is not None:
            row.left.append(f"Global has ended with {server.returncode}")
        else:
            row.left += self._settle(server.pid, calm, honest, row)
        return row

    def _settle(self, pid: int, calm: int, honest: Honest, row: Row) -> list[str]:
        """What Global still has of an attack after a while."""
        until = time.monotonic() + SETTLE_SECONDS
        sessions = 0
        while time.monotonic() < until:
            with dstore.Node(self._address, timeout=DELAY_MAX) as node:
                sessions = int(node.global_stats()["sessions"]) - 1
            row.told += honest.ask()
            if _descriptors(pid) <= calm + 6 and sessions <= 4:
                return []
            time.sleep(0.2)
        return [f"{_descriptors(pid) - calm} descriptors, {sessions} sessions left"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="0.1: a tenth of each attack")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {options.seed}", flush=True)
    rows = Run(options.seed, options.scale, options.only).run(lambda row: print(row, flush=True))
    wrong = [row for row in rows if row.wrong]
    total = sum((row.told for row in rows), NOTHING)
    print(
        f"{len(rows)} attacks, {total.calls:,} honest calls, {total.reads:,} reads, "
        f"{total.stale} stale, {total.refused} refused; {len(wrong)} attacks beyond a bound"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
