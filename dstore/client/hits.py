"""The hit: reading an entry of the cache without a lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dstore.compiled import native
from dstore.core.local.membership import Entry, Present
from dstore.protocol.messages import Key, Stored
from dstore.runtime import clock

RAISE: Any = object()
"""Stands for no default."""


class Hits:
    """The base of a Node: ``get``, which a hit ends here.

    Where :mod:`dstore._native` is there, its class of the same name takes this one's place.
    ``_state`` is the state of the Local, and ``_hits`` counts. With several Globals there are
    several Locals, and ``_index`` has the entries of all; else it is None. An entry in an index may
    have been dropped: its ``home`` says whether it is stored, and under which lease.
    """

    __slots__ = ("_hits", "_state")

    _state: Present
    _index: dict[Key, Any] | None = None
    _hits: int

    def get(self, key: str | bytes, default: Any = RAISE) -> Any:
        """Return the value of ``key``, from the cache if it is there, else from Global.

        An array is returned read-only, over memory that the processes of this host share. Bytes
        of more than 1 MiB are returned as a read-only memoryview over such memory. Raises
        KeyMissing if the key has no value and no ``default`` is given.
        """
        # The steps of pure_find(), inline: a hit is the most frequent call, and this saves a call.
        if type(key) is not str:  # only for str itself are hash and equality those of the key
            return self._get_named(key, default)
        index = self._index
        try:
            if index is None:
                membership = self._state.membership
                lease_end = membership.lease[0]
                entry = membership.entries[key]
            else:
                entry = index[key]
                membership = entry.home
                if membership is not None:
                    lease_end = membership.lease[0]
                if membership is None or entry.home is not membership:
                    entry = None
        except KeyError:  # not cached, or a text that is not the one text of its key
            entry = None
        if entry is None:  # not in the handler, or what is raised would name the KeyError, too
            return self._get_missed(key, default)
        words = membership.words
        if words is not None and words[entry.bucket] > entry.seq:
            return self._get_missed(key, default)
        if clock.now_ns() >= lease_end:
            return self._get_missed(key, default)
        entry.visited = 1
        self._hits += 1
        value = entry.value
        return value if type(value) is not Stored else self._opened(entry)

    def _hit(self, name: str) -> Entry | None:
        """Return the entry of a key's text that is cached under a valid lease, and count a hit."""
        entry = pure_find(self._state, name, self._index)
        if entry is not None:
            self._hits += 1
        return entry

    def _get_named(self, key: Any, default: Any) -> Any:
        """Return what ``get`` returns, for a key that is not of the type ``str`` itself."""
        raise NotImplementedError

    def _get_missed(self, key: str, default: Any) -> Any:
        """Return what ``get`` returns, for a key that is no hit."""
        raise NotImplementedError

    def _opened(self, entry: Entry) -> Any:
        """Return the value of an entry that has the encoded one."""
        raise NotImplementedError


def pure_find(state: Present, name: str, index: dict[Key, Any] | None = None) -> Entry | None:
    """Return the entry of a key's text that is cached under a valid lease. Takes no lock.

    The order matters. The membership is taken once; the end of its lease is noted before the entry
    and its word are read, and the clock is compared last, with the noted end. In any other order
    the lease might lapse, the key be deleted, and a renewal come between two of these steps.

    In an index, the entries of several memberships, the entry comes first and names its membership,
    its ``home``. A cache takes that away before anything else when it drops the entry, and only
    then may the deletion be acknowledged. So the second look at ``home``, after the end of the
    lease was noted, is what the look-up among the entries is without an index: at that moment the
    entry was stored under that lease. The index itself may be as much behind as it likes.
    """
    if index is None:
        membership = state.membership
        lease_end = membership.lease[0]
        entry = membership.entries.get(name)
        if entry is None:
            return None
    else:
        entry = index.get(name)
        if entry is None or (membership := entry.home) is None:
            return None
        lease_end = membership.lease[0]
        if entry.home is not membership:
            return None
    words = membership.words
    if words is not None and words[entry.bucket] > entry.seq:
        return None
    if clock.now_ns() >= lease_end:
        return None
    entry.visited = 1
    return entry


PureHits = Hits
find = pure_find
if not TYPE_CHECKING and native is not None:
    RAISE, Hits, find = native.RAISE, native.Hits, native.find
