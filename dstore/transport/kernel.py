"""What the kernel knows about ZeroMQ's sockets, and about this process's descriptors and memory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator
from io import FileIO
from typing import TypeAlias

from dstore.runtime.native import sockets

PeerName: TypeAlias = tuple[object, ...]
"""The other end of a TCP connection, as ``getpeername`` returns it."""

_TCP_INFO = getattr(sockets, "TCP_INFO", None) if sys.platform == "linux" else None
_BYTES = struct.Struct("QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_BYTES_OFFSET = 120
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


@contextlib.contextmanager
def opened(fd: int) -> Iterator[sockets.socket | None]:
    """The socket that has the descriptor ``fd`` now, or None if it is not a socket.

    ZeroMQ may close its descriptor at any time, and another socket may get the same number. So the
    socket is used through a duplicate; only if no descriptor is left for one, through ``fd``. The
    duplicate may have the same number: ZeroMQ may close ``fd`` while it is made.
    """
    borrowed = False
    try:
        own = os.dup(fd)
    except OSError as error:
        if error.errno not in _NO_DESCRIPTORS:
            yield None
            return
        own, borrowed = fd, True
    try:
        # Python reserves room for one IPv6 name, which suffices for names of both families.
        family = sockets.AF_INET6 if sockets.has_ipv6 else sockets.AF_INET
        sock = sockets.socket(family, sockets.SOCK_STREAM, 0, own)
    except OSError:  # the descriptor is not a socket any more
        if not borrowed:
            os.close(own)
        yield None
        return
    try:
        yield sock
    finally:
        if borrowed:
            sock.detach()
        else:
            sock.close()


def peer_name(sock: sockets.socket | None) -> PeerName | None:
    """The name of the other end of a TCP connection; None for any other socket."""
    try:
        name = None if sock is None else sock.getpeername()
    except OSError:
        return None
    return name if isinstance(name, tuple) else None


def byte_counts(fd: int, name: PeerName) -> tuple[int, int] | None:
    """The bytes of a TCP connection that its peer has acknowledged, and that ZeroMQ has received.

    None if ``fd`` is not the connection of ``name`` any more, or the system has no such counters.
    """
    if _TCP_INFO is None:
        return None
    with opened(fd) as sock:
        if sock is None or peer_name(sock) != name:
            return None
        try:
            info = sock.getsockopt(sockets.IPPROTO_TCP, _TCP_INFO, _BYTES_OFFSET + _BYTES.size)
            # The kernel has received these bytes, and ZeroMQ has not read them yet.
            queued = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
        except OSError:
            return None
    if len(info) < _BYTES_OFFSET + _BYTES.size:  # pragma: no cover - Linux before 4.1
        return None
    acknowledged, received = _BYTES.unpack_from(info, _BYTES_OFFSET)
    return acknowledged, received - int.from_bytes(queued, sys.byteorder)


def descriptor_left() -> bool:
    """Whether this process can open one more descriptor."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in _NO_DESCRIPTORS
    return True


class ProcessMemory:
    """The memory of this process in ``bytes``; always zero on systems other than Linux."""

    def __init__(self) -> None:
        self.bytes = 0
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._file: FileIO | None = None
        try:
            self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115
        except OSError:  # pragma: no cover - not Linux
            pass

    def has_grown(self, by: int) -> bool:
        """Measure. Returns whether memory has grown by more than ``by`` bytes since last time."""
        if self._file is None:  # pragma: no cover - not Linux
            return False
        self._file.seek(0)
        former, self.bytes = self.bytes, int(self._file.read(256).split()[1]) * self._page
        return self.bytes > former + by

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
