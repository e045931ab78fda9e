"""Attacks on what Global keeps: sessions, writes, waits, uploads, values, and files of the host."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgpack

import dstore
from dstore import config
from dstore.protocol.content import Hasher
from dstore.protocol.messages import (
    Ack,
    Del,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Large,
    Refusal,
    Refused,
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
)
from tests.faults.attack import (
    DELAY_MAX,
    MIB,
    Target,
    attack,
    until_cut,
)
from tests.faults.meter import peak
from tests.faults.raw_peer import crowd
from tests.integration.processes import ROOT, GlobalProcess

# ---- what Global keeps for a session ------------------------------------------------------------


@attack(bound=16 * MIB)
def sessions_of_others(target: Target) -> str:
    """Acknowledge, say goodbye and write for sessions that may belong to other peers."""
    tried = answered = 0
    with target.joined() as peer:
        for number in target.turns(3_000):
            ident = number if number % 2 else target.dice.getrandbits(63)
            if ident in (peer.session, peer.secret):
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
    with target.node() as node:
        node.set_many(dict.fromkeys(keys, 1))
    joined = cacheable = 0
    with crowd() as peers:
        for _ in target.turns(200):
            with until_cut():
                peers.append(target.joined())
                joined += 1
                for at in range(0, len(keys), 2_000):
                    reply = peers[-1].ask(Get(*peers[-1].envelope, keys[at : at + 2_000]))
                    if isinstance(reply, GetReply):
                        cacheable += sum(bool(each and each.cacheable) for each in reply.items)
    with target.node(timeout=30) as node:
        node.delete_many(keys)
    return f"{joined} sessions hold {cacheable:,} values"


@attack(bound=144 * MIB)
def waits(target: Target) -> str:
    """Wait for many keys that are never set."""
    asked = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(5))
        for number in target.turns(150_000):
            with until_cut():
                peer = peers[number % len(peers)]
                peer.say(Wait(*peer.envelope, f"never/{number}".ljust(300, "é"), 60.0))
                asked += 1
    return f"{asked:,} asked"


@attack(bound=96 * MIB)
def uploads(target: Target) -> str:
    """Begin uploads of large values without end, and finish none."""
    begun = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        chunk = bytes(1 << 16)
        for number in target.turns(2_000):
            with until_cut():
                peer = peers[number % len(peers)]
                stored = Stored(os.urandom(16), "bytes", Large(16 * MIB, bytes(32)))
                peer.ask(Stage(*peer.envelope, stored, 0, chunk))
                begun += 1
    return f"{begun} begun"


@attack(bound=64 * MIB)
def lying_syncs(target: Target) -> str:
    """Ask for the whole log of deletions again and again, and for metrics, and for all keys."""
    asked = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        for number in target.turns(4_000):
            peer = peers[number % len(peers)]
            with until_cut():
                peer.say(Sync(peer.epoch, peer.secret, number + 1, 0, 0, False))
                peer.hear()
                peer.ask(Stats(*peer.envelope))
                peer.ask(Scan(*peer.envelope, "", "", config.KEYS_PER_MESSAGE_MAX))
                asked += 3
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
    with target.node(timeout=30) as node:
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
    with target.node(timeout=10) as node:
        for name, (codec, body) in bombs.items():
            key = f"hostile/bomb/{name}"
            items = [SetItem(key, Stored(os.urandom(16), codec, body))]
            with target.joined() as peer:  # a session for each: it is not renewed, and so ends
                reply = peer.ask(Set(*peer.envelope, 1, 1, True, items))
            if isinstance(reply, Refused) and reply.refusal is Refusal.DENIED:
                return "it may not write"
            assert isinstance(reply, SetReply), reply
            before = peak(os.getpid())
            for _ in range(3):
                try:
                    node.get(key)
                except (dstore.ValueCorrupt, dstore.UnknownCodec):
                    read += 1
            grown = peak(os.getpid()) - before
            assert grown < 128 * MIB, f"{name}: the reader took {grown / MIB:.0f} MiB"
            node.delete(key)
    return f"{read} of {3 * len(bombs)} reads refused, none hurt"


def _array_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return struct.pack("<H", len(text)) + text.encode()


@attack(bound=64 * MIB)
def fetches_of_others(target: Target) -> str:
    """Ask for bytes of large values by guessing, by the token of another key, and far too far."""
    asked = refused = 0
    with target.joined() as peer, until_cut():
        body = os.urandom(100)
        large = Stored(os.urandom(16), "bytes", Large(len(body), content_digest(body)))
        peer.ask(Stage(*peer.envelope, large, 0, body))
        peer.ask(Set(*peer.envelope, 1, 0, True, [SetItem("hostile/large", large)]))
        small = large._replace(body=b"small")
        peer.ask(Set(*peer.envelope, 2, 0, True, [SetItem("hostile/small", small)]))
        for key in ("hostile/small", "hostile/none", "honest0"):
            answer = peer.ask(Fetch(*peer.envelope, key, large.token, 0, 100))
            assert type(answer).__name__ == "Refused", f"{key} gives the bytes of another key"
            refused += 1
        for _ in target.turns(3_000):
            peer.ask(
                Fetch(
                    *peer.envelope, "hostile/large", os.urandom(16), 1 << 61, config.CHUNK_BYTES_MAX
                )
            )
            asked += 1
    return f"{asked} asked, {refused} with the token of another key"


@attack(bound=64 * MIB)
def large_values_of_one_byte(target: Target) -> str:
    """Begin many uploads that are complete at once, and never bind them."""
    begun = 0
    with crowd() as peers:
        peers += (target.joined() for _ in range(4))
        for number in target.turns(4_000):
            with until_cut():
                peer = peers[number % len(peers)]
                stored = Stored(os.urandom(16), "bytes", Large(1, content_digest(b"x")))
                peer.ask(Stage(*peer.envelope, stored, 0, b"x"))
                begun += 1
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
        target.node() as writer,
        target.node(shm="", timeout=DELAY_MAX) as reader,
    ):
        for turn in range(target.count(10)):
            key = f"hostile/shared/{turn}"
            writer.set(key, os.urandom(3 * MIB))
            for path in folder.rglob("*"):
                if path.parent.name == "hosts":  # a table cut short ends those who map it
                    continue
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
