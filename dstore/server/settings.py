"""The checked settings of a Global."""

from __future__ import annotations

import os
from typing import NamedTuple

from dstore import checks, config
from dstore.core.engine import Engine
from dstore.server.engines.memory import MemoryEngine
from dstore.shm import check_root
from dstore.transport import addresses


class Settings(NamedTuple):
    """The parameters of :class:`dstore.Global` that it needs when it binds.

    ``publisher`` is empty if it follows from ``address``. ``shm`` is None for the default folder.
    """

    address: str
    publisher: str
    lease: float
    log_length: int
    value_limit: int
    large_from: int
    max_clients: int
    shm: str | None

    @classmethod
    def checked(
        cls,
        address: str,
        publisher: str | None,
        lease: float,
        log_length: int,
        value_limit: int,
        large_from: int,
        max_clients: int,
        shm: str | os.PathLike[str] | None,
    ) -> Settings:
        """Check the parameters. Raises AddressError, TypeError and ValueError."""
        address = addresses.check(checks.text("address", address), bind=True)
        if publisher is not None:
            publisher = addresses.check(checks.text("publisher", publisher), bind=True)
        settings = cls(
            address,
            publisher or "",
            checks.seconds("lease", lease, config.LEASE_MIN, config.LEASE_MAX),
            checks.count("log_length", log_length, 1, config.LOG_LENGTH_MAX),
            checks.count("value_limit", value_limit, 1, config.SIZE_MAX),
            checks.count("large_from", large_from, config.LARGE_FROM_MIN, config.INLINE_BYTES_MAX),
            checks.count("max_clients", max_clients, 1, config.CLIENTS_MAX),
            checks.optional(checks.path, "shm", shm),
        )
        check_root(settings.shm)
        return settings


def engine_of(given: Engine | None, memory_limit: int | None) -> Engine:
    """Return the given engine, or one in memory. Raises TypeError and ValueError."""
    limit = checks.optional(checks.count, "memory_limit", memory_limit, 1, config.SIZE_MAX)
    if given is None:
        return MemoryEngine(config.MEMORY_LIMIT_DEFAULT if limit is None else limit)
    if limit is not None:
        raise ValueError(
            "memory_limit is for the engine that is there without engine=; give one of them, and "
            "your engine a limit of its own"
        )
    checks.member("engine", given, Engine)
    return given
