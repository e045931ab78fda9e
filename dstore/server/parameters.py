"""Checks of the parameters of :class:`dstore.Global`, and what follows from them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from dstore import checks, config
from dstore.core.engine import Bulk, Engine, LoadingEngine
from dstore.errors import AddressError
from dstore.server.engines.memory import MemoryEngine
from dstore.server.settings import DatabaseUrl
from dstore.transport import addresses

DATABASE_SCHEMES = ("postgresql://", "postgres://")
"""How the URL of a database begins, as libpq has it."""


def has_password(url: str) -> bool:
    """Whether the URL of a database has a password in it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # it is refused by who is to use it
        return False
    return "password=" in parts.query or ":" in parts.netloc.rpartition("@")[0]


def host_cache_size(name: str, value: int) -> int:
    """Check the size of a host cache; 0 stands for none. Raises TypeError and ValueError."""
    size = checks.count(name, value, 0, config.HOST_CACHE_MAX)
    if 0 < size < config.HOST_CACHE_MIN:
        raise ValueError(
            f"{name} is {size:,}; a host cache has at least {config.HOST_CACHE_MIN:,} bytes, or 0 "
            "for none"
        )
    return size


def folder_path(name: str, value: object) -> str:
    """Check the path of a folder of data or keys. Raises TypeError and ValueError."""
    path = checks.path(name, value)
    if not path:
        raise ValueError(f"{name} is empty; name a folder, or leave it out")
    return path


def memory_limit_of(given: int | None) -> int:
    limit: int | None = checks.optional(checks.count, "memory_limit", given, 1, config.SIZE_MAX)
    return config.MEMORY_LIMIT_DEFAULT if limit is None else limit


def database_of(engine: object) -> DatabaseUrl | None:
    """Return the database that ``engine`` names. Raises TypeError and ValueError."""
    if not isinstance(engine, str):
        return None
    text = checks.text("engine", engine)
    if not text.startswith(DATABASE_SCHEMES):  # what was given may have a password
        raise ValueError(
            "engine is an object, or the URL of a database, which begins with postgresql://"
        )
    return DatabaseUrl(text)


def check_member(
    database: DatabaseUrl | None,
    address: str,
    advertise: object,
    ownership_lease: object,
    data: object,
    bulk: object,
) -> None:
    """Refuse parameters that do not go together. Raises ValueError and AddressError."""
    if database is None:
        for name, value in (("advertise", advertise), ("ownership_lease", ownership_lease)):
            if value is not None:
                raise ValueError(
                    f"{name} is for a member of a cluster, whose engine is the URL of a database"
                )
        return
    for name, value in (("data", data), ("bulk", bulk)):
        if value is not None:
            raise ValueError(
                f"{name} is not for a member of a cluster, which keeps everything in its database"
            )
    if advertise is None and addresses.is_any(address):
        raise AddressError(
            f"clients of a cluster cannot connect to {address}; give advertise (--advertise), the "
            "address at which they reach this Global"
        )


def engine_of(given: Any, memory_limit: int | None, data: bool) -> Engine:
    if given is None:
        return MemoryEngine(memory_limit_of(memory_limit), journal=data)
    if memory_limit is not None:
        raise ValueError(
            "memory_limit is for the engine that is there without engine=; give one of them, and "
            "your engine a limit of its own"
        )
    if data:
        raise ValueError("data is for the engine that is there without engine=; give one of them")
    engine: Engine = checks.member("engine", given, Engine)
    loading_engine(engine)
    return engine


def bulk_of(given: Bulk | None, data: bool) -> Bulk | None:
    if given is not None and data:
        raise ValueError("data keeps large values in its folder, too; give it or bulk=, not both")
    return checks.optional(checks.member, "bulk", given, Bulk)  # type: ignore[no-any-return]


def loading_engine(engine: Engine) -> LoadingEngine | None:
    """Return the engine if it may have values away. Raises TypeError for a part of one."""
    if not hasattr(engine, "loaded"):
        return None
    loading: LoadingEngine = checks.member("engine", engine, LoadingEngine)
    return loading
