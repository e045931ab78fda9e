"""``dstore host``: owns the membership that the processes of this host share.

:class:`~dstore.core.local.owner.OwnerState` with its sockets and files, in one thread. It runs no
code of users, so nothing holds it up for longer than a lease.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dstore.client.cluster.routing import Map, map_of
from dstore.client.large import LargeValues, random16
from dstore.client.settings import Settings
from dstore.core.local.effects import Dropped, LocalEffect, Subscribe, Tell
from dstore.core.local.owner import OwnerState, Page
from dstore.errors import AddressError, BadMessage, copy_of
from dstore.protocol import wire
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.messages import NO_SESSION, AskMap, Broadcast, MapReply, Welcome
from dstore.quoting import visible
from dstore.runtime import clock, native
from dstore.runtime.logs import INFO, Log, RateLimitedLog
from dstore.runtime.native import signals_blocked
from dstore.shm.directory import Unusable
from dstore.shm.hosts import Owned
from dstore.shm.share import Share
from dstore.transport import addresses
from dstore.transport.link import Link

log = Log("dstore.host")

GOODBYE_MAX = 0.5
"""Seconds that the end waits for Global to answer the goodbye."""
CHECK_EVERY = 2.0
"""Seconds between two looks at whether the processes of the host find the page."""
UNREACHED_AFTER = 3.0
"""Seconds without a session after which the log says that Global is not reached."""
FAILURE_PAUSE = 0.1
"""Seconds of rest after a failure of dstore itself."""
NEVER = float("inf")
MAP_EVERY = 2.0
"""Seconds between two questions for the map of the cluster, if Global is a member of one."""


class CannotOwn(ValueError):
    """This process cannot own the membership of its host. The message says why."""


class HostOwner:
    """The owner of the membership of this host in the Global at ``address``.

    ``connect`` is the path of a connect file, with the keys of the identity as which it joins.
    Without an ``address`` the file has it, which ``$DSTORE_CONNECT`` may name, too. ``shm`` is the
    folder for shared memory, ``host_cache`` the size of the host cache; None stands for the
    defaults, and a ``host_cache`` of 0 for none. ``changed`` is called when processes can use the
    membership (True), and when they cannot any more (False); ``mapped`` now and then, with the
    members of the cluster if Global is a member of one. ``cluster`` is the id of the cluster whose
    members it joins, if that is known.

    Raises CannotOwn, AddressError, BadConnectFile and GlobalUnavailable.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        connect: str | None = None,
        shm: str | None = None,
        host_cache: int | None = None,
        changed: Callable[[bool], None] = lambda there: None,
        mapped: Callable[[Map], None] = lambda found: None,
        cluster: bytes = NO_CLUSTER,
    ) -> None:
        settings = Settings(address, connect=connect)
        self.address = settings.address
        self._keyed = settings.keys is not None
        self.state = OwnerState(
            random16=random16,
            label=f"dstore host of {native.gethostname()}, process {os.getpid()}",
            open_page=self._open_page,
        )
        self._cluster = cluster
        self._changed = changed
        self._mapped = mapped
        self._map_at = NEVER
        self._there = False
        self._stopping = False
        self._error: Exception | None = None  # why it must end
        self._check_at = NEVER
        self._complain_at = clock.now() + UNREACHED_AFTER
        self._complained = ""
        self._rate_limited_log = RateLimitedLog(log)
        self._large = LargeValues(shm, None)
        names = [addresses.canonical(self.address)]
        self._share = Share(shm, names, f"dstore host of {self.address}", host_cache)
        self._take()
        try:
            with signals_blocked():
                self._link = Link(self.address, settings.keys, settings.read_keys)
                self._link.control.set_topics({wire.topic(Broadcast)})
        except BaseException:
            self._share.close()
            raise

    def __repr__(self) -> str:
        return f"<HostOwner of {self.address} {self.state!r}>"

    def stop(self) -> None:
        """Make :meth:`run` end. From any thread or signal handler."""
        self._stopping = True
        self._link.control.wake()

    def belong(self, cluster: bytes) -> None:
        """Join no Global of another cluster from now on. From any thread."""
        self._cluster = cluster
        self._link.control.wake()

    def run(self) -> None:
        """Own the membership until :meth:`stop`; then void it, say goodbye, and release all.

        Raises CannotOwn if Global refuses it for good or another owner has taken its place,
        AccessDenied if Global does not admit it, and WrongServer if another server is there.
        """
        try:
            while not self._stopping and not self._error:
                self._guarded_turn(NEVER)
            self._leave()
        finally:
            self._link.control.close()
            self._share.close()
            self._large.close()
            self._link.close(lambda thread: False)
        if self._error:
            raise self._error

    def _leave(self) -> None:
        """Void and remove the page, then say goodbye and wait for the answer."""
        until = clock.now() + GOODBYE_MAX
        self.state.goodbye(clock.now())
        self._announce()
        while self.state.leaving and clock.now() < until:
            self._guarded_turn(until)

    # ---- turns ----------------------------------------------------------------------------

    def _guarded_turn(self, until: float) -> None:
        try:
            self._turn(until)
        except Exception:  # a defect of dstore, or a page that cannot be voided
            log.exception("the owner of the shared cache of %s failed and goes on", self.address)
            native.sleep(FAILURE_PAUSE)

    def _turn(self, until: float) -> None:
        state, control = self.state, self._link.control
        self._act(clock.now())
        wake_at = min(state.wake_at, self._check_at, self._complain_at, self._map_at, until)
        if self._error or (self._stopping and until == NEVER):
            return
        frames, up = control.wait(wake_at - clock.now())
        now = clock.now()
        if up:
            state.reconnected(now)
        state.deny(control.denied)
        for frame in frames:
            self._take_frame(frame, now)
        self._act(now)

    def _act(self, now: float) -> None:
        """Do what is due."""
        if self._cluster:
            self.state.belong(self._cluster, now)
        if now >= self._check_at:
            self._check(now)
        if now >= self.state.wake_at:
            self._perform(self.state.tick(now))
        if now >= self._map_at:
            self._map_at = now + MAP_EVERY
            question = AskMap(0, NO_SESSION, self.state.next_request())
            self._link.control.send(wire.encode(question))
        if self.state.refusal:
            self._error = CannotOwn(f"Global at {self.address} refuses: {self.state.refusal}")
        if self.state.denied is not None:
            self._error = copy_of(self.state.denied)
        self._announce()
        if now >= self._complain_at:
            self._complain(now)

    def _take_frame(self, frame: bytes, now: float) -> None:
        try:
            message = wire.decode_to_local(frame, None)
        except wire.OtherVersion as error:
            self.state.refuse(str(error), now)
        except BadMessage as error:
            self._rate_limited_log.warning("dropped a frame that is not Global's: %s", error)
        else:
            if isinstance(message, MapReply):
                if not message.members:
                    self._map_at = NEVER  # until the next epoch
                self._mapped(map_of(message))
            self._perform(self.state.receive(message, now))

    def _perform(self, effects: list[LocalEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self._link.control.send(wire.encode(effect.message))
            elif isinstance(effect, Subscribe):
                self._subscribe(effect.publisher)
                self._large.joined(effect.epoch)
            elif isinstance(effect, Dropped):
                self._large.drop(effect.tokens)

    def _subscribe(self, publisher: str) -> None:
        try:
            self._link.control.subscribe(publisher)
        except AddressError as error:
            log.warning("cannot hear deletions, only renewals bring them: %s", visible(str(error)))

    # ---- files ----------------------------------------------------------------------------

    def _take(self) -> None:
        """Take the names. Raises CannotOwn."""
        if not self._share.available:
            raise CannotOwn(
                "there is no shared memory that processes could share: name a folder on a tmpfs "
                "with --shm or $DSTORE_SHM"
            )
        try:
            self._share.take()
        except Owned as error:
            raise CannotOwn(
                f"{error} (Global shares the cache of its own host by itself)"
            ) from None
        except (Unusable, OSError) as error:
            raise CannotOwn(f"no cache can be shared on this host: {error}") from None

    def _open_page(self, message: Welcome) -> Page:
        try:
            self._take()
        except CannotOwn as error:
            self._error = error
            raise
        return self._share.open(
            epoch=message.epoch,
            session=message.session,
            lease=message.lease,
            value_limit=message.value_limit,
            large_from=message.large_from,
            publisher=message.publisher,
            keyed=self._keyed,
            cluster=message.cluster,
        )

    def _check(self, now: float) -> None:
        self._check_at = now + CHECK_EVERY
        if self.state.published is not None and not self._share.findable:
            log.warning("the page of the shared cache was removed; it is replaced")
            self.state.abandon(now)
            self._share.close()  # the folder may be another one: the names are taken again

    # ---- what people see ------------------------------------------------------------------

    def _announce(self) -> None:
        there = self.state.published is not None
        if there == self._there:
            return
        self._there = there
        self._check_at = clock.now() + CHECK_EVERY if there else NEVER
        self._map_at = clock.now() if there else NEVER
        self._complain_at = NEVER if there else clock.now() + UNREACHED_AFTER
        self._complained = ""
        state = "share one cache" if there else "share no cache any more"
        log.log(INFO, "the processes of this host %s of %s", state, self.address)
        self._changed(there)

    def _complain(self, now: float) -> None:
        """Log why there is no page, once for each reason."""
        self._complain_at = now + UNREACHED_AFTER
        reason = self.state.trouble or self.state.last_error or self._link.control.last_error
        text = reason or "it does not answer"
        if text != self._complained and not self._stopping:
            self._complained = text
            log.warning("no shared cache of Global at %s: %s", self.address, visible(text))
