"""The parameters of a Global that it needs when it binds."""

from __future__ import annotations

from typing import NamedTuple


class DatabaseUrl:
    """Where the database of a cluster is. Its text is not shown, since it may have a password."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<DatabaseUrl>"


class GlobalSettings(NamedTuple):
    """The parameters of :class:`dstore.Global` that it needs when it binds.

    ``publisher`` is empty if it follows from ``address``. ``shm`` is None for the default folder,
    and ``host_cache`` for the default size. ``data`` is None if nothing is kept on a disk, and
    ``keys`` if all may use this Global; these are the programs of this machine alone, unless it is
    ``insecure``. ``memory_limit`` is that of the engine, unless the caller has made one.
    ``database`` is None unless this Global is a member of a cluster; then ``advertise`` is the
    address that clients are given, empty for ``address``, and ``ownership_lease`` is in seconds.
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
    memory_limit: int
    database: DatabaseUrl | None
    advertise: str
    ownership_lease: float
