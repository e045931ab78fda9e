"""Handshakes at random: greetings and commands of ZeroMQ's protocol as no honest peer sends them.

Some are random bytes, some are those of an honest peer, cut short, changed, repeated or in another
order. With CURVE an honest handshake is recorded first: it shows the server's public key in use, so
that a replay gets as far into ZeroMQ as one who has no key can get.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from tests.faults.raw_peer import COMMAND, MORE, RawPeer, frame, frame_head

OPEN_MAX = 40
"""Connections that are left open at a time."""
SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
MECHANISMS = (b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", b"\xff" * 20, b"")
COMMANDS = (
    b"\x05HELLO", b"\x08INITIATE", b"\x05READY", b"\x07WELCOME", b"\x07MESSAGE", b"\x05ERROR",
    b"\x04PING", b"\x04PONG", b"\x09SUBSCRIBE", b"\x06CANCEL", b"\x00", b"\xff",
)  # fmt: skip


def recorded(address: str, shake: Callable[[str], None]) -> bytes:
    """Return what an honest peer sends to ``address``; ``shake`` connects one to a given address.

    A relay lies between them until ``shake`` returns.
    """
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    sent = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay() -> None:
            near, _ = listener.accept()
            with (
                near,
                socket.create_connection((host, int(port))) as far,
                contextlib.suppress(OSError),
            ):
                while True:
                    for each in select.select([near, far], [], [])[0]:
                        data = each.recv(1 << 16)
                        if not data:
                            return
                        if each is near:
                            sent.extend(data)
                        (far if each is near else near).sendall(data)

        thread = threading.Thread(target=relay)
        thread.start()
        shake(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    return bytes(sent)


def greeting(dice: random.Random) -> bytes:
    """A greeting, well formed most of the time."""
    version = dice.choice((b"\x03\x01", b"\x03\x00", b"\x01\x00", b"\x00", dice.randbytes(2)))
    mechanism = dice.choice(MECHANISMS).ljust(20, b"\0")
    return SIGNATURE + version + mechanism + dice.choice((b"\0", b"\1")) + bytes(31)


def command(dice: random.Random) -> bytes:
    """A command or message with any content, and sometimes with another size than it says."""
    name = dice.choice(COMMANDS)
    room = dice.choice((0, 1, 8, 80, 194, 200, 257, 300, 511, 2_000))
    body = name + dice.choice((dice.randbytes, bytes))(dice.randint(0, room))
    flags = dice.choice((COMMAND, COMMAND, COMMAND, 0, MORE, COMMAND | MORE, 0x78))
    if dice.random() < 0.1:
        return frame_head(dice.choice((1 << 20, 1 << 31, 1 << 62, (1 << 64) - 1)), flags) + body
    return frame(body, flags & ~2)


def properties(dice: random.Random) -> bytes:
    """A READY of the mechanism NULL whose properties have any sizes."""
    body = b"\x05READY"
    for name in dice.choices((b"Socket-Type", b"Identity", b"User-Id", b"X", b""), k=3):
        size = dice.choice((0, 3, 255, 1 << 31, (1 << 32) - 1))
        body += bytes([len(name)]) + name + struct.pack(">I", size) + dice.randbytes(min(size, 255))
    return frame(body, COMMAND)


def changed(dice: random.Random, honest: bytes) -> bytes:
    """What an honest peer has sent, with changes."""
    data = bytearray(honest)
    for _ in range(dice.randint(0, 3)):
        at = dice.randrange(len(data))
        data[at] = dice.randrange(256)
    cut = dice.randrange(len(data)) if dice.random() < 0.3 else len(data)
    return bytes(data[:cut]) * dice.choice((1, 1, 1, 2))


def handshake(dice: random.Random, honest: bytes) -> list[bytes]:
    """The pieces of one connection, in which they are sent."""
    kind = dice.randrange(5)
    if kind == 0:
        return [dice.randbytes(dice.choice((1, 10, 64, 300)))]
    if kind == 1 and honest:
        return [changed(dice, honest)]
    if kind == 2 and honest:
        at = dice.randrange(len(honest))
        return [honest[:at], honest[at:], command(dice)]
    if kind == 3:
        return [greeting(dice), properties(dice)]
    return [greeting(dice), *(command(dice) for _ in range(dice.randint(0, 3)))]


def play(
    addresses: list[str], dice: random.Random, count: int, honest: bytes = b"", *, source: str
) -> int:
    """Begin ``count`` handshakes, and leave some of them open for a while. Returns how many."""
    opened: deque[RawPeer] = deque()
    begun = 0
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                peer = RawPeer(dice.choice(addresses), shake=False, source=source)
                opened.append(peer)
                begun += 1
                for piece in handshake(dice, honest):
                    peer.socket.sendall(piece)
                if dice.random() < 0.2:
                    peer.socket.settimeout(0.01)
                    peer.socket.recv(1 << 12)
            while len(opened) > dice.randint(0, OPEN_MAX):
                opened.popleft().socket.close()
    finally:
        for peer in opened:
            peer.socket.close()
    return begun
