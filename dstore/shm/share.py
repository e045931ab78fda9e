"""What the owner of a host membership keeps on its host: the names, the page, and the host cache.

Both owners use it, Global on its own host and ``dstore host`` elsewhere. A page is of one session:
for another session there is another file, and the former one has been voided and removed before.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator

from dstore.compiled import native
from dstore.config import HOST_BUCKETS, HOST_CACHE_DEFAULT, HOST_CACHE_MIN, HOST_CACHE_PART
from dstore.core.local.key_hash import HASH_KEY_BYTES, KeyHash
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.messages import Found, Key
from dstore.shm import root as roots
from dstore.shm.directory import Directory, Unusable
from dstore.shm.hosts import LOCK_TRIES
from dstore.shm.ownership import Ownership
from dstore.shm.page import LAPSED, NANOSECONDS, VOID, Identity, OwnedPage
from dstore.shm.table import Table


class WrittenPage:
    """The page of one session, as the core of its owner writes it. For one thread.

    What is written to a page that has been closed is not lost in silence: it raises IndexError.
    """

    def __init__(self, page: OwnedPage, table: Table | None, closed: Callable[[], None]) -> None:
        self._page = page
        self._table = table
        self._hash = KeyHash(page.identity.hash_key)
        self._mask = page.identity.buckets - 1
        self._after_close = closed
        # Its setter stores the word with release: what was written before it is seen before it.
        self._ordered = native.Membership({}, None, page.lease) if native is not None else None

    def __repr__(self) -> str:
        return f"<WrittenPage {self._page!r}>"

    def note(self, key: Key, seq: int) -> None:
        """Write invalidation ``seq`` of a key. A word never becomes smaller."""
        words, bucket = self._page.words, self._hash(key) & self._mask
        if words[bucket] < seq:
            words[bucket] = seq

    def renew(self, end: float) -> None:
        """Set the end of the lease, in seconds. Raises Unusable if the page is void."""
        lease = self._page.lease
        if lease[0] == VOID:  # by another owner, perhaps
            raise Unusable("the page is void")
        if end * NANOSECONDS <= LAPSED:
            raise ValueError(f"a lease does not end at {end}")
        if self._ordered is not None:
            self._ordered.lease_end = end
        else:
            lease[0] = round(end * NANOSECONDS)

    def put(self, key: Key, found: Found) -> bool:
        """Put a small value into the host cache, if there is one. Returns whether it is there."""
        body = found.stored.body
        if self._table is None or type(body) is not bytes:
            return False
        token, codec = found.stored[:2]
        return self._table.put(key, self._hash(key), found.seq, token, codec, body)

    def values(self) -> Iterator[tuple[Key, str, bytes]]:
        """Iterate over what the host cache has, also after :meth:`close`."""
        return iter(()) if self._table is None else self._table.values()

    def void(self) -> None:
        """End the lease at once, for ever."""
        self._page.void()

    def close(self) -> None:
        """Void the page, and remove it with the host cache. Idempotent."""
        try:
            self._page.close()
        finally:
            self._after_close()


class Share:
    """The names that an owner has, and at most one page with its host cache. For one thread.

    ``root`` is the folder of shared memory, None for the default. ``addresses`` are the canonical
    ones of Global. ``owner`` says to people who this is. ``cache_bytes`` is the size of the host
    cache: 0 for none, None for the default, which depends on the file system.

    In a forked child everything is the parent's, and does nothing.
    """

    def __init__(
        self, root: str | None, addresses: Iterable[str], owner: str, cache_bytes: int | None
    ) -> None:
        self._root = root
        self._addresses = list(addresses)
        self._owner = owner
        self._cache_bytes = cache_bytes
        self._ownership: Ownership | None = None
        self._page: OwnedPage | None = None
        self._table: Table | None = None
        _shares.add(self)

    def __repr__(self) -> str:
        return f"<Share {self._addresses} {self._page!r}>"

    @property
    def available(self) -> bool:
        """Whether there is a folder for shared memory. It is logged once if there is none."""
        return roots.chosen(self._root) is not None

    def take(self, tries: int = LOCK_TRIES) -> None:
        """Take the names; what a former owner has left is voided and removed.

        Does nothing if they are taken. Raises Owned if another process has one of them, Unusable
        and OSError.
        """
        if self._ownership is None:
            self._ownership = Ownership.take(self._root, self._addresses, self._owner, tries)

    def open(
        self,
        *,
        epoch: int,
        session: int,
        lease: float,
        value_limit: int,
        large_from: int,
        publisher: str,
        endpoint: str = "",
        keyed: bool = False,
        cluster: bytes = NO_CLUSTER,
    ) -> WrittenPage:
        """Create the page of a session. The former page must have been closed.

        Raises Unusable if there is no memory for it, or if the names are not taken.
        """
        if self._ownership is None:
            raise Unusable("the names of the page are not taken")
        identity = Identity(
            epoch=epoch,
            session=session,
            lease=lease,
            value_limit=value_limit,
            large_from=large_from,
            publisher=publisher,
            endpoint=endpoint,
            owner=f"{self._owner}, process {os.getpid()}",
            table="",
            hash_key=os.urandom(HASH_KEY_BYTES),
            buckets=HOST_BUCKETS,
            keyed=keyed,
            cluster=cluster,
        )
        make_table = None if self._cache_bytes == 0 else self._make_table
        try:
            self._page = self._ownership.publish(identity, make_table)
        except BaseException:
            self._close_table()
            raise
        return WrittenPage(self._page, self._table, self._close_table)

    def _make_table(self, here: Directory, name: str) -> None:
        size = self._cache_bytes
        if size is None:
            size = default_size(here)
        self._table = Table.create(here, name, size)

    def _close_table(self) -> None:
        table, self._table = self._table, None
        if table is not None:
            table.close()

    @property
    def findable(self) -> bool:
        """Whether readers find the page. Another program may have removed it. Costs some stats."""
        return self._ownership is not None and self._ownership.findable()

    def close(self) -> None:
        """Void and remove the page, and give the names up. Idempotent; :meth:`take` may follow."""
        ownership, self._ownership = self._ownership, None
        self._page = None
        try:
            if ownership is not None:
                ownership.close()
        finally:
            self._close_table()

    def figures(self) -> dict[str, object]:
        """Return what there is, for people: the name of the page's owner, and the host cache."""
        page, table = self._page, self._table
        there = page is not None and not page.closed
        counts = {} if table is None else table.counts()
        return {
            "host_membership": page.identity.owner if page is not None and there else "none",
            "host_cache_limit": counts.get("size", 0),
            "host_cache_bytes": counts.get("bytes", 0),
            "host_cache_puts": counts.get("puts", 0),
            "host_cache_evictions": counts.get("evictions", 0),
        }


_shares: weakref.WeakSet[Share] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Remove the files of owners that the program has not closed. In a forked child: nothing."""
    for each in list(_shares):
        with contextlib.suppress(Exception):
            each.close()


def default_size(here: Directory) -> int:
    """Return how large a host cache is by default: a part of the file system, at most.

    Raises Unusable if that is too little for a host cache.
    """
    system = os.fstatvfs(here.fd)
    size = min(HOST_CACHE_DEFAULT, int(system.f_blocks * system.f_frsize * HOST_CACHE_PART))
    if size < HOST_CACHE_MIN:
        raise Unusable(f"{here.path} is too small for a host cache")
    return size
