"""What one member of a cluster owns: its beats, its claims, and what it gives up.

A pure state machine: the time and the answers of the database go in, effects come out, and the host
carries them out in their order. An effect is something to ask the database (one
:class:`~.messages.Beat` at a time), or an event for the host. The rules:

*Ownership lease.* A member answers nothing from :attr:`Ownership.ends` on. That is its lease after
the moment *before* its last successful beat was asked for, less a margin. Others count from when
they saw that beat, and add a margin (see :mod:`~dstore.core.cluster.sightings`). So the one that
deletes its row comes later. A lease that has ended is never renewed: the member has lost all, and
joins again.

*Claims.* A partition is free if its owner is no member, or if it is one's own by its row without
being served: a claim of a former time, or one whose answer was lost. A claim raises the fence. So
the writes of before, one's own ones too, have either happened when it has been carried out, or
never will. What was read before that does not count.

*Quiet.* When ownership of a partition changes, Locals may hold its values for the longest cache
lease of all former owners that was not waited out since. A claim writes down that duration, the new
owner waits as long, counted from the answer to its claim, and then writes down its own cache lease.

*Giving up.* A member gives up a partition only by ending its epoch. For what it keeps there is
another quiet time then: Locals of the old epoch may hold that as well.

*Unknown outcomes.* Each ask has a higher beat than all before it, and one that comes late finds a
higher one and does nothing. So whatever an ask without an answer has done is in the View of the
next one that has an answer, and nothing more comes of it after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dstore.core.cluster.assignment import assignment
from dstore.core.cluster.messages import (
    Ask,
    Beat,
    Effect,
    Event,
    Fenced,
    Gain,
    Gained,
    HandOver,
    Leave,
    Left,
    Lost,
    MapChanged,
    Member,
    View,
)
from dstore.core.cluster.sightings import MARGIN, Sightings
from dstore.protocol.partitions import MEMBERS_MAX, NOBODY

NEVER = float("inf")
BEATS = 12
"""Beats in the time of an ownership lease. Many, since a beat also looks at the others: a member
that has died is noticed so much later at most."""
RETRY = 1 / 24
"""The part of its ownership lease after which a member asks again, if an ask has failed or has not
done all that it was to do."""
LEAVES_MAX = 3
"""How often a member asks to leave, if there is no answer. Then its row stays until others delete
it."""


class Ownership:
    """What one member owns. All times are in seconds, by one clock that also counts a suspend.

    ``me`` is an id that no other life of a process has; ``address`` is what clients are given;
    ``lease`` is the ownership lease, and ``cache_lease`` the one that Locals get.
    """

    def __init__(self, me: bytes, address: str, *, lease: float, cache_lease: float) -> None:
        self.me = me
        self.ends = 0.0  # from then on nothing may be answered; 0.0: there is no lease
        self.draining = False
        self.left = False
        self._address = address
        self._lease = lease
        self._cache_lease = cache_lease
        self._sightings = Sightings(me)
        self._beat = 0  # of the last ask
        self._joined = False  # a beat or a join has succeeded since the last loss
        self._under_way: Ask | None = None
        self._asked_at = 0.0
        self._void = False  # the ask under way is older than the last loss
        self._ask_at = 0.0
        self._view = View({}, [])  # the newest one since the last loss
        self._owned: dict[int, Gain] = {}
        self._giving_up: tuple[int, ...] = ()  # until the host has ended the epoch
        self._give_up_at = 0.0  # not earlier
        self._linger = 0.0
        self._leave_at = 0.0  # not earlier
        self._leaves = 0
        self._map: MapChanged | None = None

    def __repr__(self) -> str:
        return (
            f"<Ownership {self.me.hex()[:8]} joined={self._joined} owned={len(self._owned)} "
            f"ends={self.ends:.3f} giving_up={len(self._giving_up)} draining={self.draining}>"
        )

    @property
    def owned(self) -> Mapping[int, Gain]:
        """The partitions that the member owns, those included that it is handing over.

        The fences are those of the newest View. The journal may have raised them since.
        """
        return self._owned

    @property
    def view(self) -> View:
        """What the last answer of the database has shown; empty since a loss."""
        return self._view

    @property
    def wake_at(self) -> float:
        """When :meth:`tick` is next due."""
        ends = self.ends or NEVER
        return ends if self._under_way is not None or self.left else min(ends, self._ask_at)

    # ---- what the host calls --------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Do what is due. ``now`` must have been read before this is called, and not after."""
        effects: list[Effect] = [*self._lapse(now)]
        if self._under_way is None and not self.left and now >= self._ask_at:
            effects += self._ask(now)
        return effects

    def answered(self, ask: Ask, view: View | None, now: float) -> list[Effect]:
        """Take the answer to an ask; None if it has failed, or if it is not known what became of
        it. ``now`` must have been read after the answer came.

        An answer to anything but the last ask is ignored, and so is a second one.
        """
        if ask is not self._under_way:
            return []
        effects: list[Effect] = [*self._lapse(now)]
        self._under_way = None
        void, self._void = self._void, False
        self._ask_at = max(now, self._ask_at) if void else now + self._lease * RETRY
        if isinstance(ask, Leave):
            effects += self._has_left(view)
        elif view is not None and not void:
            effects += self._take(ask, view, now)
        return [*effects, *self._give_up(now), *self.tick(now)]

    def handed_over(self, now: float) -> list[Effect]:
        """Take note that the epoch has ended in which the partitions of a HandOver were served.

        :attr:`owned` has what the next epoch serves, from these quiet times on.
        """
        effects: list[Effect] = [*self._lapse(now)]
        until = now + self._cache_lease
        kept = (each for each in self._owned.values() if each.number not in self._giving_up)
        if self._giving_up:
            self._owned = {
                each.number: each._replace(quiet_until=max(each.quiet_until, until))
                for each in kept
            }
            self._giving_up = ()
            self._give_up_at = now + self._lease
            self._leave_at = now + self._linger
            self._ask_at = now
        return [*effects, *self._give_up(now), *self.tick(now)]

    def lose(self, why: str, now: float) -> list[Effect]:
        """Give up all at once: what the host knows makes it impossible to go on.

        That is a transaction that was refused for its fence, or rows that cannot be loaded.
        """
        self._ask_at = now + self._lease * RETRY
        return [*self._lose(why)]

    def drain(self, now: float, linger: float = 0.0) -> list[Effect]:
        """Hand over all, and leave the cluster ``linger`` seconds later, if there are others in it.

        In that time this is a member that owns nothing: it tells clients who the new owners are.
        May be called again, to wait no longer.
        """
        self._linger = linger
        self._leave_at = now + linger
        self._ask_at = now
        self.draining = True
        return [*self._lapse(now), *self._give_up(now), *self.tick(now)]

    # ---- asking ---------------------------------------------------------------------------

    def _ask(self, now: float) -> list[Effect]:
        leaving = self._is_leaving(now)
        if leaving and not self._beat:
            self.left = True
            return [Left()]
        self._beat += 1
        ask: Ask
        if leaving:
            self.ends, self._joined = 0.0, False
            ask = Leave(self.me, self._beat)
        elif self._joined:
            ask = self._work(now)
        else:
            row = Member(self._address, self._beat, self._lease, self._cache_lease, self.draining)
            ask = Beat(self.me, self._beat, row)
        self._under_way, self._asked_at = ask, now
        return [ask]

    def _is_leaving(self, now: float) -> bool:
        if not self.draining or self._owned:
            return False
        return now >= self._leave_at or len(self._view.members) < 2

    def _work(self, now: float) -> Beat:
        """Return a beat with all that there is to do."""
        dead = self._sightings.dead(now)
        members = self._view.members.keys() - {name for name, _ in dead}
        planned = self._planned(self._sightings.live(now))
        release: list[Fenced] = []
        claim: list[Fenced] = []
        quieted: list[Fenced] = []
        for number, row in enumerate(self._view.partitions):
            gain = self._owned.get(number)
            if gain is not None:
                if row.quiet > self._cache_lease and now >= gain.quiet_until:
                    quieted.append((number, row.fence))
            elif row.owner == self.me or row.owner not in members:
                if planned[number] == self.me and not self._giving_up:
                    claim.append((number, row.fence))
                elif row.owner == self.me:
                    release.append((number, row.fence))
        return Beat(
            self.me,
            self._beat,
            None,
            self.draining,
            dead,
            tuple(release),
            tuple(claim),
            tuple(quieted),
        )

    def _planned(self, others: Iterable[bytes]) -> tuple[bytes | None, ...]:
        """Return who is to own each partition, of these members and this one."""
        rows = self._view.members
        able = {name for name in (*others, self.me) if not rows[name].draining}
        if self.draining:
            able.discard(self.me)
        return assignment(tuple(sorted(able)), len(self._view.partitions))

    # ---- answers --------------------------------------------------------------------------

    def _take(self, ask: Beat, view: View, now: float) -> list[Event]:
        """Take the View that a beat has come back with."""
        row = view.members.get(self.me)
        if row is None or row.beat != ask.beat:
            return self._lose("others have deleted the row of this member")
        ends = self._asked_at + self._lease * (1 - MARGIN)
        if now >= ends:
            return self._lose("the database has answered too late")
        self.ends, self._joined = ends, True
        before, self._view = self._view, view
        self._sightings.take(view, now)
        for number, gain in self._owned.items():
            if view.partitions[number].owner != self.me:
                return self._lose(f"partition {number} has another owner")
            self._owned[number] = gain._replace(fence=view.partitions[number].fence)
        events = [*self._gain(ask, before, now), *self._changed_map()]
        self._ask_at = self._next(ask, now)
        return events

    def _gain(self, ask: Beat, before: View, now: float) -> list[Event]:
        """Take what was claimed."""
        gains: list[Gain] = []
        for number, fence in ask.claim:
            row = self._view.partitions[number]
            if row.owner == self.me and row.fence == fence + 1:
                quiet = before.partitions[number].quiet
                gains.append(Gain(number, row.fence, now + quiet if quiet else 0.0))
        if not gains or self.draining:
            return []
        self._owned.update((each.number, each) for each in gains)
        return [Gained(tuple(gains))]

    def _next(self, ask: Beat, now: float) -> float:
        """Return when to ask again."""
        if self._is_leaving(now):
            return now
        if self._work(now).works:
            return now + self._lease * RETRY if ask.works else now
        return min(now + self._lease / BEATS, self._sightings.dead_at())

    def _changed_map(self) -> list[Event]:
        rows, partitions = self._view
        names = sorted(rows)[:MEMBERS_MAX]
        index: dict[bytes | None, int] = {name: number for number, name in enumerate(names)}
        owners = bytes(index.get(row.owner, NOBODY) for row in partitions)
        version = sum(row.fence for row in partitions)
        new = MapChanged(version, [rows[name].address for name in names], owners)
        if new == self._map:
            return []
        self._map = new
        return [new]

    def _has_left(self, view: View | None) -> list[Event]:
        self._leaves += 1
        if view is None and self._leaves < LEAVES_MAX:
            return []
        self.left = True
        return [Left()]

    # ---- giving up ------------------------------------------------------------------------

    def _give_up(self, now: float) -> list[Event]:
        """Begin to hand over what others are to own, if they have been there for a while."""
        if self._giving_up or not self._owned:
            return []
        if self.draining:
            numbers = tuple(self._owned)
        else:
            planned = self._planned(self._sightings.settled(now))
            numbers = tuple(each for each in self._owned if planned[each] not in (self.me, None))
            asked_to = self._view.members[self.me].draining
            if not numbers or (now < self._give_up_at and not asked_to):
                return []
        self._giving_up = numbers
        return [HandOver(numbers)]

    def _lapse(self, now: float) -> list[Event]:
        """End a lease that was not renewed in time."""
        if not self.ends or now < self.ends:
            return []
        return self._lose("the ownership lease has ended: the database has not answered in time")

    def _lose(self, why: str) -> list[Event]:
        """Forget what is owned. An ask under way was for the time before, and so is its answer."""
        joined, self._joined = self._joined, False
        self.ends = 0.0
        self._void = self._under_way is not None
        self._view = View({}, [])
        self._owned = {}
        self._giving_up = ()
        return [Lost(why)] if joined else []
