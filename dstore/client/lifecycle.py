"""The life of a Node: its Local is made, made again in a forked child, and closed.

A Node has one Local at a time. It is made with the Node, and once more in each forked child on
first use: the parent's lease, cache, sockets, threads and locks are not usable there. Nodes that
are open when Python exits are closed, so that Global receives a goodbye and does not have to
wait for their leases.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeVar

from dstore.client.cluster.members import Members
from dstore.client.commands import Commands
from dstore.client.hits import Hits, find
from dstore.client.host_page import can_be_inherited
from dstore.client.hosts.local import Local
from dstore.client.settings import Settings
from dstore.codecs import Codecs
from dstore.core.local.cache import leave_index
from dstore.core.local.membership import Entry
from dstore.core.local.state import LocalState
from dstore.errors import NodeClosed
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.keys import public
from dstore.protocol.messages import Key
from dstore.runtime import greenlets as green
from dstore.runtime import native
from dstore.shm import check_root

N = TypeVar("N", bound="Lifecycle")
PACKAGE = __name__.partition(".")[0]


class Lifecycle(Hits):
    """The base of :class:`dstore.Node`: settings, state and life. Safe from any thread.

    ``_state`` has no lease and no entries while there is no Local.
    """

    _state: LocalState

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        check_root(settings.shm)
        self.address = settings.address
        self._commands = Commands(
            Codecs(settings.codecs, pickle=settings.pickle),
            settings.timeout,
            settings.stale_ok,
            settings.addresses,
        )
        self._place = _Place()
        self._closed = False
        self._home = settings.each_address[0]
        self._local: Local | None = None  # that of the first address
        self._locals: dict[str, Local] = {}  # of this process, by address
        self._parents: dict[str, LocalState] = {}  # in a forked child: the states of the parent's
        self._inherited: dict[str, LocalState] = {}  # and what can be used of them
        self._members: Members | None = None  # if there are several Globals
        self._cluster = NO_CLUSTER  # of the parent's Locals, in a forked child
        self._state = _ABSENT
        self._index = None
        self._hits = 0
        self._birth = native.RLock()  # a signal handler may close a Node while it is being made
        _nodes.add(self)
        if len(settings.each_address) > 1:
            self._members = self._new_members()
            self._index_all()
        self._here()

    @classmethod
    def _made_with(cls: type[N], settings: Settings) -> N:
        made = cls.__new__(cls)
        Lifecycle.__init__(made, settings)
        return made

    @classmethod
    def _connect(cls: type[N], settings: Settings) -> N:
        with _connecting:
            made = cls._open_one_of(_connected, settings)
            if made is None:
                made = cls._made_with(settings)
                _connected.append(made)
            return made

    @classmethod
    def _unpickle(cls: type[N], settings: Settings) -> N:
        """Return any Node of this process with these settings; connect one if there is none."""
        return cls._open_one_of(_nodes, settings) or cls._connect(settings)

    @classmethod
    def _open_one_of(cls: type[N], nodes: Iterable[Lifecycle], settings: Settings) -> N | None:
        for node in list(nodes):  # no dict, because settings may have no hash
            if isinstance(node, cls) and node._settings == settings and not node._closed:
                return node
        return None

    def _here(self) -> Local:
        """Return the Local of this process; it is made here, once, after a fork.

        With several Globals it is that of the first one.
        """
        return self._local or self._open(self._home)

    def _open(self, address: str) -> Local:
        """Return the Local of this process for the Global at an address; it is made here, once."""
        local = self._locals.get(address)
        if local is not None:
            return local
        green.here()  # for what a thread of this Node may have to log
        with self._birth:
            self._check_open()
            local = self._locals.get(address)
            if local is None:
                _close_at_exit_of_child()
                on_deletion = _announcer(self._settings.on_deletion)
                settings, label = self._settings.at(address), self._label_here()
                local = Local(settings, label, on_deletion, self._cluster_known())
                try:
                    if self._index is not None:  # first, so that what starts is in the index
                        local.join_index(self._index)
                    local.start(self._parents.get(address))
                    if not self._locals:
                        self._dropped = weakref.finalize(
                            self, _abandon, self._locals, self.address, self._place
                        )
                        self._dropped.atexit = False
                    self._locals[address] = local
                    self._leave_inherited(address, local)
                    self._show()
                    self._check_open()  # a signal handler may have closed it, in this thread
                except BaseException:  # after Ctrl-C the program may never get this Node
                    if self._locals.pop(address, None) is not None and not self._locals:
                        self._dropped.detach()
                    local.abandon()
                    raise
                self._parents.pop(address, None)
        return local

    def _cluster_known(self) -> bytes:
        """Return the id of the cluster that this Node belongs to, if that is known."""
        members = self._members
        return self._cluster if members is None else members.routes.cluster or self._cluster

    def _show(self) -> None:
        """Let hits find what the Locals have cached, and what was inherited."""
        local = self._locals.get(self._home)
        self._state = _ABSENT if local is None else local.state
        if local is None:
            self._state = self._inherited.get(self._home, _ABSENT)
        self._local = local

    def _index_all(self) -> None:
        """From now on have an index of what all Locals have cached."""
        index: dict[Key, Entry] = {}
        for local in list(self._locals.values()):
            local.join_index(index)
        self._index = index

    def _inherit_index(self) -> None:
        """In a forked child: have an index of what can be used of the parent's."""
        former, self._index = self._index, {}
        homes = {id(state.membership) for state in self._inherited.values()}
        for key, entry in (former or {}).items() if homes else ():
            if id(entry.home) in homes:
                self._index[key] = entry

    def _leave_inherited(self, address: str, local: Local) -> None:
        """Forget what was inherited, unless the Local of this process has taken it over.

        A Local that has not may be of another session by now; what is left would be in the index
        without a cache that drops it.
        """
        former, index = self._inherited.pop(address, None), self._index
        if former is None or index is None or former.entries is local.state.entries:
            return
        for entry in list(former.entries.values()):
            entry.home = None
            leave_index(index, entry)

    def _find(self, name: Key) -> Entry | None:
        """Return an entry that is in no index, since two Locals have stored its key at a time."""
        index = self._index
        for local in list(self._locals.values()):
            entry = find(local.state, name)
            if entry is not None and index is not None:
                index[entry.key] = entry
                if entry.home is None:  # it may have been dropped before this, and would stay
                    leave_index(index, entry)
                return entry
        return None

    def _new_members(self) -> Members:
        settings = self._settings
        members = Members(
            settings.each_address,
            self._commands,
            self._locals,
            weakref.WeakMethod(self._open),
            weakref.WeakMethod(self._show),
            settings.cache_bytes,
        )
        weakref.finalize(self, members.watching.stop).atexit = False
        return members

    def _become_several(self) -> Members:
        """Go on as a Node of several Globals: the one at the address is a member of a cluster."""
        with self._birth:
            self._check_open()
            if self._members is None:
                members = self._new_members()
                self._index_all()
                self._members = members
                members.watching.adopt(self._here().watches.present)
            return self._members

    def _opened(self, entry: Entry) -> Any:
        return self._commands.opened(entry)

    def _label_here(self) -> str:
        return self._settings.label or f"{native.gethostname()}:{os.getpid()}"

    def _check_open(self) -> None:
        if self._closed:
            raise NodeClosed("the Node is closed")

    def close(self) -> None:
        """Leave Global and release everything. Safe from any thread and from signal handlers.

        Idempotent: it may be called again after Ctrl-C. Calls from several threads all wait until
        the Node is closed.
        """
        with contextlib.suppress(ValueError):  # most Nodes are not in this list
            _connected.remove(self)
        with self._birth:
            self._closed = True
            locals_ = list(self._locals.values())
            self._state, self._index = _ABSENT, None
            self._parents, self._inherited = {}, {}
        members = self._members
        if members is not None:
            members.watching.stop()
            for local in locals_:
                local.hasten()
            members.watching.join()
        if locals_:
            for local in locals_:
                local.close()
            self._dropped.detach()
            self._local = None  # last, so that a call that was interrupted above can be repeated
            self._locals.clear()
        _nodes.discard(self)

    def __enter__(self: N) -> N:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _forked(self) -> None:
        if self._locals:
            self._dropped.detach()
            self._parents.update({each: local.forked() for each, local in self._locals.items()})
        for parent in self._parents.values():
            self._cluster = self._cluster or parent.cluster
        self._state, self._local, self._locals = _ABSENT, None, {}
        self._birth = native.RLock()
        # What the parent has cached is good here, too, and is there before this process has looked
        # for anything: the page says what is still valid.
        self._parents = {
            address: parent
            for address, parent in self._parents.items()
            if not self._closed and can_be_inherited(parent)
        }
        self._inherited = {each: _inherited(parent) for each, parent in self._parents.items()}
        if self._members is not None:
            self._members.watching.end()
            routes, self._members = self._members.routes, self._new_members()
            self._members.routes.learn(routes.map)
            self._inherit_index()
        else:  # the parent may have been about to become a Node of several Globals
            self._index = None
        self._show()
        self._hits = self._commands.hits = self._commands.misses = 0


class _Place:
    """The line, outside of dstore, that is making a Node."""

    __slots__ = ("file", "line")  # without slots Python 3.11 does not find where it was allocated

    def __init__(self) -> None:
        frame: FrameType | None = sys._getframe()
        while frame and (frame.f_globals.get("__name__") or "").partition(".")[0] == PACKAGE:
            frame = frame.f_back
        self.file = frame.f_code.co_filename if frame else "?"
        self.line = frame.f_lineno if frame else 1


def _announcer(callback: Callable[[str | bytes], None] | None) -> Callable[[Key], None] | None:
    """Return the callback, given keys as a program knows them. It does not refer to the Node."""
    return None if callback is None else lambda key: callback(public(key))


def _abandon(locals_: dict[str, Local], address: str, place: _Place) -> None:
    """Warn that a Node was dropped and not closed; the warning names the line that made it.

    With ``-X tracemalloc`` it also has the calls that led to that line.
    """
    for local in list(locals_.values()):
        local.abandon()
    message = f"a dstore.Node of {address} was not closed"
    warnings.warn_explicit(message, ResourceWarning, place.file, place.line, source=place)


def _absent() -> LocalState:
    """Return a state with no lease and an empty cache, in which no hit is found."""
    return LocalState(random16=lambda: bytes(16), label="", cache_bytes=0)


def _inherited(parent: LocalState) -> LocalState:
    """Return a state with what a forked child can use of its parent's."""
    state = _absent()
    state.membership, state.page, state.lease = parent.membership, parent.page, parent.lease
    return state


_ABSENT = _absent()
"""For Nodes that have no Local yet, or none any more. Nothing changes it."""


_nodes: weakref.WeakSet[Lifecycle] = weakref.WeakSet()
_connected: list[Lifecycle] = []
_connecting = native.RLock()


def _after_fork_in_child() -> None:
    global _connecting
    _connecting = native.RLock()
    for node in list(_nodes):
        node._forked()


def _at_exit() -> None:
    for node in list(_nodes):
        with contextlib.suppress(Exception):
            node.close()


def _close_at_exit_of_child() -> None:
    """Register the closing of Nodes where a child of multiprocessing looks at its exit.

    Such a child does not run what atexit has registered; multiprocessing has a list of its own. The
    list is emptied when the child begins, which may be after a Node was unpickled in it.
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
