"""One Local, of one process: LocalState with sockets, threads and a lock.

Its background thread joins, renews the lease, and applies and confirms deletions. It owns the
control channel, and it serves the loop host, whose operations wait there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.client.commands import Command
from dstore.client.host_page import HostPage, look
from dstore.client.hosts.core import Host, log
from dstore.client.hosts.loop import LoopHost
from dstore.client.hosts.threads import ThreadHost
from dstore.client.large import release
from dstore.client.settings import Settings
from dstore.client.watch import Watches
from dstore.core.local.effects import (
    Announce,
    Dropped,
    LocalEffect,
    Look,
    Subscribe,
    TakeBack,
    Tell,
)
from dstore.core.local.membership import LAPSED, Entry
from dstore.core.local.operations import One, ReadOptions
from dstore.core.local.state import LocalState
from dstore.errors import AddressError, DstoreError, GlobalUnavailable
from dstore.protocol import wire
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.messages import Broadcast, Committed, Key
from dstore.quoting import visible
from dstore.runtime import clock, native, reentrancy
from dstore.runtime import greenlets as green
from dstore.runtime.native import signals_blocked
from dstore.shm.directory import Unusable
from dstore.transport.limits import no_threads
from dstore.transport.link import Link

GOODBYE_MAX = 0.5
"""Seconds that closing waits for Global to answer the goodbye."""
FAILURE_PAUSE = 0.1
"""Seconds that the background thread rests after it failed."""
CHECK_EVERY = 2.0
"""Seconds between two looks at whether the shared files of cached values are still there."""
CHECK_MAX = 500
"""Files looked at in one go."""
DELETIONS, COMMITTED = wire.topic(Broadcast), wire.topic(Committed)


class Local:
    """The parts of one Local, alive from :meth:`start` on.

    ``run`` is for calling threads, ``loop`` for tasks and greenlets; ``watch`` begins a watch.
    ``on_deletion`` is called with each key that is invalidated. ``cluster`` is the id of the
    cluster whose Globals it uses, if that is known.
    """

    def __init__(
        self,
        settings: Settings,
        label: str,
        on_deletion: Callable[[Key], None] | None,
        cluster: bytes = NO_CLUSTER,
    ) -> None:
        self._settings = settings
        self.address = settings.address
        self.host = Host(settings, label, on_deletion is not None)
        self.state = self.host.state
        self.state.belong(cluster, clock.now())
        self.large = self.host.large
        self._loop = LoopHost(self.host)
        self._threads = ThreadHost(self.host)
        self._watches = Watches(self.host)
        self._going = native.RLock()  # held while the sockets and the thread are being made
        self._evicted_files = EvictedFiles(self.host)
        self._on_deletion = on_deletion
        self._trouble = ""  # why Global is not reached
        self._denied: DstoreError | None = None  # why it does not let this client in, it is said
        self._told: DstoreError | None = None  # and what the calls under way know of that
        self._thread = native.Thread(self._serve, "dstore-local")
        self._is_up = False  # whether sockets and thread are there: one is made after the other

    def start(self, parent: LocalState | None = None) -> None:
        """Use the membership of this host or, if there is none, begin to join.

        In a forked child ``parent`` is the state that the parent had, whose entries stay good if
        its membership was that of the host. Raises AddressError, and GlobalUnavailable if the
        system gives no sockets or no threads.
        """
        if self.state.looking:
            page = self._find_page(0)
            if page is not None:
                self._attach(page, parent)
        # Inherited files of large values have to be released when they are deleted.
        if self.state.page is None or self.state.observing or self.state.cache.shared:
            self.go()

    def go(self) -> None:
        """Open the sockets and start the background thread, once: Global is needed.

        Raises as :meth:`start`, and NodeClosed.
        """
        if not self._is_up:
            with self._going:
                self.host.check_open()
                if not self._is_up:
                    self._go()
                    self._is_up = True

    def _go(self) -> None:
        with signals_blocked():
            self.host.check_open()
            if self._thread.started:  # a signal handler has done all this just now
                return
            settings = self._settings
            link = self.host.link = Link(settings.address, settings.keys, settings.read_keys)
            try:
                self._thread.start()
            except BaseException as error:
                if self._thread.started:
                    raise
                # The next call may try again.
                del self.host.link
                link.control.close()
                link.close(reentrancy.inside.__contains__)
                if isinstance(error, RuntimeError):
                    raise GlobalUnavailable(no_threads(error)) from None
                raise

    def close(self) -> None:
        """Say goodbye, end waiting calls, release everything. Safe from any thread; idempotent.

        The background thread does all that, so that Ctrl-C meanwhile leaves nothing half done. This
        waits for it, but neither in that thread (``on_deletion``) nor in a signal handler in the
        middle of a call of any Node. If it is a call of this Node, the end of the call waits.
        """
        with self._going:  # from here on the thread does not start any more
            self.host.stopping = True
        # Not within: the background thread, or one that it needs, may be about to close this, too.
        self.host.stop(self._wait_closed)
        if not self._thread.started:
            self._thread.forget()
            self._release()

    def hasten(self) -> None:
        """Begin what :meth:`close` waits for: several Locals end at the same time."""
        with self._going:
            self.host.stopping = True
        if self._thread.started:
            self.host.link.control.wake()

    def abandon(self) -> None:
        """Do what :meth:`close` does, for the garbage collector: take no lock, and do not wait."""
        self.host.stopping = True
        self.state.lapse()
        if self._thread.started:
            self.host.link.control.wake()
        else:
            self._thread.forget()
            self._close_page()

    def _release(self) -> None:
        """Give back what this Local has without its thread."""
        self.host.large.close()
        self._close_page()

    def _close_page(self) -> None:
        page = self.state.page
        if isinstance(page, HostPage):
            page.close()

    def forked(self) -> LocalState:
        """In a forked child: end what belongs to the parent. Returns what it may inherit."""
        self._watches.end()
        return self.state

    def _wait_closed(self) -> None:
        if self._thread.started and not self._thread.is_this():
            green.blocking(self._join)

    def _join(self) -> None:
        self._thread.join()
        self._loop.join()

    # ---- calls ----------------------------------------------------------------------------

    @property
    def run(self) -> Callable[[Command[Any]], Any]:
        """Carries out a command in the thread that calls it."""
        self.go()
        return self._threads.run

    @property
    def get(self) -> Callable[[Key, float, ReadOptions], One | None]:
        """Reads one key; see :meth:`ThreadHost.get`."""
        self.go()
        return self._threads.get

    @property
    def loop(self) -> LoopHost:
        """Carries out commands for tasks and greenlets."""
        self.go()
        return self._loop

    @property
    def watches(self) -> Watches:
        """The watches of this Local."""
        self.go()
        return self._watches

    def wake(self) -> None:
        """Have the background thread look again, if there is one."""
        if self._is_up:
            self.host.link.control.wake()

    def join_index(self, index: dict[Key, Entry]) -> None:
        """Put what is cached into an index that several Locals have."""
        self.host.aside(lambda: self.state.join_index(index))

    def belong(self, cluster: bytes) -> None:
        """Use Globals of this cluster and no others from now on. Sessions at others end."""
        self.host.aside(lambda: self._belong(cluster))

    def _belong(self, cluster: bytes) -> None:
        self.state.belong(cluster, clock.now())
        self.host.notify()

    def bound(self, cache_bytes: int, shared_bytes: int | None) -> None:
        """Change the bounds of the cache, in bytes: by itself, and beside a host cache."""
        self.host.aside(lambda: self.state.bound(cache_bytes, shared_bytes))

    # ---- in the background thread ---------------------------------------------------------

    def _serve(self) -> None:
        host = self.host
        host.background_thread = native.get_ident()
        try:
            goodbye_until = None
            while goodbye_until is None or (host.state.leaving and clock.now() < goodbye_until):
                self._guarded_turn(goodbye_until)
                if host.stopping and goodbye_until is None:
                    goodbye_until = clock.now() + GOODBYE_MAX
                    self._loop.shut()
                    with host.lock:
                        host.state.goodbye(clock.now())
        finally:
            self._watches.end()
            host.link.control.close()
            self._release()
            host.link.close(reentrancy.inside.__contains__)

    def _guarded_turn(self, until: float | None) -> None:
        try:
            self._turn(until)
        except Exception:  # a defect of dstore; without this thread the Node would be useless
            log.exception("the background thread of a Node failed and goes on")
            native.sleep(FAILURE_PAUSE)

    def _turn(self, until: float | None) -> None:
        host = self.host
        state, control = host.state, host.link.control
        self._evicted_files.check(clock.now())
        with host.lock:
            if state.watching.watchers:
                self._watches.end_closed()
            due = state.wake_at <= clock.now()
            effects = state.tick(clock.now()) if due else []
            wake_at = min(state.wake_at, self._loop.wake_at)
            if state.cache.shared:
                wake_at = min(wake_at, host.next_check)
            host.asleep_until = wake_at
            topics = {DELETIONS} if state.joined.session or state.page is None else set()
            if topics and state.watching.watchers:
                topics.add(COMMITTED)
        control.set_topics(topics)
        self._perform(effects)
        if host.large.has_former and not state.former.epoch:
            host.large.forget_former()
        if host.stopping and until is None:
            return
        frames, up = control.wait(min(wake_at, until or wake_at) - clock.now())
        messages = [message for message in map(host.decode, frames) if message is not None]
        effects = []
        with host.lock:
            host.asleep_until = LAPSED
            now = clock.now()
            if up:
                state.reconnected(now)
            if self._trouble != control.last_error:
                self._trouble = state.last_error = control.last_error
            if self._denied is not control.denied:
                self._denied = control.denied
                state.deny(self._denied)
            for message in messages:
                effects += state.receive(message, now)
            effects += state.tick(now)
            denied = state.denied
            host.notify()
        self._perform(effects)
        if self._told is not denied:
            self._tell_denied(denied)
        self._loop.turn()

    def _tell_denied(self, error: DstoreError | None) -> None:
        """End what waits for Global, which does not let this client in; None: it does again."""
        self._told = error
        if error is not None:
            self.host.link.channels.close_idle()
            self._loop.deny()
            self._watches.deny(error)

    def _perform(self, effects: list[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self.host.link.control.send(wire.encode(effect.message))
            elif isinstance(effect, Subscribe):
                self._subscribe(effect.publisher)
                self.host.large.joined(effect.epoch)
            elif isinstance(effect, Look):
                self._look(effect.epoch)
            elif isinstance(effect, Announce):
                self._watches.announce(effect.removals)
            elif isinstance(effect, TakeBack):
                self._take_back(effect)
            else:
                self._drop(effect)

    def _look(self, epoch: int) -> None:
        """Look for the page of this host, and use it."""
        page = self._find_page(epoch)
        if page is not None:
            with self.host.lock:
                self._attach(page)
                self.host.notify()
            if self.state.page is page:
                self.host.large.joined(page.epoch)

    def _find_page(self, epoch: int) -> HostPage | None:
        try:
            settings = self._settings
            page = look(
                settings.shm,
                settings.address,
                epoch,
                keyed=settings.keys is not None,
                prefixes=settings.prefixes,
            )
        except Unusable as error:
            self.state.no_page = str(error)
            return None
        self.state.no_page = ""
        return page

    def _attach(self, page: HostPage, parent: LocalState | None = None) -> None:
        former, now = self.state.page, clock.now()
        inherited = parent.page if parent is not None else None
        if parent is not None and isinstance(inherited, HostPage) and inherited.same_as(page):
            digests = parent.cache.digests
            self.state.inherit(page, parent.membership, now, digests)
        else:
            self.state.attach(page, now)
        unused = former if self.state.page is page else page
        if isinstance(unused, HostPage):
            unused.close()

    def _subscribe(self, publisher: str) -> None:
        try:
            self.host.link.control.subscribe(publisher)
        except AddressError as error:
            log.warning("cannot hear deletions, only renewals bring them: %s", visible(str(error)))

    def _take_back(self, effect: TakeBack) -> None:
        """Find large values of the former session in shared memory, and store them again."""
        host, membership = self.host, effect.membership
        for key, found, former in effect.values:
            body = host.large.take_back(membership.epoch, found.stored, former)
            if body is not None:
                with host.lock:
                    host.state.taken_back(membership, key, found, body)
                    host.notify()

    def _drop(self, effect: Dropped) -> None:
        """Release what deleted values have taken, and call ``on_deletion``."""
        self.host.large.drop(effect.tokens)
        release(effect.entries)
        if self._on_deletion is None:
            return
        for key in effect.keys:
            try:
                self._on_deletion(key)
            except BaseException:
                log.exception("on_deletion(%r) failed", key)


class EvictedFiles:
    """Removes the entries of values whose shared files are gone, which keep their memory taken.

    So does it with those that a shared invalidation vector shows to be out of date. And it notices
    that the page has ended where nothing is read: the files would go with the last process that
    has not come to the next epoch.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unchecked: list[bytes] = []

    def check(self, now: float) -> None:
        """Look at the next files, if it is time, and set ``next_check`` of the host."""
        host = self._host
        if not self._unchecked:
            if now < host.next_check:
                return
            with host.lock:
                if host.state.see_page():
                    # Another process may have taken the files to the next epoch, and what was
                    # cached here is about to be offered.
                    host.next_check = now + CHECK_EVERY
                    return
                self._unchecked = list(host.state.cache.shared)
        tokens, self._unchecked = self._unchecked[:CHECK_MAX], self._unchecked[CHECK_MAX:]
        host.next_check = now if self._unchecked else now + CHECK_EVERY
        shared = host.state.cache.shared
        gone = host.large.evicted(entry for token in tokens if (entry := shared.get(token)))
        with host.lock:
            entries = [shared[token] for token in gone if token in shared]
            for key in [entry.key for entry in entries]:  # no variable may keep an entry
                host.state.cache.discard(key)
            present = [shared[token] for token in tokens if token in shared]
            entries += filter(host.state.drop_dead, present)
            del present
        release(entries)
