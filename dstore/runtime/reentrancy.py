"""Which threads are in the middle of a call of this process's Nodes.

A signal handler or a destructor may run there, between any two steps of a thread that has locks
or half of a change in its hands. It can neither begin another call nor wait for a thread that
may need the same.
"""

from __future__ import annotations

import os

from dstore.runtime.native import get_ident

inside: dict[int, object] = {}
"""The Local by whose call each thread is occupied."""


def here() -> object | None:
    """The Local by whose call this thread is occupied, if any."""
    return inside.get(get_ident())


def _after_fork_in_child() -> None:
    """The other threads are not here, and new ones will have their numbers."""
    mine = here()
    inside.clear()
    if mine is not None:
        inside[get_ident()] = mine


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
