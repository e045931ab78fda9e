"""What a member asks of the database, what it sees there, and what it tells its host.

There is one transaction, :class:`Beat`, and :class:`Leave` at the end. Both raise or remove the row
of the member that asks, so a transaction that comes late, after a later one of the same member has
committed, finds another beat in that row and does nothing at all.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Member(NamedTuple):
    """A row of the table ``member``.

    ``address`` is what clients are given. ``beat`` is a number that only rises. The member may
    answer for ``lease`` seconds after the beginning of a beat, a little less; its Locals may answer
    from their caches for ``cache_lease`` seconds after that. A ``draining`` member gets no
    partitions, and hands over those that it has.
    """

    address: str
    beat: int
    lease: float
    cache_lease: float
    draining: bool


class Partition(NamedTuple):
    """A row of the table ``partition``.

    ``owner`` is the id of a member, which may have no row any more, or None. ``fence`` is a number
    that only rises: with each change of the owner, and when the owner is in doubt. Locals may hold
    values of the partition for ``quiet`` seconds after the last change of its owner, at most.
    """

    owner: bytes | None
    fence: int
    quiet: float


class View(NamedTuple):
    """Both tables, as they were when a transaction of this member ended: members by id."""

    members: dict[bytes, Member]
    partitions: list[Partition]


Fenced: TypeAlias = tuple[int, int]
"""The number of a partition, and the fence that it must have."""


class Beat(NamedTuple):
    """One transaction, which shows that a member is alive and does what it asks for.

    In this order, with synchronous commit:

    1. If ``join`` is given it inserts that row for ``me`` or, if there is one whose beat is below
       ``beat``, replaces it. Otherwise it sets the beat of the row of ``me`` to ``beat`` if it is
       below that. ``draining`` becomes True if that is asked for, and never False. If no row was
       changed it does nothing else but step 6.
    2. It deletes the rows of the ``dead``: each an id and the beat that it must still have.
    3. ``release``: of the partitions with that fence and the owner ``me`` the owner becomes NULL
       and the fence rises by one; quiet stays.
    4. ``claim``: of the partitions with that fence, whose owner is NULL, ``me``, or no member, the
       owner becomes ``me``, the fence rises by one, and quiet becomes the greater one of quiet and
       the cache lease of ``me``.
    5. ``quieted``: of the partitions with that fence and the owner ``me``, quiet becomes the cache
       lease of ``me``.
    6. It reads both tables.

    Steps 2 to 5 leave out rows that another transaction has locked (FOR UPDATE SKIP LOCKED): they
    are asked for again. So a stalled writer cannot hold up the beats of others.

    The answer is the View that step 6 has read, once the commit is known to be synchronous. It is
    None in any other case: then the transaction has been carried out, or not, or will be before
    the next one of this member. No answer is taken for another ask.
    """

    me: bytes
    beat: int
    join: Member | None = None
    draining: bool = False
    dead: tuple[tuple[bytes, int], ...] = ()
    release: tuple[Fenced, ...] = ()
    claim: tuple[Fenced, ...] = ()
    quieted: tuple[Fenced, ...] = ()

    @property
    def works(self) -> bool:
        """Whether it does more than to show that the member is alive."""
        return bool(self.dead or self.release or self.claim or self.quieted)


class Leave(NamedTuple):
    """One transaction that deletes the row of ``me``, whose beat is below ``beat``.

    The partitions that it owns are then free for others. The answer is a View, or None.
    """

    me: bytes
    beat: int


Ask: TypeAlias = Beat | Leave


class Gain(NamedTuple):
    """A partition that the member owns.

    Its fence must be in all that is written to it. Nothing is removed from it and nothing replaced
    in it before ``quiet_until``, by the clock of the member; 0.0: there is nothing to wait for.
    """

    number: int
    fence: int
    quiet_until: float


class Gained(NamedTuple):
    """The member owns these partitions from now on. The host loads their rows, then serves them.

    What it reads after this event is all that a former owner has written, from a server that shows
    these fences: another one may be a former primary. A partition may be handed over and gained
    again while it is being loaded; the fence tells one gain from the other.
    """

    gains: tuple[Gain, ...]


class HandOver(NamedTuple):
    """The member is to give up these partitions, and serves them until it does.

    The host takes no new writes, waits until all that has begun has ended, and ends the epoch. Then
    it calls :meth:`~dstore.core.cluster.ownership.Ownership.handed_over`, and begins a new epoch
    with the partitions that are left. If it cannot wait for that it calls
    :meth:`~dstore.core.cluster.ownership.Ownership.lose` instead: a write may still be under way
    then, and the partitions that are left must not be served before they are claimed again.
    """

    numbers: tuple[int, ...]


class Lost(NamedTuple):
    """The member owns nothing any more: the host ends the epoch at once, whatever has begun.

    All events of before are void: also a hand-over, and partitions that are still being loaded.
    ``why`` is a sentence for the log.
    """

    why: str


class MapChanged(NamedTuple):
    """There is another map: who owns which partition.

    ``owners`` has one byte for each partition: an index into ``members``, which has addresses, or
    :data:`~dstore.protocol.partitions.NOBODY`. Of two maps the one with the higher ``version`` is
    the newer one.
    """

    version: int
    members: list[str]
    owners: bytes


class Left(NamedTuple):
    """The member has left the cluster, or has tried to for long enough. Nothing follows.

    Clients may send to it until the cache leases that it has granted have ended. A host that
    refuses what comes until then, and sends the last map to those that ask for it, spares them a
    wait for an answer.
    """


Event: TypeAlias = Gained | HandOver | Lost | MapChanged | Left
Effect: TypeAlias = Ask | Event
