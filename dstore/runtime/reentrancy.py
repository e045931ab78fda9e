"""Which threads are in the middle of a call of a Node.

A signal handler or a destructor may run between any two steps of a thread that holds locks and has
made half of a change. It must not begin another call, or wait for a thread that may need the same
locks.
"""

from __future__ import annotations

import os

from dstore.runtime.native import get_ident

inside: dict[int, object] = {}
"""The Local whose call each thread is carrying out, by thread number."""


def here() -> object | None:
    """The Local whose call this thread is carrying out, or None."""
    return inside.get(get_ident())


def _after_fork_in_child() -> None:
    """Forget the other threads: they are not in the child, and new ones may get their numbers."""
    mine = here()
    inside.clear()
    if mine is not None:
        inside[get_ident()] = mine


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
