"""``dstore.Node``: what a program embeds. The public face of one Local."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from dstore import checks, compiled, config
from dstore.client import translate
from dstore.client.cluster.figures import total_of_globals, total_of_locals
from dstore.client.cluster.listing import Listing
from dstore.client.cluster.members import THREAD, LoopWay, Members, Way, ask_in_background
from dstore.client.cluster.routing import ATTEMPT_FIRST
from dstore.client.commands import Command, Lookup
from dstore.client.files import Fetched, Path, Progress
from dstore.client.host_page import HostPage
from dstore.client.host_reader import BYTES, Again
from dstore.client.hosts.local import Local
from dstore.client.lifecycle import Lifecycle
from dstore.client.settings import Settings, function_with, initializer_with, timeout_checked
from dstore.client.translate import Deletion
from dstore.client.watch import Event, Watch, call_back
from dstore.core.local.membership import Entry
from dstore.core.local.operations import One
from dstore.core.local.operations.exchange import Misdirected
from dstore.core.local.state import LocalState
from dstore.errors import DstoreError, GlobalUnavailable, NodeClosed, WrongServer
from dstore.protocol import content
from dstore.protocol.keys import public
from dstore.protocol.messages import Key, Stored
from dstore.runtime import clock
from dstore.runtime import greenlets as green
from dstore.transport.channel import EXCHANGE_MS

T = TypeVar("T")
NOTHING: Any = object()
"""Stands for a value that is not there."""
PLAIN_TIMEOUT_MIN = 4 * EXCHANGE_MS / 1000
"""Seconds of a timeout from which on the first wait for a reply is that of every channel."""


class Node(Lifecycle):
    """A cache, in this process and for all its threads, of the Global at an address.

    Making a Node neither blocks nor fails when Global is down: it joins in the background. After a
    fork the child goes on with what the parent has cached if the processes of the host share a
    membership; else it joins on first use, with an empty cache. The parent's Node is undisturbed. A
    Node is pickled as its settings. Unpickling gives the Node with these settings that the process
    has, or else the one that :func:`connect` gives.

    The settings are keyword arguments, documented at ``__init__``.

    Notes
    -----
    All methods are safe from any thread. All raise ``GlobalUnavailable`` when Global does not
    answer within ``timeout``, at once ``AccessDenied`` when Global does not admit this client, or
    not to that, and ``WrongServer`` when another server is there; ``NodeClosed`` after
    :meth:`close`, ``InvalidKey`` for a key that is not 1 to 511 bytes of text or bytes, and
    ``TypeError`` or ``ValueError`` for any other wrong argument.

    ``"a"`` and ``b"a"`` are the same key: a key is its bytes. An object of a class derived from
    ``str`` or ``bytes`` counts as the text or the bytes that it is, whatever methods it has: a
    member of ``class K(str, Enum)`` is its value. Lone surrogates of ``surrogateescape``, as in a
    file name that is not UTF-8, stand for the bytes they came from. Results and errors name the
    keys of a call by the objects that were given.

    A closed Node cannot be entered or used again, only closed again. The end of a ``with`` block
    closes it, also if the block is within another block of the same Node.

    In a greenlet of gevent or eventlet, a method that has to wait lets other greenlets run. The
    threads of the Node are threads of the system even where ``threading`` is patched. Callbacks,
    and ``progress``, are called in these threads, outside of the hub: they must not wait for
    greenlets, nor log under eventlet.
    """

    @initializer_with(Settings)
    def __init__(self, settings: Settings) -> None:
        Lifecycle.__init__(self, settings)

    @classmethod
    def from_file(cls, path: Path, **settings: Any) -> Node:
        """Return a new Node of the Global that a connect file names, with the keys in it.

        The same as ``Node(connect=path, ...)``; ``settings`` are the other ones.
        """
        return cls(connect=path, **settings)

    @property
    def timeout(self) -> float:
        """Seconds until a call gives up, 0.001 to 86,400. May be set, from any thread.

        Setting it raises TypeError and ValueError.
        """
        return self._commands.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._commands.timeout = timeout_checked(seconds)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._state.entries)} cached"
        return f"<dstore.Node {self.address} {state}>"

    # ---- reading --------------------------------------------------------------------------

    def _get_missed(self, key: str, default: Any) -> Any:
        members, commands, timeout = self._members, self._commands, self._commands.timeout
        attempt, since = timeout, None
        silent: dict[str, DstoreError] = {}
        if members is None:
            local: Local | None = self._local or self._here()
        else:
            name = translate.key_name(key)
            entry = self._find(name)
            if entry is not None:
                self._hits += 1
                return self._opened(entry)
            local, attempt, since = members.owner_of(name), ATTEMPT_FIRST, clock.now()
        if local is not None and local.state.page is not None:
            value = self._find_on_host(local, key)
            if value is not NOTHING:
                return value
        if local is not None and timeout >= PLAIN_TIMEOUT_MIN and green.here() is None:
            name = translate.key_name(key)
            if name not in local.state.addresses:  # what is fetched has to be hashed
                one = self._get_at(local, name, attempt)
                if isinstance(one, DstoreError):
                    silent[local.address] = one
                elif one is not None:
                    answer, cached = one
                    value = answer.value if type(answer) is Entry else answer
                    if value is None or type(value) is Stored or cached:
                        return commands.got(key, default, answer, cached)
                    commands.misses += 1
                    return value
        return self._do(commands.get(key, default), since, silent)

    def _get_at(self, local: Local, name: Key, timeout: float) -> One | DstoreError | None:
        """Read a key at one Global; None if that has to be done in another way, or elsewhere.

        Returns the error if that Global, which is one of several, does not answer.
        """
        try:
            return local.get(name, timeout, self._commands.options)
        except Misdirected:
            return None
        except (GlobalUnavailable, NodeClosed, WrongServer) as error:
            if self._members is None:
                raise
            return error.with_traceback(None)  # it may be no member any more

    def _find_on_host(self, local: Local, key: str) -> Any:
        """Return the value that the host cache has for a key, and count a hit, or NOTHING.

        From the second read on it is stored in the cache of this process.
        """
        state = local.state
        page, membership = state.page, state.membership
        if type(page) is not HostPage or page.reader is None:
            return NOTHING
        if membership.words is not page.vector.words:
            return NOTHING  # the membership has been replaced between the two
        key = translate.key_name(key)  # it may be bytes, or not the one text of its key
        found = page.reader.read(membership, key)
        if found is None or not page.looks_for(key):
            return NOTHING
        hashed, record = found
        self._hits += 1
        state.counters["host_hits"] += 1
        entry = None
        if state.seen_again(hashed):
            entry = local.host.aside(lambda: state.promote(page, key, hashed, record))
        if entry is None:
            if record.codec == BYTES:
                return record.body
            entry = state.cache.made(key, *record, hashed % page.vector.buckets)
        value = entry.value
        return value if type(value) is not Stored else self._opened(entry)

    def _get_named(self, key: Any, default: Any) -> Any:
        entry = self._hit(translate.key_name(key))
        return self._get_missed(key, default) if entry is None else self._opened(entry)

    def lookup(self, key: str | bytes) -> Lookup:
        """Return the value of ``key`` as :meth:`get` does, and who answered. Raises KeyMissing."""
        entry = self._cached(key)
        if entry is not None:
            return Lookup(self._opened(entry), from_local=True, cached=True)
        return self._do(self._commands.lookup(key))

    def get_buffer(self, key: str | bytes) -> memoryview:
        """Return the bytes of a value as they are stored, read-only, without a copy.

        For bytes and text these are the bytes and the UTF-8; for an array, a ``.npy`` file. Raises
        KeyMissing.
        """
        return self._do(self._commands.get_buffer(key))

    def __contains__(self, key: str | bytes) -> bool:
        """Return whether the key has a value. A value that is not large is fetched and cached."""
        return self._cached(key) is not None or self._do(self._commands.contains(key))

    def get_many(self, keys: Iterable[str | bytes]) -> dict[Any, Any]:
        """Return the values of many keys, in few messages. Missing keys are left out.

        The keys of the result are the objects that were given. Objects that have no hash, or that
        are equal though they are different keys, raise InvalidKey. Each key is read on its own; the
        result is no snapshot.
        """
        members = self._members
        if members is None:
            local = self._local or self._here()
            if local.state.page is None:
                return self._do(self._commands.get_many(keys))
            asked = list(checks.several("keys", keys))
            found, rest = self._find_many_on_host(local, asked)
        else:
            asked = list(checks.several("keys", keys))
            found, rest = self._find_many_in_several(members, asked)
        if not found:
            return self._do(self._commands.get_many(asked))
        if not rest:
            return found
        others: dict[Any, Any] = self._do(self._commands.get_many(rest))
        both = {**found, **others}
        return {key: both[key] for key in asked if key in both}

    def _find_many_in_several(
        self, members: Members, keys: list[Any]
    ) -> tuple[dict[Any, Any], list[Any]]:
        """Return values that Locals, or the pages of their hosts, have cached; and the other keys.

        Nothing is found where keys are not all of the type ``str`` itself: they may be equal.
        """
        found: dict[Any, Any] = {}
        if not set(map(type, keys)) <= {str}:
            return found, keys
        keys = list(dict.fromkeys(keys))  # each counts once
        for key in keys:
            entry = self._hit(key)
            if entry is not None:
                found[key] = self._opened(entry)
        rest = [key for key in keys if key not in found and key.isascii()]
        for local, theirs in members.by_owner(rest):
            if local.state.page is not None:
                found.update(self._find_many_on_host(local, theirs)[0])
        return (
            {key: found[key] for key in keys if key in found},
            [key for key in keys if key not in found],
        )

    def _find_many_on_host(self, local: Local, keys: list[Any]) -> tuple[dict[Any, Any], list[Any]]:
        """Return values that the processes of this host have cached, and the other keys."""
        state = local.state
        page, membership = state.page, state.membership
        found: dict[Any, Any] = {}
        if type(page) is not HostPage or page.reader is None or state.observing:
            return found, []  # an observer keeps what it reads, to report its deletion
        if membership.words is not page.vector.words or not set(map(type, keys)) <= {str}:
            return found, []
        keys = list(dict.fromkeys(keys))  # each counts once
        if not page.looks_for(*keys):
            return found, []
        rest, again, read = page.reader.collect(membership, keys, found, state.seen.slots)
        state.counters["host_hits"] += read
        self._hits += len(found)
        if again:
            local.host.aside(lambda: _promote_all(state, page, again))
        if not rest and 0 < read < len(found):  # both caches: they may have been read in turn
            found = {key: found[key] for key in keys}
        return found, rest

    def get_file(
        self, key: str | bytes, path: Path, *, progress: Progress | None = None
    ) -> Fetched:
        """Write the bytes of a value, as they are stored, to a file; large ones piece by piece.

        The file appears, or replaces an older one, when it is complete. Raises KeyMissing and
        OSError.
        """
        return self._do(self._commands.get_file(key, path, progress=progress))

    def _cached(self, key: str | bytes) -> Entry | None:
        """Return the entry of a key that is cached under a valid lease, and count a hit."""
        return self._hit(key if type(key) is str else translate.key_name(key))

    def keys(self, prefix: str | bytes = "") -> Iterator[Any]:
        """Iterate over the keys that begin with ``prefix``; keys that are not UTF-8 are bytes.

        They come page by page, in the order of their bytes. A prefix of bytes may end within a
        character. Not a snapshot: a key that has a value all the while is found, one that is set
        or deleted meanwhile may be.
        """
        self._check_open()
        return self._pages(translate.key_text(prefix))

    def _pages(self, start: Key) -> Iterator[Any]:
        listing = Listing()
        while not listing.over:
            self._finish(self._read_pages, listing, start)
            yield from map(public, listing.take())

    async def _read_pages(self, listing: Listing, start: Key, way: Way) -> None:
        """Read the next pages of a listing."""
        members = self._members
        if members is None:
            (cursor,) = listing.empty
            try:
                page = await way.run(self._here(), self._commands.page(start, cursor.after))
                listing.read(cursor, [(cursor.numbers, page.keys, page.after)])
                return
            except Misdirected:
                members = self._become_several()
        await members.read(listing, start, way)

    # ---- waiting and watching -------------------------------------------------------------

    def wait(self, key: str | bytes, timeout: float | None = None) -> Any:
        """Wait until ``key`` has a value, and return it; at once if it has one.

        Global is not polled: it answers when the key is set. ``timeout`` is in seconds, from 0 on;
        None waits for ever. Raises WaitTimedOut after that time, and GlobalUnavailable when Global
        is away for longer than the Node's own timeout.
        """
        return self._do(self._commands.wait(key, timeout))

    def watch(
        self,
        prefix: str | bytes = "",
        *,
        callback: Callable[[Event], None] | None = None,
        limit: int = config.WATCH_LIMIT_DEFAULT,
    ) -> Watch:
        """Iterate over the deletions and replacements of keys with this prefix, by all Nodes.

        An :class:`Event` comes when the deletion has taken effect: a ``get`` returns the present
        value. The first event is a *resync*, without a key: read what you need; all later changes
        give events. Further resyncs come whenever events may have been missed. An event comes some
        milliseconds late; with many deletions in a row, or hundreds of Locals, up to a second.

            for event in node.watch("config/"):
                reload(event.key)  # None: everything

        With ``callback`` the function is called for each event, in a thread of its own. At most
        ``limit`` events are kept until they are taken; beyond that the oldest are dropped and
        counted, and a resync stands for them. Close the watch, or leave its ``with`` block, when
        it is not needed any more.
        """
        checks.optional(checks.function, "callback", callback)
        most = checks.count("limit", limit, 1, config.WATCH_LIMIT_MAX)
        text, members = translate.key_text(prefix), self._members
        if members is None:
            watch = self._here().watches.begin(text, most)
            self._ask_for_members()
        else:
            watch = members.watching.begin(text, most)
        if callback is not None:
            call_back(watch, callback)
        return watch

    # ---- writing --------------------------------------------------------------------------

    def set(
        self, key: str | bytes, value: Any, *, replace: bool = False, ttl: float | None = None
    ) -> None:
        """Bind ``value`` to ``key``.

        With ``replace`` a present value is replaced: after the return no Local answers with the
        old one. The key expires ``ttl`` seconds after it is bound, more than 0 and at most 100
        years; None: it does not. Raises KeyOccupied, ValueTooLarge, StoreFull, OutcomeUnknown, and
        TypeError or ValueError for a value that cannot be stored.
        """
        self._do(self._commands.set(key, value, replace=replace, ttl=ttl))

    def set_many(
        self, mapping: Mapping[Any, Any], *, replace: bool = False, ttl: float | None = None
    ) -> list[Any]:
        """Bind many values, in few messages. Return the keys that were refused as occupied.

        Each key is bound on its own, and expires as with :meth:`set`. After an exception some may
        have been bound.
        """
        return self._do(self._commands.set_many(mapping, replace=replace, ttl=ttl))

    def set_file(
        self,
        key: str | bytes,
        path: Path,
        *,
        replace: bool = False,
        ttl: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Bind the bytes of a file to ``key``; the file is read piece by piece.

        ``ttl`` is as with :meth:`set`. ``progress`` is called with what is done, and how many bytes
        of how many. Raises what :meth:`set` raises, and OSError.
        """
        self._do(self._commands.set_file(key, path, replace=replace, ttl=ttl, progress=progress))

    def put(self, value: Any, *, ttl: float | None = None) -> str:
        """Bind ``value`` to its content address, ``"b3:"`` and its BLAKE3 hash, and return that.

        (With a connect file that has prefixes the address begins with the first one of them.)
        The same content always has the same key; putting it again changes nothing, except that it
        lives until the later of both deadlines: a ``put`` with a ``ttl`` never shortens the life of
        a value, and one without it makes the value stay. Global is always asked. For bytes the hash
        is what ``b3sum`` prints. Raises what :meth:`set` raises, but never KeyOccupied.
        """
        return self._do(self._commands.put(value, ttl=ttl))

    def put_file(
        self, path: Path, *, ttl: float | None = None, progress: Progress | None = None
    ) -> str:
        """Bind the bytes of a file to their content address, and return that.

        A file whose content is stored already is read, for its hash, but not sent; it lives until
        the later of both deadlines, as with :meth:`put`. Raises what :meth:`put` raises, and
        OSError.
        """
        return self._do(self._commands.put_file(path, ttl=ttl, progress=progress))

    def delete(self, key: str | bytes, *, wait: bool = True) -> Deletion:
        """Delete ``key`` everywhere. After the return no Local answers with its value.

        With ``wait=False`` it returns once the deletion has begun, without waiting for the Locals
        that hold the value; the deletion takes effect at most one lease later. (A replacement of
        the key that is under way is waited for first.) Raises KeyMissing and OutcomeUnknown.
        """
        return self._do(self._commands.delete(key, wait=wait))

    def delete_many(self, keys: Iterable[str | bytes], *, wait: bool = True) -> dict[Any, Deletion]:
        """Delete many keys, in few messages. Missing keys are left out of the result."""
        return self._do(self._commands.delete_many(keys, wait=wait))

    # ---- expiring -------------------------------------------------------------------------

    def expire(self, key: str | bytes, seconds: float) -> None:
        """Let ``key`` expire ``seconds`` from now, whatever was said before.

        Expiry is a deletion that Global begins by itself when that time has passed: watches report
        it, and no Local answers with the value afterwards. It takes effect some milliseconds late,
        and a lease later if a Local that holds the value has died. ``seconds`` are more than 0 and
        at most 100 years, by Global's wall clock: if that is set forward, keys expire earlier, and
        if it is set back, later. Raises KeyMissing, StoreFull and OutcomeUnknown.
        """
        self._do(self._commands.expire(key, seconds))

    def persist(self, key: str | bytes) -> None:
        """Let ``key`` stay until it is deleted. Raises KeyMissing and OutcomeUnknown."""
        self._do(self._commands.persist(key))

    def ttl(self, key: str | bytes) -> float | None:
        """Return in how many seconds ``key`` expires, from 0 on; None if it does not.

        Global is always asked. Raises KeyMissing.
        """
        return self._do(self._commands.ttl(key))

    def _do(
        self,
        command: Command[T],
        since: float | None = None,
        silent: Mapping[str, DstoreError] | None = None,
    ) -> T:
        """Carry out a command in this thread, or in this greenlet while others run.

        If something was tried before, ``since`` is when the call has begun, and ``silent`` are the
        members that have not answered, with the reasons.
        """
        local = self._local or self._here()
        if self._members is None and green.here() is None:
            try:
                result: T = local.run(command)
            except Misdirected as error:
                moved = error.with_traceback(None)
            else:
                return result
            result = self._finish(self._become_several().carry_out, command, moved=moved)
        else:
            result = self._finish(self._conduct, command, since=since, silent=silent)
        return result

    async def _conduct(
        self,
        command: Command[T],
        way: Way,
        since: float | None = None,
        silent: Mapping[str, DstoreError] | None = None,
    ) -> T:
        """Carry out a command at the Global of this Node, or at the members that have its keys."""
        members, moved = self._members, None
        if members is None:
            try:
                return await way.run(self._here(), command)
            except Misdirected as error:
                moved = error.with_traceback(None)
                members = self._become_several()
        return await members.carry_out(command, way, moved, since, silent)

    def _finish(self, begin: Callable[..., Coroutine[Any, Any, T]], *given: Any, **named: Any) -> T:
        """Run a coroutine that takes a way to wait, in this thread or greenlet."""
        self._check_open()
        inbox = green.here()
        way = THREAD if inbox is None else LoopWay(inbox.new_event)
        return green.finish(begin(*given, way, **named))

    def _ask_for_members(self) -> None:
        """Have the Global asked whether it is a member of a cluster, in the background."""
        become = weakref.WeakMethod(self._become_several)
        ask_in_background(self._here(), self._commands.map(config.WAIT_MAX), become)

    # ---- metrics and life -----------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return metrics of this Local: sizes in bytes, times in seconds, counts since it began.

        With several Globals these are sums, and the shortest lease; ``globals`` has the metrics of
        the Local of each.

        ``hits`` are reads that the cache of this process has answered, ``host_hits`` those that the
        host cache has answered instead. These and ``misses`` may be a few too low when many threads
        count at once.
        """
        self._check_open()
        if self._members is None:
            row = _row(self._state, self._local)
            more: dict[str, Any] = {}
        else:
            rows = {each: _row(state, None) for each, state in list(self._inherited.items())}
            for each, local in list(self._locals.items()):
                rows[each] = _row(local.state, local)
            found = list(rows.values()) or [_row(self._state, None)]
            row, more = total_of_locals(found), {"globals": rows}
        reads = {
            "hits": max(0, self._hits + self._commands.hits - row["host_hits"]),
            "misses": self._commands.misses,
        }
        return {
            "address": self.address,
            "label": self._label_here(),
            **row,
            **reads,
            "compiled": compiled.native is not None,
            **more,
        }

    def host_processes(self) -> int:
        """Return how many processes of this host have the page of its membership, owner included.

        0 if this Node does not use one. Looks at all processes, which takes some milliseconds. With
        several Globals it is the page that most of them have.
        """
        self._here()
        pages = [local.state.page for local in list(self._locals.values())]
        return max((page.page.users() for page in pages if isinstance(page, HostPage)), default=0)

    def global_stats(self) -> dict[str, Any]:
        """Ask Global for its metrics, and return them; ``locals`` has a row for each session.

        With several Globals all are asked: ``globals`` has the metrics of each by its address, or
        ``error``, why it did not answer. Beside it are sums.
        """
        return self._finish(self._global_stats)

    async def _global_stats(self, way: Way) -> dict[str, Any]:
        members, command = self._members, self._commands.global_stats()
        if members is None:
            local = self._here()
            found = await way.run(local, self._commands.map(self._commands.timeout))
            if not found.members:
                return await way.run(local, command)
            members = self._become_several()
        return total_of_globals(await members.everywhere(command, way))

    def join(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds, until Global has answered. Never needed before use.

        Without ``timeout`` it waits as long as any call. Raises GlobalUnavailable.
        """
        self._finish(self._join, timeout)

    async def _join(self, timeout: float | None, way: Way) -> None:
        command, members = self._commands.join(timeout), self._members
        if members is None:
            await way.run(self._here(), command)
        else:
            await members.learn(way, self._commands.timeout if timeout is None else timeout)

    def __reduce__(self) -> tuple[Callable[[Settings], Node], tuple[Settings]]:
        return Node._unpickle, (self._settings,)


def _promote_all(state: LocalState, page: HostPage, records: Again) -> None:
    for key, hashed, record in records:
        state.promote(page, translate.key_name(key), hashed, record)


def _row(state: LocalState, local: Local | None) -> dict[str, Any]:
    """Return the metrics of one Local."""
    page = state.page
    return {
        "session": _public_name(state.session),
        "membership": _kind(state),
        "owner": page.owner if isinstance(page, HostPage) else "",
        "epoch": f"{state.epoch:016x}",
        "hits": 0,
        "misses": 0,
        **state.counters,
        "evictions": state.cache.evictions,
        "keys": len(state.entries),
        "bytes": state.cache.size,
        "bytes_limit": state.cache.limit,
        "host_bytes_limit": 0 if page is None else page.capacity,
        "lease": state.lease,
        "lease_left": max(0.0, state.lease_end - clock.now()),
        "applied": state.applied,
        "malformed": local.host.malformed if local else 0,
    }


def _kind(state: LocalState) -> str:
    if state.page is not None:
        return "shared"
    return "private" if state.session else "none"


def _public_name(session: int) -> int:
    """Return a number that tells sessions apart; 0 for none.

    The id itself is a secret of this process and Global: a peer that knew it could acknowledge
    deletions in its name.
    """
    return int.from_bytes(content.digest("session", b"%d" % session)[:4], "big") if session else 0


@function_with(Settings)
def connect(settings: Settings) -> Node:
    """Return the Node of this process for an address and settings; make it on the first call.

    Calls with equal settings return the same Node. It lives until it is closed, which is not
    necessary, or the process ends. A forked child uses a Node of its own by this name, and so does
    a process that was spawned. Safe from any thread.
    """
    return Node._connect(settings)
