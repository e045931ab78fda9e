"""Which threads are in the middle of a call of a Node.

A signal handler or a destructor may run between any two steps of a thread that holds locks and has
made half of a change. It must not begin another call, or wait for a thread that may need the same
locks.
"""

from __future__ import annotations

from dstore.runtime import native

inside: dict[int, object] = {}
"""The Local whose call each thread is carrying out, by thread number."""


def here() -> object | None:
    """Return the Local whose call this thread is carrying out, or None."""
    return inside.get(native.get_ident())


@native.in_forked_child
def _after_fork_in_child() -> None:
    """Forget the other threads: they are not in the child, and new ones may get their numbers."""
    mine = here()
    inside.clear()
    if mine is not None:
        inside[native.get_ident()] = mine
