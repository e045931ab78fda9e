"""Binding ZeroMQ sockets to addresses, and connecting them."""

from __future__ import annotations

import contextlib
import errno
import os

import zmq

from dstore.errors import AddressError, NodeClosed
from dstore.runtime.native import sockets
from dstore.transport import addresses

PORT_TRIES = 20
"""Free ports that are tried until one is free on every address of a host name."""

_NOT_OF_THIS_MACHINE = (
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
    errno.EPROTONOSUPPORT,
    errno.ENODEV,
)


def bind(sock: zmq.Socket[bytes], address: str) -> str:
    """Bind a socket. Returns the address with the port that was bound. Raises AddressError.

    ``*`` stands for both families where the system has them, a name for each of its addresses that
    belong to this machine, and an interface (``eth0``) for its IPv4 address.
    """
    addresses.check(address, bind=True)
    host, port = addresses.split_tcp(address) or ("", 0)
    try:
        if not host:
            _bind(sock, address)
            return address
        if host == addresses.ANY_HOST:
            return f"tcp://{host}:{_bind_any(sock, address)}"
        if addresses.ip_of(host) is not None:
            return f"tcp://{host}:{_bind(sock, address)}"
        if host in _interfaces():
            _bind(sock, address)
            return sock.getsockopt_string(zmq.LAST_ENDPOINT)  # what a Node can connect to
    except zmq.ZMQError as error:
        raise _bind_error(address, error) from None
    return f"tcp://{host}:{_bind_name(sock, address, host, port)}"


def _bind(sock: zmq.Socket[bytes], literal: str, *, ipv6: bool = False) -> int:
    """Bind a socket to a literal address. Returns the port (0 for ipc). Raises ZMQError."""
    sock.setsockopt(zmq.IPV6, int(ipv6 or "[" in literal))
    sock.bind(literal)
    tcp = addresses.split_tcp(sock.getsockopt_string(zmq.LAST_ENDPOINT))
    return tcp[1] if tcp else 0


def _bind_any(sock: zmq.Socket[bytes], address: str) -> int:
    try:
        return _bind(sock, address, ipv6=True)  # this includes IPv4
    except zmq.ZMQError as error:
        if error.errno not in _NOT_OF_THIS_MACHINE:
            raise
    return _bind(sock, address)


def _bind_name(sock: zmq.Socket[bytes], address: str, host: str, port: int) -> int:
    try:
        found = addresses.look_up(host, port)
    except AddressError as error:
        raise AddressError(f"cannot listen on {address}: {error}") from None
    hosts = dict.fromkeys(addresses.endpoint(sockaddr).rpartition(":")[0] for _, sockaddr in found)
    for _ in range(PORT_TRIES):
        bound = _bind_all(sock, address, list(hosts), port)
        if bound:
            return bound
    raise AddressError(f"cannot listen on {address}: no port is free on all its addresses")


def _bind_all(sock: zmq.Socket[bytes], address: str, hosts: list[str], port: int) -> int:
    """Bind a socket to all hosts that belong to this machine. Returns the port.

    Returns 0 if ``port`` is 0 and the port that the first host got is taken at another one.
    """
    bound: list[str] = []
    failures: list[AddressError] = []
    requested = port
    for host in hosts:
        try:
            port = _bind(sock, f"{host}:{port}")
            bound.append(sock.getsockopt_string(zmq.LAST_ENDPOINT))
        except zmq.ZMQError as error:
            failures.append(_bind_error(f"{address} ({host.removeprefix('tcp://')})", error))
            if error.errno in _NOT_OF_THIS_MACHINE:
                continue
            for each in bound:
                sock.unbind(each)
            if error.errno == zmq.EADDRINUSE and not requested:
                return 0
            raise failures[-1] from None
    if not bound:
        raise failures[0]
    return port


def _bind_error(address: str, error: zmq.ZMQError) -> AddressError:
    if error.errno == zmq.EADDRINUSE:
        return in_use(address)
    return AddressError(f"cannot listen on {address}: {error.strerror}")


def in_use(address: str) -> AddressError:
    """Return the error for an address at which another program listens."""
    return AddressError(
        f"{address} is in use already; stop what listens there, or choose another address"
    )


def _interfaces() -> set[str]:
    with contextlib.suppress(OSError, AttributeError):
        return {name for _, name in sockets.if_nameindex()}
    return set()


def connect(sock: zmq.Socket[bytes], literal: str) -> None:
    """Have ZeroMQ connect a socket, and try again until it succeeds. Raises AddressError."""
    try:
        sock.setsockopt(zmq.IPV6, int("[" in literal))
        sock.connect(literal)
    except zmq.ZMQError as error:
        if error.errno == zmq.ETERM:
            raise node_closed() from None
        raise AddressError(f"cannot connect to {literal}: {error.strerror}") from None


def node_closed() -> NodeClosed:
    """Return the error for a call that finds the sockets of its Node closed."""
    return NodeClosed("the Node was closed during the call")


def error_text(code: int) -> str:
    text = os.strerror(code)
    return text[:1].lower() + text[1:]
