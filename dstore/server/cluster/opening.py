"""How the database of a cluster is opened."""

from __future__ import annotations

from dstore.server.cluster.storage import Storage
from dstore.server.settings import GlobalSettings

PATIENCE_MAX = 3.0
"""Seconds that a statement may take at most, before its connection counts as lost."""
PATIENCE = 1 / 2
"""The part of an ownership lease that a statement may take: another one fits in after it."""


def open_storage(settings: GlobalSettings) -> Storage:
    """Connect to the database that ``settings`` name, and check it. Raises DataError."""
    from dstore.server.postgres import open_store  # here, since it needs the extra

    assert settings.database is not None
    return open_store(
        settings.database.text,
        memory_limit=settings.memory_limit,
        patience=min(PATIENCE_MAX, PATIENCE * settings.ownership_lease),
    )
