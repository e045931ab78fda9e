"""Addresses: what may be bound or connected to, and how one is seen from another host."""

from __future__ import annotations

import re

import zmq

from dstore import native
from dstore.errors import AddressError, NodeClosed

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\s]+):(?P<port>\d+)")
_FORMS = "use tcp://HOST:PORT or ipc://PATH"
_IPC_PATH_MAX = 100  # the kernel allows 107 bytes; leave room for the publisher's suffix
ANY_HOST = "*"


def check(address: str, *, bind: bool = False) -> str:
    """The address, if it is well formed. Port 0 (any free one) is for binding only.

    Raises AddressError with a sentence that says what is wrong.
    """
    if address.startswith("ipc://"):
        path = address[len("ipc://") :]
        if not path or len(path.encode()) > _IPC_PATH_MAX:
            raise AddressError(f"{address!r}: an ipc path has 1 to {_IPC_PATH_MAX} bytes")
        return address
    match = _TCP.fullmatch(address)
    if match is None:
        raise AddressError(f"{address!r} is not an address; {_FORMS}")
    port = int(match["port"])
    if not (0 if bind else 1) <= port <= 65535:
        raise AddressError(f"{address!r}: the port must be between 1 and 65535")
    if not bind and _is_any(match["host"]):
        raise AddressError(f"{address!r}: name the host that Global runs on")
    return address


def split_tcp(address: str) -> tuple[str, int] | None:
    """Host and port of a tcp address, None for another kind."""
    match = _TCP.fullmatch(address)
    return (match["host"], int(match["port"])) if match else None


def publisher_default(address: str) -> str:
    """Where Global publishes when it is not told: the next port, or a path beside its own."""
    tcp = split_tcp(address)
    if tcp is None:
        return address + ".pub"
    host, port = tcp
    if port == 65535:
        raise AddressError(f"{address!r}: there is no next port to publish on; name a publisher")
    return f"tcp://{host}:{port + 1 if port else 0}"


def advertised(publisher: str, address: str) -> str:
    """What Global tells Locals of its publisher: only the port, if it is on the same interface."""
    here, there = split_tcp(address), split_tcp(publisher)
    if here and there and (here[0] == there[0] or _is_any(there[0])):
        return f"tcp://{ANY_HOST}:{there[1]}"
    if there and _is_any(there[0]):  # requests come over ipc, so all Locals are on this machine
        return f"tcp://127.0.0.1:{there[1]}"
    return publisher


def resolved(publisher: str, address: str) -> str:
    """The advertised publisher, as seen by a Local that reached Global at ``address``."""
    here, there = split_tcp(address), split_tcp(publisher)
    if here and there and there[0] == ANY_HOST:
        return f"tcp://{here[0]}:{there[1]}"
    return publisher


def is_private(address: str) -> bool:
    """Whether only this machine can reach the address."""
    tcp = split_tcp(address)
    if tcp is None:
        return True
    return tcp[0] == "localhost" or tcp[0] == "[::1]" or tcp[0].startswith("127.")


def bind(sock: zmq.Socket[bytes], address: str) -> str:
    """Bind a socket. The address as bound, with the real port. Raises AddressError."""
    check(address, bind=True)
    _refuse_live_ipc(address)
    try:
        if "[" in address:
            sock.setsockopt(zmq.IPV6, 1)
        sock.bind(address)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressError(
                f"{address} is in use already; stop what listens there, or choose another address"
            ) from None
        raise AddressError(f"cannot listen on {address}: {error.strerror}") from None
    bound = sock.getsockopt_string(zmq.LAST_ENDPOINT)
    tcp, asked = split_tcp(bound), split_tcp(address)
    return f"tcp://{asked[0]}:{tcp[1]}" if tcp and asked else address


def connect(sock: zmq.Socket[bytes], address: str) -> None:
    """Connect a socket, now or as soon as somebody listens there. Raises AddressError."""
    try:
        if "[" in address:
            sock.setsockopt(zmq.IPV6, 1)
        sock.connect(address)
    except zmq.ZMQError as error:
        if error.errno == zmq.ETERM:
            raise NodeClosed("the Node was closed during the call") from None
        raise AddressError(f"cannot connect to {address}: {error.strerror}") from None


def _is_any(host: str) -> bool:
    return host in (ANY_HOST, "0.0.0.0", "[::]")


def _refuse_live_ipc(address: str) -> None:
    """ZeroMQ takes over the path of an ipc socket even if somebody still listens there."""
    if not address.startswith("ipc://"):
        return
    probe = native.unix_socket()
    try:
        probe.settimeout(1.0)
        probe.connect(address[len("ipc://") :])
    except OSError:
        return
    finally:
        probe.close()
    raise AddressError(
        f"{address} is in use already; stop what listens there, or choose another address"
    )
