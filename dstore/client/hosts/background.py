"""The background thread of one Local: it joins, renews the lease and applies invalidations."""

from __future__ import annotations

from collections.abc import Callable

from dstore.client.hosts.core import Host, log
from dstore.client.hosts.loop import LoopHost
from dstore.client.large import release
from dstore.client.watch import Watches
from dstore.core.local.entries import LAPSED
from dstore.core.local.state import Announce, Dropped, LocalEffect, Subscribe, Tell
from dstore.errors import AddressError, GlobalUnavailable
from dstore.protocol import wire
from dstore.protocol.messages import Broadcast, Committed, Key
from dstore.quoting import visible
from dstore.runtime import clock, native, reentrancy
from dstore.transport.limits import no_threads

GOODBYE_MAX = 0.5
"""Seconds that closing waits for Global to answer the goodbye."""
FAILURE_PAUSE = 0.1
"""Seconds that the background thread rests after it failed."""
CHECK_EVERY = 2.0
"""Seconds between two looks at whether the shared files of cached values are still there."""
CHECK_MAX = 500
"""Files looked at in one go."""
DELETIONS, COMMITTED = wire.topic(Broadcast), wire.topic(Committed)


class Background:
    """The thread and what it does. ``on_deletion`` is called with each key that is invalidated."""

    def __init__(
        self,
        host: Host,
        loop: LoopHost,
        watches: Watches,
        on_deletion: Callable[[Key], None] | None,
    ) -> None:
        self._host = host
        self._loop = loop
        self._watches = watches
        self._evicted_files = EvictedFiles(host)
        self._on_deletion = on_deletion
        self._trouble = ""  # why Global is not reached
        self.thread = native.Thread(self._serve, "dstore-local")

    def start(self) -> None:
        """Start the thread. Raises GlobalUnavailable if the system gives none."""
        self._host.link.control.set_topics({DELETIONS})
        try:
            self.thread.start()
        except RuntimeError as error:
            raise GlobalUnavailable(no_threads(error)) from None

    def _serve(self) -> None:
        host = self._host
        host.background_thread = native.get_ident()
        try:
            goodbye_until = None
            while goodbye_until is None or (host.state.session and clock.now() < goodbye_until):
                self._guarded_turn(goodbye_until)
                if host.stopping and goodbye_until is None:
                    goodbye_until = clock.now() + GOODBYE_MAX
                    self._loop.shut()
                    with host.lock:
                        host.state.goodbye(clock.now())
        finally:
            self._watches.end()
            host.link.control.close()
            host.large.close()
            host.link.close(reentrancy.inside.__contains__)

    def _guarded_turn(self, until: float | None) -> None:
        try:
            self._turn(until)
        except Exception:  # a defect of dstore; without this thread the Node would be useless
            log.exception("the background thread of a Node failed and goes on")
            native.sleep(FAILURE_PAUSE)

    def _turn(self, until: float | None) -> None:
        host = self._host
        state, control = host.state, host.link.control
        self._evicted_files.check(clock.now())
        with host.lock:
            due = state.wake_at <= clock.now()
            effects = state.tick(clock.now()) if due else []
            wake_at = min(state.wake_at, self._loop.wake_at)
            if state.cache.shared:
                wake_at = min(wake_at, host.next_check)
            host.asleep_until = wake_at
            watched = bool(state.watching.watchers)
        control.set_topics({DELETIONS, COMMITTED} if watched else {DELETIONS})
        self._perform(effects)
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
            for message in messages:
                effects += state.receive(message, now)
            effects += state.tick(now)
            host.notify()
        self._perform(effects)
        self._loop.turn()

    def _perform(self, effects: list[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self._host.link.control.send(wire.encode(effect.message))
            elif isinstance(effect, Subscribe):
                self._subscribe(effect.publisher)
                self._host.large.joined(effect.epoch)
            elif isinstance(effect, Announce):
                self._watches.announce(effect.removals)
            else:
                self._drop(effect)

    def _subscribe(self, publisher: str) -> None:
        try:
            self._host.link.control.subscribe(publisher)
        except AddressError as error:
            log.warning("cannot hear deletions, only renewals bring them: %s", visible(str(error)))

    def _drop(self, effect: Dropped) -> None:
        """Release what deleted values have taken, and call ``on_deletion``."""
        self._host.large.drop(effect.tokens)
        release(effect.entries)
        if self._on_deletion is None:
            return
        for key in effect.keys:
            try:
                self._on_deletion(key)
            except BaseException:
                log.exception("on_deletion(%r) failed", key)


class EvictedFiles:
    """Removes the entries of values whose shared files are gone, which keep their memory taken."""

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
                self._unchecked = list(host.state.cache.shared)
        tokens, self._unchecked = self._unchecked[:CHECK_MAX], self._unchecked[CHECK_MAX:]
        host.next_check = now if self._unchecked else now + CHECK_EVERY
        shared = host.state.cache.shared
        gone = host.large.evicted(entry for token in tokens if (entry := shared.get(token)))
        with host.lock:
            entries = [shared[token] for token in gone if token in shared]
            for key in [entry.key for entry in entries]:  # no variable may keep an entry
                host.state.cache.discard(key)
        release(entries)
