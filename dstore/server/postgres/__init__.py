"""PostgreSQL as the place where the Globals of a cluster keep what they own.

This package needs psycopg 3, which only the functions here import: a Global without such a database
does without it. What a Global uses is one :class:`~dstore.server.postgres.store.Store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dstore.errors import DataError

if TYPE_CHECKING:
    from dstore.server.postgres.operation import Status
    from dstore.server.postgres.store import Store

__all__ = ["init", "open_store", "status"]

PATIENCE = 3.0
"""Seconds after which a statement without an answer counts as lost, with its connection."""


def open_store(url: str, *, memory_limit: int, patience: float = PATIENCE) -> Store:
    """Check the database that a URL names, and return what a member keeps in it.

    ``memory_limit`` is in bytes. A statement has ``patience`` seconds. Raises DataError, whose
    message says what to do and has no password in it.
    """
    _need_driver()
    from dstore.server.postgres.store import Store

    return Store(url, memory_limit=memory_limit, patience=patience)


def init(url: str, *, standby: bool = True) -> bool:
    """Create the tables of a cluster, or bring those of a former dstore up to date.

    Returns False if there was nothing to do.

    With ``standby`` the cluster refuses to write without a synchronous standby; that is recorded
    when the tables are created. Raises DataError.
    """
    _need_driver()
    from dstore.server.postgres import operation

    return operation.init(url, standby=standby)


def status(url: str) -> Status:
    """Return what the database of a cluster says about it. Raises DataError."""
    _need_driver()
    from dstore.server.postgres import operation

    return operation.status(url)


def drain(url: str, member: bytes) -> bool:
    """Ask a member, by its id, to hand over all and leave. False if there is no such member.

    Raises DataError.
    """
    _need_driver()
    from dstore.server.postgres import operation

    return operation.drain(url, member)


def _need_driver() -> None:
    """Raise DataError if psycopg cannot be imported."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"a database needs psycopg 3, which cannot be imported here ({error}); "
            'pip install "dstore[postgres]"'
        ) from None
