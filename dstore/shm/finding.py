"""Finding the page of the host membership that this process can share."""

from __future__ import annotations

from dstore.shm import hosts, page
from dstore.shm import root as roots
from dstore.shm.directory import Unusable
from dstore.shm.hosts import PAGE
from dstore.shm.page import SharedPage


def find(root: str | None, address: str) -> SharedPage | None:
    """Return the page of the Global at this canonical address; None if there is none to use."""
    try:
        return attach(root, address)
    except Unusable:
        return None


def find_epoch(root: str | None, epoch: int) -> SharedPage | None:
    """Return the page of the Global that has told this process its epoch; None as above.

    Owner and reader may be in different network and mount namespaces.
    """
    try:
        return attach_epoch(root, epoch)
    except Unusable:
        return None


def attach(root: str | None, address: str) -> SharedPage:
    """Do as :func:`find`, or raise Unusable, which says what is in the way."""
    return _attach(root, hosts.name_of(address), address)


def attach_epoch(root: str | None, epoch: int) -> SharedPage:
    """Do as :func:`find_epoch`, or raise Unusable, which says what is in the way."""
    found = _attach(root, hosts.name_of_epoch(epoch), None)
    if found.identity.epoch != epoch:
        found.close()
        raise Unusable("the page is of another epoch than its name says")
    return found


def _attach(root: str | None, name: str, address: str | None) -> SharedPage:
    path = roots.chosen(root)
    if path is None:
        raise Unusable("shared memory is switched off or not available")
    try:
        return page.open_shared(hosts.look(path), name + PAGE, address)
    except FileNotFoundError:
        raise Unusable(
            "no process of this user shares a cache of it on this host; start Global or "
            "dstore host as this user"
        ) from None
    except OSError as error:
        raise Unusable(f"the page cannot be opened: {error}") from None
