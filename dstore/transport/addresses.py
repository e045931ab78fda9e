"""Addresses: what may be bound or connected to, and how one is seen from another host.

A *literal* address needs no look-up: an ipc path, or an IP address with its port. Sockets connect
to literal addresses only; :mod:`dstore.transport.route` finds the one for a name.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
from typing import Any

import zmq

from dstore.errors import AddressError, NodeClosed
from dstore.runtime.native import sockets

PORT_MAX = 65_535
ANY_HOST = "*"
"""Every address of this machine, of IPv6 and of IPv4."""
PORT_TRIES = 20
"""How many free ports are tried until one is free on every address of a host name."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\[\]]+\]|[^:/\s\[\]]+):(?P<port>[0-9]+)")
_FORMS = "use tcp://HOST:PORT or ipc://PATH"
_IPC = "ipc://"
_IPC_PATH_MAX = 100  # the kernel allows 107 bytes; leave room for the publisher's suffix
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENODEV)


def check(address: str, *, bind: bool = False) -> str:
    """The address, if it is well formed. Port 0 (any free one) is for binding only.

    Raises AddressError with a sentence that says what is wrong.
    """
    if address.startswith(_IPC):
        _check_path(address)
        return address
    match = _TCP.fullmatch(address)
    if match is None:
        bare = address.startswith("tcp://") and address.count(":") > 2 and "[" not in address
        hint = "; an IPv6 address stands in brackets, tcp://[::1]:50051" if bare else ""
        raise AddressError(f"{address!r} is not an address; {_FORMS}{hint}")
    if not (0 if bind else 1) <= int(match["port"]) <= PORT_MAX:
        raise AddressError(f"{address!r}: the port must be between 1 and {PORT_MAX}")
    _check_host(address, match["host"])
    if not bind and _is_any(match["host"]):
        raise AddressError(f"{address!r}: name the host that Global runs on")
    return address


def _check_path(address: str) -> None:
    path = address[len(_IPC) :]
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise AddressError(f"{address!r}: an ipc path is UTF-8") from None
    if not 1 <= size <= _IPC_PATH_MAX:
        raise AddressError(f"{address!r}: an ipc path has 1 to {_IPC_PATH_MAX} bytes")
    if "\0" in path or path in ("*", "@"):  # "*" would be a path of ZeroMQ's choice
        raise AddressError(f"{address!r}: name a path, or @NAME for an abstract one")


def _check_host(address: str, host: str) -> None:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise AddressError(f"{address!r}: {host[1:-1]!r} is not an IPv6 address") from None
        return
    if _encoded(host) is None or not host.isprintable():
        raise AddressError(f"{address!r}: {host!r} cannot be a host name")


def _encoded(host: str) -> bytes | None:
    """A name as the resolver of the system is asked for it; None if it cannot be one.

    Python would do that by itself, by a module that it has to load first: with no descriptor left
    for that, the error would be a riddle.
    """
    if host.isascii():
        labels = host.removesuffix(".").split(".")
        return host.encode() if all(0 < len(each) < 64 for each in labels) else None
    try:
        return host.encode("idna")
    except (UnicodeError, LookupError):
        return None


def look_up(host: str, port: int, *, numeric: bool = False) -> list[tuple[int, Any]]:
    """The address families and socket addresses of a host. May block for many seconds, unless it
    is ``numeric``. Raises AddressError.
    """
    flags = sockets.AI_NUMERICHOST if numeric else 0
    try:
        found = sockets.getaddrinfo(
            _encoded(host.strip("[]")), port, type=sockets.SOCK_STREAM, flags=flags
        )
    except OSError as error:
        raise AddressError(f"the name {host!r} does not resolve ({error.strerror})") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


# ---- parts of an address ----------------------------------------------------------------------


def split_tcp(address: str) -> tuple[str, int] | None:
    """Host and port of a tcp address, None for another kind."""
    match = _TCP.fullmatch(address)
    return (match["host"], int(match["port"])) if match else None


def ipc_path(address: str) -> str | None:
    """The path of an ipc address (``@NAME`` for an abstract one), None for another kind."""
    return address[len(_IPC) :] if address.startswith(_IPC) else None


def is_literal(address: str) -> bool:
    """Whether the address can be connected to without looking a name up."""
    tcp = split_tcp(address)
    return tcp is None or _ip(tcp[0]) is not None


def endpoint(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The literal tcp address for what ``getaddrinfo`` found."""
    host, port = sockaddr[0].partition("%")[0], sockaddr[1]
    if len(sockaddr) == 2:
        return f"tcp://{host}:{port}"
    scope = f"%{sockaddr[3]}" if sockaddr[3] else ""
    return f"tcp://[{host}{scope}]:{port}"


def is_private(address: str) -> bool:
    """Whether only this machine can reach the address. A name is looked up."""
    tcp = split_tcp(address)
    if tcp is None:
        return True
    host = tcp[0]
    if host == ANY_HOST:
        return False
    ip = _ip(host)
    if ip is not None:
        return _is_loopback(ip)
    try:
        found = look_up(host, 0)
    except AddressError:
        return False
    return all(_is_loopback(ipaddress.ip_address(sockaddr[0])) for _, sockaddr in found)


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that stands for a host; None if it is a name or ``*``."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_loopback(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _is_any(host: str) -> bool:
    ip = _ip(host)
    return host == ANY_HOST or (ip is not None and ip.is_unspecified)


# ---- the publisher ----------------------------------------------------------------------------


def publisher_default(address: str) -> str:
    """Where Global publishes when it is not told: the next port, or a path beside its own."""
    tcp = split_tcp(address)
    if tcp is None:
        return address + ".pub"
    host, port = tcp
    if port == PORT_MAX:
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


def is_beside(publisher: str) -> bool:
    """Whether an advertised publisher is on the host that Global was reached at."""
    tcp = split_tcp(publisher)
    return tcp is not None and tcp[0] == ANY_HOST


def resolved(publisher: str, address: str) -> str:
    """The advertised publisher, as seen by a Local that reached Global at ``address``."""
    here, there = split_tcp(address), split_tcp(publisher)
    if here and there and there[0] == ANY_HOST:
        return f"tcp://{here[0]}:{there[1]}"
    return publisher


# ---- sockets ----------------------------------------------------------------------------------


def bind(sock: zmq.Socket[bytes], address: str) -> str:
    """Bind a socket. The address as bound, with the real port. Raises AddressError.

    ``*`` is both families where the system has them. A name is each of its addresses that is of
    this machine. An interface (``eth0``) is its IPv4 address.
    """
    check(address, bind=True)
    host, port = split_tcp(address) or ("", 0)
    try:
        if not host:
            _bind(sock, address)
            return address
        if host == ANY_HOST:
            return f"tcp://{host}:{_bind_any(sock, address)}"
        if _ip(host) is not None:
            return f"tcp://{host}:{_bind(sock, address)}"
        if host in _interfaces():
            _bind(sock, address)
            return sock.getsockopt_string(zmq.LAST_ENDPOINT)  # what a Node can connect to
    except zmq.ZMQError as error:
        raise _refused(address, error) from None
    return f"tcp://{host}:{_bind_name(sock, address, host, port)}"


def _bind(sock: zmq.Socket[bytes], literal: str, *, ipv6: bool = False) -> int:
    """Bind a socket; the port. Raises ZMQError."""
    sock.setsockopt(zmq.IPV6, int(ipv6 or "[" in literal))
    sock.bind(literal)
    tcp = split_tcp(sock.getsockopt_string(zmq.LAST_ENDPOINT))
    return tcp[1] if tcp else 0


def _bind_any(sock: zmq.Socket[bytes], address: str) -> int:
    try:
        return _bind(sock, address, ipv6=True)  # takes IPv4, too
    except zmq.ZMQError as error:
        if error.errno not in _NOT_HERE:
            raise
    return _bind(sock, address)


def _bind_name(sock: zmq.Socket[bytes], address: str, host: str, port: int) -> int:
    """Bind a socket to all addresses of a name, with one port; the port."""
    try:
        found = look_up(host, port)
    except AddressError as error:
        raise AddressError(f"cannot listen on {address}: {error}") from None
    hosts = dict.fromkeys(endpoint(sockaddr).rpartition(":")[0] for _, sockaddr in found)
    for _ in range(PORT_TRIES):
        bound = _bind_all(sock, address, list(hosts), port)
        if bound:
            return bound
    raise AddressError(f"cannot listen on {address}: no port is free on all its addresses")


def _bind_all(sock: zmq.Socket[bytes], address: str, hosts: list[str], port: int) -> int:
    """The port; 0 if any was asked for, and the one for the first address is not free on all."""
    bound: list[str] = []
    failures: list[AddressError] = []
    asked = port
    for host in hosts:
        try:
            port = _bind(sock, f"{host}:{port}")
            bound.append(sock.getsockopt_string(zmq.LAST_ENDPOINT))
        except zmq.ZMQError as error:
            failures.append(_refused(f"{address} ({host.removeprefix('tcp://')})", error))
            if error.errno in _NOT_HERE:
                continue
            for each in bound:
                sock.unbind(each)
            if error.errno == zmq.EADDRINUSE and not asked:
                return 0
            raise failures[-1] from None
    if not bound:
        raise failures[0]
    return port


def _refused(address: str, error: zmq.ZMQError) -> AddressError:
    if error.errno == zmq.EADDRINUSE:
        return in_use(address)
    return AddressError(f"cannot listen on {address}: {error.strerror}")


def in_use(address: str) -> AddressError:
    """Somebody listens there."""
    return AddressError(
        f"{address} is in use already; stop what listens there, or choose another address"
    )


def _interfaces() -> set[str]:
    with contextlib.suppress(OSError, AttributeError):
        return {name for _, name in sockets.if_nameindex()}
    return set()


def connect(sock: zmq.Socket[bytes], literal: str) -> None:
    """Connect a socket, now or as soon as somebody listens there. Raises AddressError."""
    try:
        sock.setsockopt(zmq.IPV6, int("[" in literal))
        sock.connect(literal)
    except zmq.ZMQError as error:
        if error.errno == zmq.ETERM:
            raise NodeClosed("the Node was closed during the call") from None
        raise AddressError(f"cannot connect to {literal}: {error.strerror}") from None


def reason(code: int) -> str:
    """What an error number of the system means, within a sentence."""
    text = os.strerror(code)
    return text[:1].lower() + text[1:]
