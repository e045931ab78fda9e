"""``dstore.Node``: what a program embeds. The public face of one Local."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from dstore import clock, codec, config, content, translate
from dstore.core import operations
from dstore.core.cache import Entry
from dstore.core.local_state import LocalState
from dstore.core.operations import Answer
from dstore.errors import (
    InvalidKey,
    KeyMissing,
    KeyOccupied,
    NodeClosed,
    ValueTooLarge,
)
from dstore.local import Local, random16
from dstore.messages import DelResult, Key, SetItem, SetStatus, Stored
from dstore.translate import Deletion
from dstore.transport import addresses

_RAISE: Any = object()


class Lookup(NamedTuple):
    """A value, whether this Local answered, and whether it holds the value now."""

    value: Any
    from_local: bool
    cached: bool


class Node:
    """A Local cache of the Global at ``address``, for one process and all its threads.

    The Node joins in the background: making one neither blocks nor fails when Global is down.
    After a fork the child joins anew on first use, with an empty cache; the parent is undisturbed.

    Parameters
    ----------
    address
        Of Global, ``tcp://HOST:PORT`` or ``ipc://PATH``. Default: ``$DSTORE_GLOBAL``, else
        ``tcp://127.0.0.1:50051``.
    timeout
        Seconds until a call gives up; for many keys, that travel in several messages, of each
        message. A write may take one lease longer, since it may have to wait for the lease of a
        Local that died.
    cache_bytes
        The most that the cache may take; what is read least goes first (SIEVE).
    stale_ok
        Whether :meth:`get` may answer from the cache when the lease has lapsed, that is when
        Global cannot be reached. Such an answer may have been deleted meanwhile.
    label
        Tells people at Global who this is. Default: host name and process id.
    on_deletion
        Called with each key that the cache held and that has been deleted, from the background
        thread; it must be quick. It is not told what goes with a whole cache, when too much was
        missed or Global has restarted.

    Raises
    ------
    AddressError
        ``address`` is malformed.
    ValueError
        ``timeout`` or ``label`` is out of range.
    GlobalUnavailable
        The system gives no more sockets.

    Notes
    -----
    All methods are safe from any thread, and raise ``GlobalUnavailable`` when Global does not
    answer within ``timeout``, ``NodeClosed`` after :meth:`close`, and ``InvalidKey`` for a key
    that is not 1 to 511 bytes of text or bytes. ``"a"`` and ``b"a"`` are the same key.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = config.TIMEOUT_DEFAULT,
        cache_bytes: int = config.CACHE_BYTES_DEFAULT,
        stale_ok: bool = False,
        label: str = "",
        on_deletion: Callable[[str | bytes], None] | None = None,
    ) -> None:
        if not 0 < timeout < config.TIMEOUT_MAX:
            raise ValueError(f"a timeout is above 0 and below {config.TIMEOUT_MAX:g} seconds")
        self.address = addresses.check(address or config.address_default())
        self.timeout = timeout
        self._cache_bytes = cache_bytes
        self._stale_ok = stale_ok
        if len(label) > config.LABEL_MAX or not label.isprintable():
            raise ValueError(f"a label is at most {config.LABEL_MAX} printable characters")
        self._label = label
        self._on_deletion = on_deletion
        self._hits = 0
        self._misses = 0
        self._closed = False
        self._local: Local | None = None
        self._state = _absent()
        self._birth = threading.Lock()
        _nodes.add(self)
        self._here()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._state.entries)} cached"
        return f"<dstore.Node {self.address} {state}>"

    # ---- reading --------------------------------------------------------------------------

    def get(self, key: str | bytes, default: Any = _RAISE, *, stale_ok: bool | None = None) -> Any:
        """The value of ``key``, from the cache if it is there, else from Global.

        Raises KeyMissing if nobody holds it and no ``default`` is given.
        """
        entry = self._hit(key)
        if entry is not None:
            value = entry.value
            return value if type(value) is not Stored else translate.opened(entry)
        name = translate.key_name(key)
        answer = self._read([name], stale_ok).get(name)
        if answer is not None:
            return translate.answered(answer)
        if default is _RAISE:
            raise KeyMissing(key)
        return default

    def lookup(self, key: str | bytes, *, stale_ok: bool | None = None) -> Lookup:
        """Like :meth:`get`, and tells who answered. Raises KeyMissing."""
        entry = self._hit(key)
        if entry is not None:
            return Lookup(translate.opened(entry), from_local=True, cached=True)
        name = translate.key_name(key)
        answer = self._read([name], stale_ok).get(name)
        if answer is None:
            raise KeyMissing(key)
        return Lookup(translate.answered(answer), answer.from_local, answer.entry is not None)

    def __contains__(self, key: str | bytes) -> bool:
        """Whether the key is bound. The value is fetched, and cached, if it was not here."""
        if self._hit(key) is not None:
            return True
        name = translate.key_name(key)
        return name in self._read([name], None)

    def get_many(self, keys: Iterable[str | bytes]) -> dict[Any, Any]:
        """The values of many keys, in few messages. Missing keys are absent.

        Each key is read on its own; the result is no snapshot.
        """
        names = {key: translate.key_name(key) for key in keys}
        answers = self._read(names.values(), None)
        return {
            key: translate.answered(answers[name]) for key, name in names.items() if name in answers
        }

    def _hit(self, key: str | bytes) -> Entry | None:
        """The entry of a key that this Local holds under a valid lease. Takes no lock.

        The dictionary and the lease are noted first and the clock is compared last: between any
        two other steps the lease might lapse, the key be deleted, and a renewal come.
        """
        state = self._state
        entries = state.entries  # of one session; emptied when that ends
        lease_end = state.lease_end
        try:
            entry = entries.get(key)  # type: ignore[arg-type]  # bytes are asked for by name
        except TypeError:  # not hashable
            raise InvalidKey(f"a key is text or bytes, not {type(key).__name__}") from None
        if entry is None or clock.now() >= lease_end:
            return None
        entry.visited = True
        self._hits += 1
        return entry

    def _read(self, keys: Iterable[Key], stale_ok: bool | None) -> dict[Key, Answer]:
        stale = self._stale_ok if stale_ok is None else stale_ok
        wanted = set(keys)
        answers = self._here().run(
            lambda state, now: operations.get(state, wanted, now, now + self.timeout, stale)
        )
        hits = sum(answer.from_local for answer in answers.values())
        self._hits += hits
        self._misses += len(wanted) - hits
        return answers

    def keys(self, prefix: str | bytes = "") -> Iterator[Any]:
        """The keys that begin with ``prefix``, page by page; bytes where they are not UTF-8.

        Not a snapshot: a key that is bound all the while is found, one that comes or goes may be.
        """
        start = translate.key_text(prefix)
        after = ""
        while True:
            page = self._here().run(
                partial(self._page, prefix=start, after=after, limit=config.KEYS_PAGE_DEFAULT)
            )
            yield from map(translate.public_key, page.keys)
            if not page.after:
                return
            after = page.after

    def _page(
        self, state: LocalState, now: float, *, prefix: str, after: str, limit: int
    ) -> operations.Operation[Any]:
        return operations.scan(state, prefix, after, limit, now, now + self.timeout)

    # ---- writing --------------------------------------------------------------------------

    def set(self, key: str | bytes, value: Any, *, replace: bool = False) -> None:
        """Bind ``value`` to ``key``.

        With ``replace`` in place of what it has: from the return on no Local answers with the old
        value any more. Raises KeyOccupied, ValueTooLarge, StoreFull, OutcomeUnknown, and TypeError
        or ValueError for a value that cannot be stored.
        """
        outcome = self._write([translate.set_item(key, value)], replace)[translate.key_name(key)]
        if outcome.status is SetStatus.OCCUPIED:
            raise KeyOccupied(key, local=outcome.local, updated=outcome.updated)

    def set_many(self, mapping: Mapping[Any, Any], *, replace: bool = False) -> list[Any]:
        """Bind many values, in few messages. The keys that were refused as occupied.

        Each key is bound on its own. After an exception some may have been bound.
        """
        items = [translate.set_item(key, value) for key, value in mapping.items()]
        if len({item.key for item in items}) < len(items):
            raise InvalidKey("a key is there twice, as text and as bytes")
        outcomes = self._write(items, replace)
        return [
            key
            for key, item in zip(mapping, items)
            if outcomes[item.key].status is SetStatus.OCCUPIED
        ]

    def put(self, value: Any) -> str:
        """Bind ``value`` to its content address, ``"b3:"`` and its BLAKE3 hash, and return that.

        The same content always has the same key; putting it again changes nothing. For bytes the
        hash is what ``b3sum`` prints. Raises what :meth:`set` raises, but never KeyOccupied.
        """
        name, body = codec.encode(value)
        key = content.address(name, body)
        self._write([SetItem(key, Stored(random16(), name, body))], False)
        return key

    def delete(self, key: str | bytes, *, wait: bool = True) -> Deletion:
        """Delete ``key`` everywhere. From the return on no Local answers with its value any more.

        With ``wait=False`` it returns once the deletion has begun, without waiting for those who
        hold the value; it takes effect at most one lease later. (While the key is being replaced,
        that is waited for first.)
        Raises KeyMissing, OutcomeUnknown.
        """
        name = translate.key_name(key)
        deletion = translate.deletion(self._delete([name], wait)[name])
        if deletion is None:
            raise KeyMissing(key)
        return deletion

    def delete_many(self, keys: Iterable[str | bytes], *, wait: bool = True) -> dict[Any, Deletion]:
        """Delete many keys, in few messages. Missing keys are absent from the result."""
        names = {key: translate.key_name(key) for key in keys}
        results = self._delete(list(names.values()), wait)
        deletions = {key: translate.deletion(results[name]) for key, name in names.items()}
        return {key: deletion for key, deletion in deletions.items() if deletion is not None}

    def _write(self, items: list[SetItem], replace: bool) -> dict[Key, operations.SetOutcome]:
        local = self._here()
        limit = local.state.value_bytes_max or config.VALUE_BYTES_MAX
        for item in items:
            if len(item.stored.body) > limit:
                raise ValueTooLarge(len(item.stored.body), limit)
        outcomes = local.run(
            lambda state, now: operations.set_(state, items, replace, now, now + self.timeout)
        )
        for item in items:
            translate.check_written(item, outcomes[item.key].status, limit)
        return outcomes

    def _delete(self, keys: list[Key], wait: bool) -> dict[Key, DelResult]:
        return self._here().run(
            lambda state, now: operations.delete(state, keys, wait, now, now + self.timeout)
        )

    # ---- figures --------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures of this Local: sizes in bytes, times in seconds, counts since it began.

        ``hits`` and ``misses`` may miss a few when many threads count at once.
        """
        local, state = self._local, self._state
        left = state.lease_end - clock.now()
        return {
            "address": self.address,
            "label": self._label_here(),
            "session": state.session,
            "epoch": f"{state.epoch:016x}",
            "hits": self._hits,
            "misses": self._misses,
            **state.counters,
            "evictions": state.cache.evictions,
            "keys": len(state.entries),
            "bytes": state.cache.size,
            "bytes_limit": self._cache_bytes,
            "lease": state.lease,
            "lease_left": max(0.0, left),
            "applied": state.applied,
            "malformed": local.malformed if local else 0,
        }

    def global_stats(self) -> dict[str, Any]:
        """Figures of Global, which is asked for them."""
        return self._here().run(lambda state, now: operations.stats(state, now, now + self.timeout))

    # ---- life -----------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds, until Global has answered. Never needed before use.

        Raises GlobalUnavailable.
        """
        patience = self.timeout if timeout is None else timeout
        self._here().run(lambda state, now: operations.join(state, now, now + patience))

    def close(self) -> None:
        """Say goodbye and give everything back. Idempotent."""
        _nodes.discard(self)
        with self._birth:
            self._closed = True
            local, self._local = self._local, None
            self._state = _absent()
        if local is not None:
            self._dropped.detach()
            local.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _here(self) -> Local:
        """The Local of this process; a new one after a fork."""
        local = self._local
        if local is not None:
            return local
        with self._birth:
            if self._closed:
                raise NodeClosed("the Node is closed")
            if self._local is None:
                self._local = Local(
                    self.address,
                    label=self._label_here(),
                    cache_bytes=self._cache_bytes,
                    on_deletion=_announcer(self._on_deletion),
                )
                self._state = self._local.state
                self._dropped = weakref.finalize(self, _abandon, self._local, self.address)
                self._dropped.atexit = False
            return self._local

    def _label_here(self) -> str:
        return self._label or f"{socket.gethostname()}:{os.getpid()}"

    def _forked(self) -> None:
        """In the child: the parent's lease, cache, sockets, thread and locks are not ours."""
        if self._local is not None:
            self._dropped.detach()
        self._state = _absent()
        self._local = None
        self._birth = threading.Lock()


def _announcer(callback: Callable[[str | bytes], None] | None) -> Callable[[Key], None] | None:
    """The callback with keys as the user knows them. It does not hold the Node."""
    return None if callback is None else lambda key: callback(translate.public_key(key))


def _abandon(local: Local, address: str) -> None:
    """A Node was dropped and not closed."""
    local.abandon()
    warnings.warn(f"a dstore.Node of {address} was not closed", ResourceWarning, stacklevel=2)


def _absent() -> LocalState:
    """A state with no lease and an empty cache, in which no hit is found."""
    return LocalState(random16=bytes, label="", cache_bytes=0)


# ---- the Nodes of this process ----------------------------------------------------------------

_nodes: weakref.WeakSet[Node] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for node in list(_nodes):
        node._forked()


def _at_exit() -> None:
    for node in list(_nodes):
        with contextlib.suppress(Exception):
            node.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
