"""The parameters of a Global that it needs when it binds."""

from __future__ import annotations

from typing import NamedTuple


class GlobalSettings(NamedTuple):
    """The parameters of :class:`dstore.Global` that it needs when it binds.

    ``publisher`` is empty if it follows from ``address``. ``shm`` is None for the default folder,
    and ``host_cache`` for the default size. ``data`` is None if nothing is kept on a disk, and
    ``keys`` if all may use this Global; these are the programs of this machine alone, unless it is
    ``insecure``.
    """

    address: str
    publisher: str
    lease: float
    log_length: int
    value_limit: int
    large_from: int
    max_clients: int
    shm: str | None
    host_cache: int | None
    data: str | None
    keys: str | None
    insecure: bool
