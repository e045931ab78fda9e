"""The id of a cluster, by which a Local knows the Globals that it may join.

A Global that is no member of a cluster has no id, which is :data:`NO_CLUSTER`.
"""

from __future__ import annotations

CLUSTER_BYTES = 16
"""Bytes of an id. They are random, and are made with the tables of the cluster's database."""
NO_CLUSTER = b""
MARK_BYTES = 8
"""The first bytes of an id, which stand for it where a message has a number."""


def mark(cluster: bytes) -> int:
    """Return the number that stands for a cluster in a request without a session; 0: for none."""
    return int.from_bytes(cluster[:MARK_BYTES], "big")
