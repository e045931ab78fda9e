"""Attacks that abuse connections, frames and sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time

from dstore import config
from dstore.protocol import wire
from dstore.protocol.messages import (
    Del,
    Get,
    Goodbye,
    Hello,
    Set,
    SetItem,
    Stored,
    Sync,
    Welcome,
)
from tests.faults import handshakes
from tests.faults.attack import (
    DELAY_MAX,
    MIB,
    Target,
    attack,
    until_cut,
)
from tests.faults.raw_peer import MORE, RawPeer, crowd, frame_head

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
        for number in target.turns(3_000):
            with until_cut():
                peers.append(target.peer(shake=number % 3 == 0))
                opened += 1
        cut = sum(each.is_cut for each in peers)
    return f"{opened} opened, {cut} cut"


@attack(bound=16 * MIB)
def many_sessions(target: Target) -> str:
    """Say HELLO without end, over some connections."""
    said = welcome = 0
    with crowd() as peers:
        peers += (target.peer() for _ in range(10))
        for number in target.turns(20_000):
            with until_cut():
                peer = peers[number % len(peers)]
                answer = peer.ask(Hello(os.urandom(16), 0, 0, "\U0001f600" * 256))
                said, welcome = said + 1, welcome + isinstance(answer, Welcome)
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
            peer.say(Goodbye(peer.epoch, peer.secret))
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


@attack(bound=16 * MIB)
def handshakes_at_random(target: Target) -> str:
    """Greetings and commands of the handshake with any content, on both ports."""
    addresses = [target.address, target.publisher]
    begun = handshakes.play(addresses, target.dice, target.count(5_000), source=target.source)
    return f"{begun:,} begun"


# ---- frames -----------------------------------------------------------------------------------


@attack(bound=256 * MIB)
def a_message_without_end(target: Target) -> str:
    """Frames that announce another one, until the connection is cut."""
    part = bytes(MIB)
    sent = 0
    with target.peer() as peer, until_cut():
        while sent < target.count(4096 * MIB) and not target.over:
            peer.socket.sendall(peer.frame(part, MORE))
            sent += len(part)
    return f"{sent / MIB:,.0f} MiB sent"


@attack(bound=256 * MIB)
def empty_frames(target: Target) -> str:
    """A message of millions of frames without bytes."""
    sent = 0
    with target.peer() as peer, until_cut():
        while sent < target.count(8_000_000) and not target.over:
            peer.socket.sendall(peer.frames(b"", MORE, 100_000))
            sent += 100_000
        peer.socket.sendall(peer.frame(b""))
    return f"{sent:,} frames sent"


@attack(bound=384 * MIB)
def complete_messages_of_empty_frames(target: Target) -> str:
    """Several peers send hundreds of thousands of frames each, and the last one all at once."""
    count = target.count(400_000)
    with crowd() as peers:
        peers += (target.peer() for _ in range(6))
        for peer in peers:
            with until_cut():
                peer.socket.sendall(peer.frames(b"", MORE, count))
        for peer in peers:
            with until_cut():
                peer.socket.sendall(peer.frame(b""))
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
                peer.socket.sendall(peer.frame(body, flags & ~2))
                sent += 1
    return f"{sent} frames"


# ---- sockets that are not read ----------------------------------------------------------------


@attack(bound=320 * MIB)
def replies_that_are_not_read(target: Target) -> str:
    """Ask for a large reply again and again, and never read."""
    with target.node() as node:
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
    with target.node(timeout=DELAY_MAX) as node:
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
            peer.socket.sendall(peer.frame(b"\x01" + os.urandom(MIB - 1)))
            sent += MIB
            peer.hear()
    with until_cut(), target.peer("SUB") as peer:
        for number in range(target.count(2_000_000) // 1000):
            topics = (b"\x01" + struct.pack(">II", number, n) for n in range(1000))
            some = b"".join(map(peer.frame, topics))
            peer.socket.sendall(some)
            sent += len(some)
    return f"{sent / MIB:.1f} MiB of topics sent"


@attack(bound=96 * MIB)
def a_subscriber_that_does_not_read(target: Target) -> str:
    """Hear every deletion, and never read; while others delete keys with long names."""
    with target.peer("SUB") as peer, target.joined() as writer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.socket.sendall(peer.frame(b"\x01"))
        write = 0
        for turn in target.turns(100):
            keys = [f"hostile/{turn}/{n}/".ljust(500, "x") for n in range(1000)]
            items = [SetItem(key, Stored(os.urandom(16), "bytes", b"")) for key in keys]
            for message in (
                Set(*writer.envelope, write + 1, write + 1, False, items),
                Del(*writer.envelope, write + 2, write + 2, True, keys),
            ):
                with until_cut():
                    writer.ask(message)
            write += 2
            writer.say(Sync(writer.epoch, writer.secret, turn + 1, 0, write + 1, False))
            writer.hear()
    return f"{write // 2} times 1,000 deletions"
