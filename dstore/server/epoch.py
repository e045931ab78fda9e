"""One epoch of a Global: its state, the place of its large values, and the page of its host.

Most Globals have one epoch for their life. A member of a cluster begins a new one whenever it has
given up a partition. Nothing of the old one is answered any more: messages of its sessions are
refused, since they name its epoch, and Locals join again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import partial

from dstore.core.authority.partitions import Partitions
from dstore.core.authority.state import GlobalState
from dstore.core.engine import Bulk, Engine
from dstore.server.host import HostMembership
from dstore.server.settings import GlobalSettings
from dstore.shm import bulk_for

LOADS_OF_AN_EPOCH = 1 << 40
"""The engine numbers the loads of all epochs; this is how many numbers each epoch has."""


class Epoch:
    """One epoch. For the thread that serves, except where said otherwise.

    ``place`` makes the place for large values of the one in the memory of this host. ``address``
    is the one that is bound, and ``publisher`` the one that clients are given. ``number`` counts
    the epochs of a Global.
    """

    def __init__(
        self,
        settings: GlobalSettings,
        engine: Engine,
        given: Bulk | None,
        place: Callable[[Bulk], Bulk],
        *,
        number: int,
        address: str,
        publisher: str,
        peer_of: Callable[[bytes], str | None],
        durable: bool,
        quiet_until: float,
        partitions: Partitions | None,
    ) -> None:
        self.host: HostMembership | None = None
        self.first_load = number * LOADS_OF_AN_EPOCH
        self._settings = settings
        self._address, self._publisher = address, publisher
        epoch = secrets.randbits(63) | 1
        self._bulks = [bulk_for(epoch, settings.shm, given)]
        try:
            self._bulks.append(place(self._bulks[0]))
            self.state = GlobalState(
                engine,
                self._bulks[-1],
                epoch=epoch,
                publisher=publisher,
                lease=settings.lease,
                log_length=settings.log_length,
                value_limit=settings.value_limit,
                large_from=settings.large_from,
                random63=partial(secrets.randbits, 63),
                wall=time.time,
                max_clients=settings.max_clients,
                peer_of=peer_of,
                durable=durable,
                quiet_until=quiet_until,
                partitions=partitions,
            )
        except BaseException:
            self.close()
            raise

    def share(self, now: float) -> None:
        """Let the processes of this host share a membership, if that is possible and wanted.

        Nothing has been answered before: what a former Global on this address has left is void
        then. The names follow from the port.
        """
        settings = self._settings
        self.host = HostMembership(
            self.state,
            root=settings.shm,
            address=self._address,
            cache_bytes=settings.host_cache,
            publisher=self._publisher,
            lease=settings.lease,
            value_limit=settings.value_limit,
            large_from=settings.large_from,
            keyed=settings.keys is not None,
        )
        self.host.begin(now)

    def void(self, now: float) -> None:
        """End the membership of this host. Nothing may be answered any more. Idempotent."""
        if self.host is not None:
            self.host.close(now)

    def close(self) -> None:
        """Give back the memory of large values; :meth:`void` comes before. Idempotent."""
        self._bulks[-1].close()
