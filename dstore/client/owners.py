"""``dstore host`` of a cluster: one :class:`HostOwner` for each Global, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from dstore import config
from dstore.client.cluster.routing import NO_MAP, Map, highest
from dstore.client.owner import CannotOwn, HostOwner
from dstore.client.settings import Settings
from dstore.errors import GlobalUnavailable
from dstore.quoting import visible
from dstore.runtime import native
from dstore.runtime.logs import Log

log = Log("dstore.host")

RETRY_EVERY = 5.0
"""Seconds after which a membership that could not be owned is tried again."""
Event: TypeAlias = tuple[str, Exception | Map | None]
"""What has happened at the Global at an address: a map has come, or its owner has ended."""


class HostOwners:
    """The owners of the memberships of this host in the Globals at ``address``.

    It takes what :class:`HostOwner` takes. With one Global that is no member of a cluster it is as
    one HostOwner. The members of a cluster are found by its map: there are owners for new ones, and
    those of members that have left end. A size that was given for the host cache is divided.

    Raises what HostOwner raises. A membership that cannot be owned is an error only if none can be:
    a Global shares the cache of its own host by itself.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        connect: str | None = None,
        shm: str | None = None,
        host_cache: int | None = None,
        changed: Callable[[bool], None] = lambda there: None,
    ) -> None:
        settings = Settings(address, connect=connect)
        self.address = settings.address
        self._each = settings.each_address
        self._own = partial(HostOwner, connect=connect, shm=shm, changed=changed)
        self._host_cache = host_cache
        self._events: native.SimpleQueue[Event] = native.SimpleQueue()
        self._owners: dict[str, HostOwner] = {}
        self._threads: dict[str, native.Thread] = {}
        self._map = NO_MAP
        self._lower: dict[str, Map] = {}  # by owner, since one has had the version that is known
        self._error: Exception | None = None
        self._stopping = False
        try:
            self._begin_all()
        except BaseException:
            self._end(list(self._owners))
            raise

    @property
    def _alone(self) -> bool:
        """Whether there is one Global, as far as is known."""
        return len(self._each) == 1 and not self._map.members

    def _begin_all(self) -> None:
        for each in self._each:
            self._begin(each)
        if self._error is not None and not self._owners:
            raise self._error

    def stop(self) -> None:
        """Make :meth:`run` end. From any thread or signal handler."""
        self._stopping = True
        self._events.put(("", None))

    def run(self) -> None:
        """Own the memberships until :meth:`stop`; then give them up. Raises as HostOwner.run."""
        try:
            while not self._stopping and self._owners:
                try:
                    address, what = self._events.get(True, RETRY_EVERY)
                except native.Empty:
                    self._follow()
                else:
                    if isinstance(what, Map):
                        self._learn(address, what)
                    elif address in self._owners:
                        self._ended(address, what)
        finally:
            self._end(list(self._owners))
        if self._error is not None and not self._stopping:
            raise self._error

    def _learn(self, address: str, found: Map) -> None:
        """Take a map of this cluster that is newer, or another one than before for all owners.

        They all ask at the same intervals: when one has a lower map for the second time, all others
        have asked, too.
        """
        known = self._map
        if not found.members or (known.members and found.cluster != known.cluster):
            return
        if found.version > known.version or found == known:
            self._lower.clear()
        elif address in self._lower:
            found = highest([*self._lower.values(), found])
            self._lower.clear()
        else:
            self._lower[address] = found
            return
        if found != known:
            self._map = found
            for each in self._owners.values():
                each.belong(found.cluster)
            self._follow()

    def _follow(self) -> None:
        """Have an owner for each member, and for no other Global."""
        members = self._map.members
        for address in members:
            if address not in self._owners:
                self._begin(address)
        if members:
            self._end([each for each in self._owners if each not in members])

    def _begin(self, address: str) -> None:
        count = max(len(self._each), len(self._map.members))
        given = self._host_cache
        if given is None and count > 1:
            given = config.HOST_CACHE_DEFAULT
        if given:
            given = max(config.HOST_CACHE_MIN, given // count)
        try:
            owner = self._own(
                address,
                host_cache=given,
                cluster=self._map.cluster,
                mapped=lambda found: self._events.put((address, found)),
            )
        except (CannotOwn, GlobalUnavailable) as error:
            if self._alone:
                raise
            self._note(address, error)
            return

        def run() -> None:
            ended: Exception | None = None
            try:
                owner.run()
            except Exception as error:
                ended = error
            self._events.put((address, ended))

        thread = native.Thread(run, "dstore-owner")
        self._owners[address], self._threads[address] = owner, thread
        thread.start()

    def _ended(self, address: str, error: Exception | Map | None) -> None:
        """Note that an owner has ended by itself; it is tried again if there are others."""
        self._threads.pop(address).join()
        del self._owners[address]
        if isinstance(error, Exception):
            self._note(address, error)

    def _note(self, address: str, error: Exception) -> None:
        if not self._alone and str(error) != str(self._error):
            log.warning("no shared cache of Global at %s: %s", address, visible(str(error)))
        self._error = error

    def _end(self, addresses: list[str]) -> None:
        for address in addresses:
            self._owners[address].stop()
        for address in addresses:
            self._threads.pop(address).join()
            del self._owners[address]
