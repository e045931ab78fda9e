"""The page and the host cache of this host, as the core uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from dstore.client.host_reader import HostReader
from dstore.core.local.shared import Put, Record
from dstore.core.local.state import LocalState
from dstore.core.local.vector import Vector
from dstore.protocol.keys import in_order
from dstore.protocol.messages import Key
from dstore.runtime import clock
from dstore.shm.directory import Unusable
from dstore.shm.finding import attach, attach_epoch
from dstore.shm.page import SharedPage
from dstore.shm.table import Table
from dstore.transport import addresses

KEYED = (
    "its Global asks for keys, and this process has none; name its connect file (connect=, "
    "--connect or $DSTORE_CONNECT)"
)
NO_KEYS = "its Global does not ask for keys, and this process expects one that does"


class HostPage:
    """A :class:`dstore.core.local.shared.SharedPage`: a page in shared memory, and its table.

    Safe from any thread. ``owner`` names the owner, for people. The processes of a host may have
    identities that do not see the same keys: with ``prefixes`` only keys below them are looked for.
    Of others Global is asked, which says so.
    """

    def __init__(self, page: SharedPage, table: Table | None, prefixes: Sequence[Key] = ()) -> None:
        identity = page.identity
        self.page = page
        self.table = table
        self.owner = identity.owner
        self._prefixes = tuple(map(in_order, prefixes))
        self.epoch, self.session = identity.epoch, identity.session
        self.cluster, self.lease = identity.cluster, identity.lease
        self.value_limit, self.large_from = identity.value_limit, identity.large_from
        self.endpoint = identity.endpoint
        self.vector = Vector(identity.hash_key, identity.buckets, page.words)
        self.lease_word = page.lease
        self.now = clock.now
        self.capacity = 0 if table is None else table.size
        reader = None if table is None else table.reader
        self.reader = None if reader is None else HostReader(identity.hash_key, reader)

    def same_as(self, other: HostPage) -> bool:
        """Whether this is the page of the same session, and may still be used."""
        return (self.epoch, self.session) == (other.epoch, other.session) and self.page.usable()

    def used(self) -> int:
        table = self.table
        return 0 if table is None else table.used

    def looks_for(self, *keys: Key) -> bool:
        """Whether all these keys may be looked for here."""
        prefixes = self._prefixes
        try:
            return not prefixes or all(in_order(key).startswith(prefixes) for key in keys)
        except UnicodeEncodeError:  # it is no key
            return False

    def find(self, key: Key, hashed: int) -> Record | None:
        table = self.table
        return table.find(key, hashed) if table is not None and self.looks_for(key) else None

    def put(self, value: Put) -> bool:
        table = self.table
        return table is not None and table.put(*value)

    def put_many(self, values: Iterable[Put]) -> int:
        table = self.table
        return 0 if table is None else table.put_many(values)

    def close(self) -> None:
        """Give the host cache back. Idempotent."""
        table, self.table = self.table, None
        if table is not None:
            table.close()


def look(
    root: str | None,
    address: str,
    epoch: int,
    *,
    keyed: bool = False,
    prefixes: Sequence[Key] = (),
) -> HostPage:
    """Return the page of an epoch or, if it is 0, of an address; see :class:`HostPage`.

    ``keyed`` says whether this process has keys: it uses a page of a Global that asks for keys only
    if it has, and one of a Global that asks for none only if it has not. Raises Unusable, which
    says why there is none to be used.
    """
    page = attach_epoch(root, epoch) if epoch else attach(root, addresses.canonical(address))
    if page.identity.keyed != keyed:
        page.directory.close()
        page.close()
        raise Unusable(NO_KEYS if keyed else KEYED)
    return _opened(page, prefixes)


def can_be_inherited(state: LocalState) -> bool:
    """Whether what a state has cached is good in a forked child as well."""
    page = state.page
    return isinstance(page, HostPage) and state.membership.words is not None and page.page.usable()


def _opened(page: SharedPage, prefixes: Sequence[Key]) -> HostPage:
    """Return a page with its host cache, if that can be opened."""
    table, name = None, page.identity.table
    if name:
        with contextlib.suppress(OSError, Unusable):
            table = Table.open(page.directory, name)
    page.directory.close()  # nothing else is opened there
    return HostPage(page, table, prefixes)
