"""Addresses: which are well formed, what their parts are, and how another host sees them.

A *literal* address needs no name look-up: an ipc path, or an IP address with its port. Sockets
connect to literal addresses only; :mod:`dstore.transport.resolver` finds the one for a name.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any

from dstore.errors import AddressError
from dstore.protocol.partitions import MEMBERS_MAX
from dstore.runtime.native import sockets

PORT_MAX = 65_535
ANY_HOST = "*"
"""Stands for every address of this machine, of IPv6 and of IPv4."""
IPC_PATH_MAX = 100
"""Bytes of an ipc path. The kernel allows 107; the publisher adds a suffix to the path."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\[\]]+\]|[^:/\s\[\]]+):(?P<port>[0-9]+)")
_FORMS = "use tcp://HOST:PORT or ipc://PATH"
_BETWEEN = re.compile(r",\s*(?=(?:tcp|ipc)://)")  # a path may have a comma, too
_IPC = "ipc://"


def check(address: str, *, bind: bool = False) -> str:
    """Return the address if it is well formed, or raise AddressError, which says what is wrong.

    Port 0 (any free one) and hosts that stand for every address are for binding only.
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


def check_several(text: str) -> list[str]:
    """Return the addresses in a text, which commas are between. Raises AddressError as check()."""
    found = list(dict.fromkeys(map(check, _BETWEEN.split(text.strip()))))
    if len(found) > MEMBERS_MAX:
        raise AddressError(
            f"these are {len(found)} addresses, and a cluster has at most {MEMBERS_MAX} Globals; "
            "one address of any of them is enough"
        )
    return found


def _check_path(address: str) -> None:
    path = address[len(_IPC) :]
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise AddressError(f"{address!r}: an ipc path is UTF-8") from None
    if not 1 <= size <= IPC_PATH_MAX:
        raise AddressError(f"{address!r}: an ipc path has 1 to {IPC_PATH_MAX} bytes")
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
    """A host name encoded for the system's resolver; None if it cannot be a host name.

    Python would have to load a module for that, and with no descriptor left say only so.
    """
    if host.isascii():
        labels = host.removesuffix(".").split(".")
        return host.encode() if all(0 < len(each) < 64 for each in labels) else None
    try:
        return host.encode("idna")
    except (UnicodeError, LookupError):
        return None


def look_up(host: str, port: int, *, numeric: bool = False) -> list[tuple[int, Any]]:
    """Look a host up. Returns pairs of an address family and a socket address.

    Blocks for many seconds at times, unless the host is ``numeric``. Raises AddressError.
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
    """The host and port of a tcp address; None for an ipc address."""
    match = _TCP.fullmatch(address)
    return (match["host"], int(match["port"])) if match else None


def ipc_path(address: str) -> str | None:
    """The path of an ipc address (``@NAME`` for an abstract one); None for a tcp address."""
    return address[len(_IPC) :] if address.startswith(_IPC) else None


def is_literal(address: str) -> bool:
    """Whether the address can be connected to without a name look-up."""
    tcp = split_tcp(address)
    return tcp is None or ip_of(tcp[0]) is not None


def endpoint(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """The literal tcp address of a socket address that ``getaddrinfo`` returned."""
    host, port = sockaddr[0].partition("%")[0], sockaddr[1]
    if len(sockaddr) == 2:
        return f"tcp://{host}:{port}"
    scope = f"%{sockaddr[3]}" if sockaddr[3] else ""
    return f"tcp://[{host}{scope}]:{port}"


def is_private(address: str) -> bool:
    """Whether only this machine can reach the address. Looks a host name up."""
    tcp = split_tcp(address)
    if tcp is None:
        return True
    host = tcp[0]
    if host == ANY_HOST:
        return False
    ip = ip_of(host)
    if ip is not None:
        return _is_loopback(ip)
    try:
        found = look_up(host, 0)
    except AddressError:
        return False
    return all(_is_loopback(ipaddress.ip_address(sockaddr[0])) for _, sockaddr in found)


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address of a literal host; None for a name or ``*``."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_loopback(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _is_any(host: str) -> bool:
    ip = ip_of(host)
    return host == ANY_HOST or (ip is not None and ip.is_unspecified)


def is_any(address: str) -> bool:
    """Whether an address to bind stands for every address of this machine."""
    tcp = split_tcp(address)
    return tcp is not None and _is_any(tcp[0])


def canonical(address: str) -> str:
    """Return the one form of an address by which processes of a host find what they share.

    An address is written in one way: ``localhost`` is 127.0.0.1, and a path is absolute, without
    symbolic links in its folders. A host name stays a name, since to look it up takes time.
    """
    tcp = split_tcp(address)
    if tcp is not None:
        return f"tcp://{_canonical_host(tcp[0])}:{tcp[1]}"
    path = ipc_path(address) or ""
    if path.startswith("@"):
        return address
    folder, name = os.path.split(path)
    return f"{_IPC}{os.path.join(os.path.realpath(folder), name)}"


def _canonical_host(host: str) -> str:
    ip = ip_of(host)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or f"[{ip}]")
    if ip is not None:
        return str(ip)
    name = host.lower().removesuffix(".")
    return "127.0.0.1" if name == "localhost" else name


def canonical_bound(address: str) -> list[str]:
    """Return the canonical addresses of a Global that is bound to ``address``, on its own host.

    Those that no other Global can be bound to at the same time: ``*`` and ``[::]`` listen on
    127.0.0.1 and on [::1], but ``0.0.0.0`` leaves [::1] to others. A machine's other addresses are
    not listed; who uses one has to ask Global for its epoch.
    """
    tcp = split_tcp(address)
    if tcp is None or not _is_any(tcp[0]):
        return [canonical(address)]
    hosts = ["127.0.0.1"] if "." in tcp[0] else ["127.0.0.1", "[::1]"]
    return [f"tcp://{host}:{tcp[1]}" for host in hosts]


# ---- the publisher ----------------------------------------------------------------------------


def publisher_default(address: str) -> str:
    """Where Global publishes by default: on the next port, or at a path beside its own."""
    tcp = split_tcp(address)
    if tcp is None:
        return address + ".pub"
    host, port = tcp
    if port == PORT_MAX:
        raise AddressError(f"{address!r}: there is no next port to publish on; name a publisher")
    return f"tcp://{host}:{port + 1 if port else 0}"


def advertised(publisher: str, address: str) -> str:
    """The publisher address that Global sends to Locals: with the host ``*`` if it is Global's."""
    here, there = split_tcp(address), split_tcp(publisher)
    if here and there and (here[0] == there[0] or _is_any(there[0])):
        return f"tcp://{ANY_HOST}:{there[1]}"
    if there and _is_any(there[0]):  # Global itself uses ipc, so all Locals are on this machine
        return f"tcp://127.0.0.1:{there[1]}"
    return publisher


def on_same_host(publisher: str) -> bool:
    """Whether an advertised publisher is on the host at which Global was reached."""
    tcp = split_tcp(publisher)
    return tcp is not None and tcp[0] == ANY_HOST


def resolved(publisher: str, address: str) -> str:
    """The address of the advertised publisher for a Local that reached Global at ``address``."""
    here, there = split_tcp(address), split_tcp(publisher)
    if here and there and there[0] == ANY_HOST:
        return f"tcp://{here[0]}:{there[1]}"
    return publisher
