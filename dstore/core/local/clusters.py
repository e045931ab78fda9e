"""The error of a Local that finds another Global at the address of a member of its cluster."""

from __future__ import annotations

from dstore.errors import WrongServer

ID_SHOWN = 8
"""Characters of the id of a cluster that a person sees."""


def wrong_cluster(cluster: bytes, found: bytes) -> WrongServer:
    """Return the error for a Global of the cluster ``found``, or of none, in place of a member."""
    what = f"a member of another cluster ({_shown(found)})" if found else "a Global by itself"
    return WrongServer(
        f"what answers there is {what}, and this program uses the cluster {_shown(cluster)}; run "
        "the member there again, or, if it is meant to be another one, start this program again"
    )


def _shown(cluster: bytes) -> str:
    return cluster.hex()[:ID_SHOWN]
