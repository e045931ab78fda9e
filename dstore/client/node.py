"""``dstore.Node``: what a program embeds. The public face of one Local."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from dstore import checks, config
from dstore.client import translate
from dstore.client.commands import RAISE, Command, Commands, Lookup
from dstore.client.files import Fetched, Path, Progress
from dstore.client.hosts.conduct import conduct
from dstore.client.hosts.local import Local
from dstore.client.translate import Deletion
from dstore.client.watch import LIMIT_DEFAULT, Event, Watch, call_back
from dstore.codecs import Codec, Codecs
from dstore.core.local.cache import Entry
from dstore.core.local.state import LocalState
from dstore.errors import AddressError, GlobalUnavailable, NodeClosed
from dstore.protocol import content
from dstore.protocol.keys import public
from dstore.protocol.messages import Key, Stored
from dstore.runtime import clock, native
from dstore.runtime import greenlets as green
from dstore.shm import check_root
from dstore.transport import addresses

T = TypeVar("T")


class _Settings(NamedTuple):
    """What a Node is made with, and pickled as: the parameters of :class:`Node`, checked."""

    address: str
    timeout: float = config.TIMEOUT_DEFAULT
    cache_bytes: int = config.CACHE_BYTES_DEFAULT
    stale_ok: bool = False
    label: str = ""
    on_deletion: Callable[[str | bytes], None] | None = None
    pickle: bool = False
    codecs: tuple[Codec, ...] = ()
    shm: str | None = None
    shm_limit: int | None = None


def _checked(
    address: str | None = None,
    *,
    timeout: float = config.TIMEOUT_DEFAULT,
    cache_bytes: int = config.CACHE_BYTES_DEFAULT,
    stale_ok: bool = False,
    label: str = "",
    on_deletion: Callable[[str | bytes], None] | None = None,
    pickle: bool = False,
    codecs: Iterable[Codec] = (),
    shm: Path | None = None,
    shm_limit: int | None = None,
) -> _Settings:
    """The settings, each of the type that it has there. Raises what :class:`Node` raises."""
    return _Settings(
        _address(address),
        checks.seconds("timeout", timeout, config.TIMEOUT_MIN, config.TIMEOUT_MAX),
        checks.count("cache_bytes", cache_bytes, 0, config.SIZE_MAX),
        checks.flag("stale_ok", stale_ok),
        checks.text("label", label, config.LABEL_MAX),
        checks.optional(checks.function, "on_deletion", on_deletion),
        checks.flag("pickle", pickle),
        tuple(checks.several("codecs", codecs, "Codec")),
        checks.optional(checks.path, "shm", shm),
        checks.optional(checks.count, "shm_limit", shm_limit, 0, config.SIZE_MAX),
    )


def _address(given: str | None) -> str:
    if given is not None:
        return addresses.check(checks.text("address", given))
    try:
        return addresses.check(config.address_default())
    except AddressError as error:
        raise AddressError(f"${config.ADDRESS_VARIABLE}: {error}") from None


class Node:
    """A Local cache of the Global at ``address``, for one process and all its threads.

    The Node joins in the background: making one neither blocks nor fails when Global is down.
    After a fork the child joins anew on first use, with an empty cache; the parent is undisturbed.
    A Node can be pickled, as its settings: unpickled, it is the Node with these settings that the
    process has, or else a new one, as of :func:`connect`.

    Parameters
    ----------
    address
        Of Global, ``tcp://HOST:PORT`` or ``ipc://PATH``. Default: ``$DSTORE_GLOBAL``, else
        ``tcp://127.0.0.1:50051``. A name is looked up in the background, again whenever the
        connection is lost; all its addresses are tried, of IPv6 and of IPv4.
    timeout
        Seconds until a call gives up; for many keys, that travel in several messages, of each
        message; for a large value, for which it may stand still on its way. A write may take one
        lease longer, since it may have to wait for the lease of a Local that died.
    cache_bytes
        The most that the cache may take in this process; what is read least goes first (SIEVE).
    stale_ok
        Whether :meth:`get` may answer from the cache when the lease has lapsed, that is when
        Global cannot be reached. Such an answer may have been deleted meanwhile.
    label
        Tells people at Global who this is. Default: host name and process id.
    on_deletion
        Called with each key that the cache held and that has been deleted, from the background
        thread; it must be quick. It is not told what goes with a whole cache, when too much was
        missed or Global has restarted.
    pickle
        Whether values that no other codec takes are pickled, and such values unpickled. Unpickling
        runs code that the writer of the value has chosen: only among programs that trust each
        other.
    codecs
        A :class:`dstore.Codec` for each further type of values.
    shm
        The folder, in memory, of large values, which all processes of this host and user share.
        Default: ``$DSTORE_SHM``, else ``/dev/shm`` where there is one. Empty: every process has its
        own copies.
    shm_limit
        Bytes that copies there may take on this host; what was read least recently goes first.
        Default: half of the file system.

    Raises
    ------
    AddressError
        ``address`` is malformed.
    TypeError
        A parameter is of a wrong type.
    ValueError
        A parameter is out of its range, or ``codecs`` do not fit together.
    GlobalUnavailable
        The system gives too few descriptors or threads.

    Notes
    -----
    All methods are safe from any thread, and raise ``GlobalUnavailable`` when Global does not
    answer within ``timeout``, ``NodeClosed`` after :meth:`close`, ``InvalidKey`` for a key
    that is not 1 to 511 bytes of text or bytes, and ``TypeError`` or ``ValueError`` for any other
    argument that is wrong.

    ``"a"`` and ``b"a"`` are the same key: a key is its bytes. An object of a class that derives
    from ``str`` or ``bytes`` is the text or the bytes that it is, whatever methods it has: a member
    of ``class K(str, Enum)`` is its value. Lone surrogates of ``surrogateescape``, as in a file
    name that is not UTF-8, stand for the bytes they came from. Where results or errors name keys
    that a caller gave, they name them by the caller's objects.

    A Node lives once: a closed one cannot be entered or used again, only closed again. A ``with``
    block closes it at its end, also one within another block of the same Node.

    In a greenlet of gevent or eventlet a method that has to wait lets other greenlets run. The
    threads of the Node are threads of the system also where ``threading`` is patched: callbacks are
    called there, outside of the hub, and must not wait for greenlets, nor log under eventlet;
    ``progress``, too.
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
        pickle: bool = False,
        codecs: Iterable[Codec] = (),
        shm: Path | None = None,
        shm_limit: int | None = None,
    ) -> None:
        self._settings = settings = _checked(
            address,
            timeout=timeout,
            cache_bytes=cache_bytes,
            stale_ok=stale_ok,
            label=label,
            on_deletion=on_deletion,
            pickle=pickle,
            codecs=codecs,
            shm=shm,
            shm_limit=shm_limit,
        )
        check_root(settings.shm)
        self.address = settings.address
        self._commands = Commands(
            Codecs(settings.codecs, pickle=pickle), settings.timeout, settings.stale_ok
        )
        self._closed = False
        self._local: Local | None = None
        self._state = _absent()
        self._birth = native.RLock()  # a signal handler may close what it finds in the making
        _nodes.add(self)
        self._here()

    @property
    def timeout(self) -> float:
        """Seconds until a call gives up. May be changed; raises TypeError and ValueError."""
        return self._commands.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._commands.timeout = checks.seconds(
            "timeout", seconds, config.TIMEOUT_MIN, config.TIMEOUT_MAX
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._state.entries)} cached"
        return f"<dstore.Node {self.address} {state}>"

    # ---- reading --------------------------------------------------------------------------

    def get(self, key: str | bytes, default: Any = RAISE, stale_ok: bool | None = None) -> Any:
        """The value of ``key``, from the cache if it is there, else from Global.

        An array comes read-only, over memory that the processes of this host share, and so do
        bytes of more than 1 MiB, as a memoryview. Raises KeyMissing if nobody holds the key and no
        ``default`` is given.
        """
        # A hit, step by step as in _hit: a call less, for what is done most often. (For the same
        # reason ``stale_ok`` is not keyword-only: Python looks such defaults up in each call.)
        state = self._state
        entries = state.entries
        lease_end = state.lease_end
        try:
            entry = entries[key if type(key) is str else translate.key_name(key)]
        except KeyError:  # not here, or a text that does not name its key as dstore does
            return self._do(self._commands.get(key, default, stale_ok))
        if clock.now() >= lease_end:
            return self._do(self._commands.get(key, default, stale_ok))
        entry.visited = True
        self._commands.hits += 1
        value = entry.value
        return value if type(value) is not Stored else self._commands.opened(entry)

    def lookup(self, key: str | bytes, *, stale_ok: bool | None = None) -> Lookup:
        """Like :meth:`get`, and tells who answered. Raises KeyMissing."""
        entry = self._hit(key)
        if entry is not None:
            return Lookup(self._commands.opened(entry), from_local=True, cached=True)
        return self._do(self._commands.lookup(key, stale_ok))

    def get_buffer(self, key: str | bytes) -> memoryview:
        """The bytes of a value as they are stored, read-only, with no copy made.

        Of bytes and text (UTF-8) these are themselves, of an array they are a ``.npy`` file.
        Raises KeyMissing.
        """
        return self._do(self._commands.get_buffer(key))

    def __contains__(self, key: str | bytes) -> bool:
        """Whether the key is bound. A value that is not large is fetched, and cached."""
        return self._hit(key) is not None or self._do(self._commands.contains(key))

    def get_many(self, keys: Iterable[str | bytes]) -> dict[Any, Any]:
        """The values of many keys, in few messages. Missing keys are absent.

        The result has the very objects that were given as its keys; those that have no hash, or
        are equal though they are different keys, raise InvalidKey. Each key is read on its own; the
        result is no snapshot.
        """
        return self._do(self._commands.get_many(keys))

    def get_file(
        self, key: str | bytes, path: Path, *, progress: Progress | None = None
    ) -> Fetched:
        """Write the bytes of a value, as they are stored, to a file; large ones piece by piece.

        The file appears, in place of an older one, when all is written. Raises KeyMissing, and
        OSError.
        """
        return self._do(self._commands.get_file(key, path, progress))

    def _hit(self, key: str | bytes) -> Entry | None:
        """The entry of a key that this Local holds under a valid lease. Takes no lock.

        The dictionary and the lease are noted first and the clock is compared last: between any
        two other steps the lease might lapse, the key be deleted, and a renewal come.
        """
        state = self._state
        entries = state.entries  # of one session; emptied when that ends
        lease_end = state.lease_end
        # Only of text itself are hash and equality known to be those of the key.
        entry = entries.get(key if type(key) is str else translate.key_name(key))
        if entry is None or clock.now() >= lease_end:
            return None
        entry.visited = True
        self._commands.hits += 1
        return entry

    def keys(self, prefix: str | bytes = "") -> Iterator[Any]:
        """The keys that begin with ``prefix``, page by page; bytes where they are not UTF-8.

        They come in the order of their bytes, and a prefix of bytes may end within a character.
        Not a snapshot: a key that is bound all the while is found, one that comes or goes may be.
        """
        self._check_open()
        return self._pages(translate.key_text(prefix))

    def _pages(self, start: Key) -> Iterator[Any]:
        after = ""
        while True:
            page = self._do(self._commands.page(start, after))
            yield from map(public, page.keys)
            if not page.after:
                return
            after = page.after

    # ---- waiting and watching -------------------------------------------------------------

    def wait(self, key: str | bytes, timeout: float | None = None) -> Any:
        """The value of ``key``, as soon as somebody has set it; at once if it is there.

        Global is not asked again and again: it answers when the key is set. Raises WaitTimedOut
        after ``timeout`` seconds (0 or more; None: never), and GlobalUnavailable when Global is
        away for longer than the Node's own timeout.
        """
        return self._do(self._commands.wait(key, timeout))

    def watch(
        self,
        prefix: str | bytes = "",
        *,
        callback: Callable[[Event], None] | None = None,
        limit: int = LIMIT_DEFAULT,
    ) -> Watch:
        """Iterate over what is deleted and replaced, by whomever, among keys with this prefix.

        An :class:`Event` comes when the deletion has taken effect: a ``get`` finds what is there
        now. The first event is a *resync*, without a key: read what you need; whatever changes
        from then on, you are told of. Others follow whenever events may have been missed. An event
        comes some milliseconds late; if one deletion follows the other, and with hundreds of
        Locals, up to a second.

            for event in node.watch("config/"):
                reload(event.key)  # None: everything

        With ``callback`` that is called for each event, in a thread of its own. At most ``limit``
        events wait to be taken; then the oldest go, are counted, and a resync stands for them.
        Close the watch, or leave its ``with`` block, when it is needed no more.
        """
        checks.optional(checks.function, "callback", callback)
        most = checks.count("limit", limit, 1, config.WATCH_LIMIT_MAX)
        watch = self._here().watch(translate.key_text(prefix), most)
        if callback is not None:
            call_back(watch, callback)
        return watch

    # ---- writing --------------------------------------------------------------------------

    def set(self, key: str | bytes, value: Any, *, replace: bool = False) -> None:
        """Bind ``value`` to ``key``.

        With ``replace`` in place of what it has: from the return on no Local answers with the old
        value any more. Raises KeyOccupied, ValueTooLarge, StoreFull, OutcomeUnknown, and TypeError
        or ValueError for a value that cannot be stored.
        """
        self._do(self._commands.set(key, value, replace))

    def set_many(self, mapping: Mapping[Any, Any], *, replace: bool = False) -> list[Any]:
        """Bind many values, in few messages. The keys that were refused as occupied.

        Each key is bound on its own. After an exception some may have been bound.
        """
        return self._do(self._commands.set_many(mapping, replace))

    def set_file(
        self,
        key: str | bytes,
        path: Path,
        *,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Bind the bytes of a file to ``key``, read piece by piece. ``progress`` is told how far
        it is. Raises what :meth:`set` raises, and OSError.
        """
        self._do(self._commands.set_file(key, path, replace, progress))

    def put(self, value: Any) -> str:
        """Bind ``value`` to its content address, ``"b3:"`` and its BLAKE3 hash, and return that.

        The same content always has the same key; putting it again changes nothing. For bytes the
        hash is what ``b3sum`` prints. Raises what :meth:`set` raises, but never KeyOccupied.
        """
        return self._do(self._commands.put(value))

    def put_file(self, path: Path, *, progress: Progress | None = None) -> str:
        """Bind the bytes of a file to their content address, and return that.

        What is there already is read, to know its address, but not sent. Raises what :meth:`put`
        raises, and OSError.
        """
        return self._do(self._commands.put_file(path, progress))

    def delete(self, key: str | bytes, *, wait: bool = True) -> Deletion:
        """Delete ``key`` everywhere. From the return on no Local answers with its value any more.

        With ``wait=False`` it returns once the deletion has begun, without waiting for those who
        hold the value; it takes effect at most one lease later. (While the key is being replaced,
        that is waited for first.)
        Raises KeyMissing, OutcomeUnknown.
        """
        return self._do(self._commands.delete(key, wait))

    def delete_many(self, keys: Iterable[str | bytes], *, wait: bool = True) -> dict[Any, Deletion]:
        """Delete many keys, in few messages. Missing keys are absent from the result."""
        return self._do(self._commands.delete_many(keys, wait))

    def _do(self, command: Command[T]) -> T:
        """Carry out a command in this thread, or in this greenlet while others run."""
        local = self._local or self._here()
        inbox = green.here()
        if inbox is not None:
            return green.finish(conduct(local, command, inbox.signal))
        return local.run(command)

    # ---- metrics --------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures of this Local: sizes in bytes, times in seconds, counts since it began.

        ``hits`` and ``misses`` may miss a few when many threads count at once.
        """
        self._check_open()
        local, state = self._local, self._state
        left = state.lease_end - clock.now()
        return {
            "address": self.address,
            "label": self._label_here(),
            "session": _public_name(state.session),
            "epoch": f"{state.epoch:016x}",
            "hits": self._commands.hits,
            "misses": self._commands.misses,
            **state.counters,
            "evictions": state.cache.evictions,
            "keys": len(state.entries),
            "bytes": state.cache.size,
            "bytes_limit": self._settings.cache_bytes,
            "lease": state.lease,
            "lease_left": max(0.0, left),
            "applied": state.applied,
            "malformed": local.malformed if local else 0,
        }

    def global_stats(self) -> dict[str, Any]:
        """Figures of Global, which is asked for them; ``locals`` has a row for each session."""
        return self._do(self._commands.global_stats())

    # ---- life -----------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds, until Global has answered. Never needed before use.

        Without ``timeout`` it waits as long as any call. Raises GlobalUnavailable.
        """
        self._do(self._commands.join(timeout))

    def close(self) -> None:
        """Say goodbye and give everything back. Safe from any thread.

        Idempotent: after Ctrl-C it may be called again. Others that call it meanwhile wait as well.
        """
        with contextlib.suppress(ValueError):  # most Nodes are not there
            _connected.remove(self)
        with self._birth:
            self._closed = True
            local = self._local
            self._state = _absent()
        if local is not None:
            local.close()
            self._dropped.detach()
            self._local = None  # not before: whoever is interrupted above leaves it to the next
        _nodes.discard(self)

    def __reduce__(self) -> tuple[Callable[[_Settings], Node], tuple[_Settings]]:
        """Pickled are the settings; see :func:`connect` for what comes of them."""
        return _restored, (self._settings,)

    def __enter__(self) -> Node:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise NodeClosed("the Node is closed")

    def _here(self) -> Local:
        """The Local of this process; a new one after a fork."""
        local = self._local
        if local is not None:
            return local
        green.here()  # for what a thread of this Node may have to log
        with self._birth:
            self._check_open()
            if self._local is None:
                _close_at_exit_of_child()
                made = Local(
                    self.address,
                    label=self._label_here(),
                    cache_bytes=self._settings.cache_bytes,
                    on_deletion=_announcer(self._settings.on_deletion),
                    shm=self._settings.shm,
                    shm_limit=self._settings.shm_limit,
                )
                try:
                    _start(made)
                    self._dropped = weakref.finalize(self, _abandon, made, self.address)
                    self._dropped.atexit = False
                    self._state, self._local = made.state, made
                    self._check_open()  # a signal handler may have closed it, in this thread
                except BaseException:  # Ctrl-C: the Node may never come to be
                    made.abandon()
                    raise
            return self._local

    def _label_here(self) -> str:
        return self._settings.label or f"{native.gethostname()}:{os.getpid()}"

    def _forked(self) -> None:
        """In the child: the parent's lease, cache, sockets, thread and locks are not ours."""
        if self._local is not None:
            self._dropped.detach()
            self._local.forked()
        self._state = _absent()
        self._local = None
        self._commands.hits = self._commands.misses = 0
        self._birth = native.RLock()


def _start(local: Local) -> None:
    try:
        local.start()
    except NodeClosed:
        raise
    except RuntimeError as error:  # there can be no more threads, or Python is about to exit
        raise GlobalUnavailable(f"cannot start the background thread of a Node: {error}") from None


def _announcer(callback: Callable[[str | bytes], None] | None) -> Callable[[Key], None] | None:
    """The callback with keys as the user knows them. It does not hold the Node."""
    return None if callback is None else lambda key: callback(public(key))


def _abandon(local: Local, address: str) -> None:
    """A Node was dropped and not closed."""
    local.abandon()
    warnings.warn(f"a dstore.Node of {address} was not closed", ResourceWarning, stacklevel=2)


def _absent() -> LocalState:
    """A state with no lease and an empty cache, in which no hit is found."""
    return LocalState(random16=bytes, label="", cache_bytes=0)


# ---- the Nodes of this process ----------------------------------------------------------------

_nodes: weakref.WeakSet[Node] = weakref.WeakSet()
_connected: list[Node] = []
_connecting = native.RLock()


def connect(address: str | None = None, **settings: Any) -> Node:
    """The Node of this process for an address (and other settings, as for :class:`Node`).

    Whoever asks with the same settings gets the same one; it lives until it is closed, which
    nobody has to do, or the process ends. In a forked child, and in processes that were spawned,
    it is one of their own. Safe from any thread. Raises what :class:`Node` raises.
    """
    unknown = settings.keys() - set(_Settings._fields[1:])
    if unknown:
        raise TypeError(
            f"connect() has no setting {min(unknown)!r}; there are "
            f"{', '.join(_Settings._fields[1:])}"
        )
    return _kept(_checked(address, **settings))


def _restored(settings: _Settings) -> Node:
    """What an unpickled Node is: the one of this process with these settings, however made."""
    for node in list(_nodes):
        if node._settings == settings and not node._closed:
            return node
    return _kept(settings)


def _kept(settings: _Settings) -> Node:
    with _connecting:
        for node in _connected.copy():  # no dict, as settings need not be hashable
            if node._settings == settings and not node._closed:
                return node
        made = Node(**settings._asdict())
        _connected.append(made)
        return made


def _after_fork_in_child() -> None:
    global _connecting
    _connecting = native.RLock()
    for node in list(_nodes):
        node._forked()


def _public_name(session: int) -> int:
    """A number that tells sessions apart, 0 for none. The id itself is a secret of this process
    and Global: any peer that knows it can acknowledge deletions in its name.
    """
    return int.from_bytes(content.digest("session", b"%d" % session)[:4], "big") if session else 0


def _at_exit() -> None:
    for node in list(_nodes):
        with contextlib.suppress(Exception):
            node.close()


def _close_at_exit_of_child() -> None:
    """A child of multiprocessing ends without what atexit knows; it has a list of its own.

    That list is emptied when the child begins, which may be after a Node was unpickled in it.
    """
    global _listed_in
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _listed_in != os.getpid():
        _listed_in = os.getpid()
        util.register_after_fork(_at_exit, _list)
        if sys.modules["multiprocessing.process"].parent_process() is not None:
            _list(_at_exit)


def _list(at_exit: Callable[[], None]) -> None:
    sys.modules["multiprocessing.util"].Finalize(None, at_exit, exitpriority=0)


_listed_in = 0

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
