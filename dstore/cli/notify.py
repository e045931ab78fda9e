"""Telling systemd how a service fares, by the protocol of sd_notify."""

from __future__ import annotations

import contextlib
import os

from dstore.runtime.native import sockets

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> None:
    """Send a line such as ``READY=1`` to the service manager, if one has asked for it."""
    path = os.environ.get(VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        contextlib.closing(sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)) as sock,
    ):
        sock.setblocking(False)
        sock.sendto(os.fsencode(state), os.fsencode(address))
