"""Routing: to which members a call goes, and what follows when one of them says "not mine".

Pure: a call is a generator of moves, which the host carries out. It tries the owners that the
newest known map names, all at the same time. A member that does not own a key executes nothing of
a message: then another member is asked for a newer map, and what is left is tried again, until its
time is up. So it is when a member does not answer, unless a write may have been executed: that ends
with OutcomeUnknown.

A member that is dead is found out by the silence of reads: the first attempt is short, and further
ones are longer, since the member may only be slow. A write that was sent can only wait, until
others have taken over from a member that is silent (:class:`Elsewhere`). So it is not sent to a
member that has been silent for a lease, or has refused it and may be about to end: such a member is
asked for the map first.

All maps are those of one cluster, whose id the first one has. Where another Global answers in place
of a member, the member counts as silent.

A map is a hint, and the one with the highest version is the newest. But a database that was
restored from a backup counts from a lower version again, and may have come to the same one. So if
the known map leads nowhere, and all members that answer have others, the highest of these takes its
place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from dstore.core.local.clusters import wrong_cluster
from dstore.core.local.operations.exchange import NO_REASON, Misdirected
from dstore.errors import DstoreError, GlobalUnavailable, OutcomeUnknown, WrongServer
from dstore.protocol.clusters import NO_CLUSTER
from dstore.protocol.keys import public
from dstore.protocol.messages import Key, MapReply
from dstore.protocol.partitions import NOBODY, PARTITIONS, partition_of

ATTEMPT_FIRST = 1.0
"""Seconds of the first attempt to read from a member; each further one has twice as many."""
ASK_TIMEOUT = 0.5
"""Seconds for which one member is asked for the map, before another one is."""
CONTACT_TIMEOUT = 1.0
"""Seconds for which a member that a write is to go to may take until it answers at all."""
PAUSE_FIRST, PAUSE_MAX = 0.01, 0.5
"""Seconds before a call is tried again while no newer map is known; the pause doubles."""
ASKED_MAX = 3
"""Members that are asked for a newer map in one go."""
NO_SIGN = "is it running, and can it be reached, and its database, too?"
"""What is asked about a member that does not answer. Without its database it answers nothing."""
KEYS_NAMED, MEMBERS_NAMED = 3, 8
"""Keys, and members, that an error names."""

I = TypeVar("I", bound=Hashable)  # noqa: E741


class Map(NamedTuple):
    """Which member owns which partition: ``owners`` has indexes into ``members``, or NOBODY.

    ``cluster`` is the id of the cluster. The map of a Global by itself has no members.
    """

    version: int
    members: tuple[str, ...]
    owners: bytes
    cluster: bytes = NO_CLUSTER


def map_of(reply: MapReply) -> Map:
    """Return the map in a reply."""
    return Map(reply.version, tuple(reply.members), reply.owners, reply.cluster)


def highest(maps: Iterable[Map]) -> Map:
    """Return the one with the highest version."""
    return max(maps, key=lambda each: each.version)


NO_MAP = Map(-1, (), bytes([NOBODY]) * PARTITIONS)


class Routes:
    """What a client knows of a cluster: the newest map, and which members to ask for a newer one.

    ``seeds`` are the addresses that the user has given.
    """

    def __init__(self, seeds: Iterable[str]) -> None:
        self.seeds = tuple(seeds)
        self.map = NO_MAP
        self._turn = 0

    def __repr__(self) -> str:
        return f"<Routes version={self.map.version} members={len(self.map.members)}>"

    @property
    def known(self) -> bool:
        """Whether there is a map at all."""
        return self.map is not NO_MAP

    @property
    def cluster(self) -> bytes:
        """The id of the cluster, which is that of the first map."""
        return self.map.cluster

    @property
    def addresses(self) -> list[str]:
        """The addresses of the members that are known, and those that the user has given."""
        return list(dict.fromkeys((*self.map.members, *self.seeds)))

    def fits(self, found: Map) -> bool:
        """Whether a map is one of this cluster."""
        return bool(found.members) and (not self.known or found.cluster == self.cluster)

    def learn(self, found: Map, *, lower: bool = False) -> bool:
        """Take a map that a member has sent, if it is newer. Returns whether there is another now.

        With ``lower`` it is taken although its version is not higher.
        """
        newer = found.version > self.map.version
        if not self.fits(found) or not (newer or (lower and found != self.map)):
            return False
        self.map = found
        return True

    def owner(self, number: int) -> str | None:
        """Return the address of the member that owns a partition; None: nobody, or not known."""
        index = self.map.owners[number]
        return None if index == NOBODY else self.map.members[index]

    def owner_of(self, key: Key) -> str | None:
        """Return the address of the member that owns the partition of a key, or None."""
        return self.owner(partition_of(key))

    def owned(self, address: str) -> int:
        """Return how many partitions a member owns."""
        members = self.map.members
        return self.map.owners.count(members.index(address)) if address in members else 0

    def split(
        self, items: Iterable[I], number_of: Callable[[I], int]
    ) -> tuple[dict[str, list[I]], list[I]]:
        """Return which items belong to which member, in order, and those that belong to none.

        ``number_of`` returns the partition of an item.
        """
        parts: dict[str, list[I]] = {}
        homeless: list[I] = []
        for item in items:
            owner = self.owner(number_of(item))
            (homeless if owner is None else parts.setdefault(owner, [])).append(item)
        return parts, homeless

    def to_ask(self, silent: Iterable[str] = (), asked: Iterable[str] = ()) -> list[str]:
        """Return whom to ask for a map, in order: each call begins with another one.

        Those that were ``asked`` before come later, and those that are ``silent`` last.
        """
        order = self.addresses
        self._turn += 1
        turn = self._turn % len(order)
        later, last = set(asked), set(silent)
        return sorted(order[turn:] + order[:turn], key=lambda each: (each in last, each in later))


class Elsewhere:
    """The members of a cluster but the one at ``address``; see :class:`~.entries.Others`."""

    def __init__(self, address: str, routes: Routes, ask: Callable[[], None]) -> None:
        self._address = address
        self._routes = routes
        self.ask = ask

    def own(self, keys: Iterable[Key]) -> bool:
        """Whether another member owns one of these keys by now, as far as is known."""
        return any(self._routes.owner_of(key) not in (None, self._address) for key in keys)


# ---- moves --------------------------------------------------------------------------------------


class Try(NamedTuple):
    """Carry out what is asked for, for these items at these members, all at the same time.

    Reads may take ``timeout`` seconds. The reply has what was :class:`Tried` at each member: all of
    its items, or the first of them that go into one message.
    """

    parts: Mapping[str, Sequence[Any]]
    timeout: float


class Ask(NamedTuple):
    """Ask a member for its map, for at most ``timeout`` seconds. The reply is the map or an error.

    The map of a Global that is no member has no members.
    """

    address: str
    timeout: float


class Pause(NamedTuple):
    """Wait for some seconds."""

    seconds: float


class Reply(NamedTuple):
    """The result of a move, and the time at which the call goes on."""

    now: float
    value: Any = None


Move: TypeAlias = Try | Ask | Pause
T = TypeVar("T")
Moves: TypeAlias = Generator[Move, Reply, T]


class Tried(NamedTuple):
    """The result of one attempt, or the error with which it has ended, and what it is about."""

    items: Sequence[Any]
    result: Any


@dataclass
class Call(Generic[I]):
    """One call on its way; ``begin`` is to be used once.

    ``items`` are keys, or numbers of partitions as ``number_of`` says. ``reads``: it may be
    carried out any number of times, at any member. ``fresh`` says whether a member has answered
    within the last lease. ``lasting``: an attempt may take any time, and ``timeout`` counts from
    the last sign of a member. ``refusing`` are the members that have refused one of the items since
    the present map was learned, and ``silent`` those that have not answered, with the reasons.
    """

    routes: Routes
    items: Iterable[I]
    number_of: Callable[[I], int]
    timeout: float
    reads: bool
    fresh: Callable[[str], bool] = lambda address: True
    lasting: bool = False
    done: list[Tried] = field(default_factory=list)
    refusing: set[str] = field(default_factory=set)
    silent: dict[str, DstoreError] = field(default_factory=dict)
    _present: Map = NO_MAP  # the one that the next ones were compared with
    _lower: dict[str, Map] = field(default_factory=dict)  # what members have said instead
    _deadline: float = 0.0

    def begin(self, now: float, since: float | None = None) -> Moves[list[Tried]]:
        """Carry it out. Returns the results. The time has counted ``since``, by default from now.

        Raises GlobalUnavailable, which names member and keys, and what an attempt has raised.
        """
        left = dict.fromkeys(self.items)
        tried = bool(self.silent)
        self._deadline = (now if since is None else since) + self.timeout
        attempt, pause = ATTEMPT_FIRST, PAUSE_FIRST
        while not self.routes.known:
            now = yield from self._learn(now)
            if not self.routes.known:
                if now >= self._deadline:
                    raise self._unreached(())
                now = (yield Pause(min(pause, max(0.0, self._deadline - now)))).now
                pause = min(2 * pause, PAUSE_MAX)
        if self.reads and tried:  # the first attempt was before
            now = yield from self._learn(now)
            attempt *= 2
        while left:
            known = self.routes.map
            parts, _ = self.routes.split(left, self.number_of)
            if not self.reads:
                now = yield from self._contact(parts, now)
            if parts and self.routes.map is known and now < self._deadline:
                reply = yield Try(parts, max(0.0, min(attempt, self._deadline - now)))
                now = reply.now
                if self._take(reply.value, left, now):
                    continue
                attempt *= 2
            if now >= self._deadline:
                raise self._unreached(left)
            if self.routes.map is known:
                now = yield from self._learn(now)
            if self.routes.map is not known:
                self.refusing.clear()
            else:
                now = (yield Pause(min(pause, max(0.0, self._deadline - now)))).now
                pause = min(2 * pause, PAUSE_MAX)
        return self.done

    def _take(self, tried: Mapping[str, Tried], left: dict[I, None], now: float) -> bool:
        """Note the results of an attempt. Returns whether none of it has to be tried again.

        Raises what it has failed with for good.
        """
        failures: list[BaseException] = []
        again = False
        for address, (items, result) in tried.items():
            finished = items
            if isinstance(result, Misdirected):
                self.refusing.add(address)
                moved = set(items if self.reads else result.keys)
                finished, result = [item for item in items if item not in moved], result.done
                again = True
            elif isinstance(result, (GlobalUnavailable, WrongServer)):
                self.silent[address] = result
                again = True
                continue
            elif isinstance(result, BaseException):
                failures.append(result)
                continue
            self.silent.pop(address, None)
            if self.lasting or finished:
                self._deadline = now + self.timeout
            if finished:
                self.done.append(Tried(finished, result))
            for item in finished:
                del left[item]
        if failures:
            raise _one_of(failures)
        return not again

    def _contact(self, parts: dict[str, list[I]], now: float) -> Generator[Move, Reply, float]:
        """Leave out the members that do not answer, of those that a write is to go to."""
        for address in list(parts):
            if self.fresh(address) and address not in self.refusing:
                continue
            timeout = max(0.0, min(CONTACT_TIMEOUT, self._deadline - now))
            reply = yield Ask(address, timeout)
            now = reply.now
            if not self._heard(address, reply.value):
                del parts[address]
        return now

    def _learn(self, now: float) -> Generator[Move, Reply, float]:
        """Ask for a newer map, or for one in the place of this. Returns the time after that."""
        for count, address in enumerate(self.routes.to_ask(self.silent, self._lower)):
            if count and self.routes.known and (count >= ASKED_MAX or address in self.silent):
                break
            if count and now >= self._deadline:
                break
            timeout = max(0.0, min(ASK_TIMEOUT, self._deadline - now))
            known = self.routes.map
            reply = yield Ask(address, timeout)
            now = reply.now
            self._heard(address, reply.value)
            if self.routes.map is not known:
                return now
        self._go_back()
        return now

    def _go_back(self) -> None:
        """Take the highest map that was heard, if no member that answers has the known one."""
        answering = set(self.routes.addresses).difference(self.silent)
        if self._present is not self.routes.map:
            return  # another call has learned it meanwhile
        if self._lower and answering <= self._lower.keys():
            self.routes.learn(highest(self._lower.values()), lower=True)

    def _heard(self, address: str, answer: Any) -> bool:
        """Take the answer to a question for the map. Returns whether there was one."""
        if isinstance(answer, Map) and not self.routes.fits(answer):
            if not self.routes.known:
                alone = f"{address} is a Global by itself, and no member of a cluster"
                raise WrongServer(f"{alone}; give one address")
            answer = wrong_cluster(self.routes.cluster, answer.cluster)
        silent = isinstance(answer, GlobalUnavailable)
        if silent or (isinstance(answer, WrongServer) and self.routes.known):
            self.silent[address] = answer  # where a member was: what it answers counts for nothing
            return False
        if isinstance(answer, BaseException):
            raise answer
        self.silent.pop(address, None)
        self.routes.learn(answer)
        if answer == self.routes.map or self._present is not self.routes.map:
            self._lower.clear()
        self._present = self.routes.map
        if answer != self._present:
            self._lower[address] = answer
        return True

    def _unreached(self, left: Iterable[I]) -> GlobalUnavailable:
        """Return the error for items that could not be brought to their owners in time."""
        items = list(left)
        if not self.routes.known:
            asked = [each for each in self.routes.seeds if each in self.silent]
            return self._no_answer({each: each for each in asked or self.routes.seeds})
        parts, homeless = self.routes.split(items, self.number_of)
        silent = [address for address in parts if address in self.silent]
        if silent:
            owners = {each: f"{each}, which has {_named(parts[each])}" for each in silent}
            return self._no_answer(
                owners | {each: each for each in self.silent if each not in owners}
            )
        if homeless:
            return GlobalUnavailable(f"no member of the cluster has {_named(homeless)} at present")
        address, whose = next(iter(parts.items()))
        return GlobalUnavailable(
            f"the member {address} does not serve {_named(whose)} yet, and no other one does"
        )

    def _no_answer(self, members: Mapping[str, str]) -> GlobalUnavailable:
        """Return the error for members that did not answer: by address, how each is named."""
        reasons = {address: _reason(self.silent.get(address)) for address in members}
        first = next(iter(reasons.values()))
        if len(members) == 1:
            (name,) = members.values()
            comma = "," if name not in members else ""
            return GlobalUnavailable(f"the member {name}{comma} did not answer in time; {first}")
        same = len(set(reasons.values())) == 1
        named = [
            name if same else f"{name} ({reasons[address]})"
            for address, name in list(members.items())[:MEMBERS_NAMED]
        ]
        more = len(members) - len(named)
        return GlobalUnavailable(
            f"{len(members)} members did not answer in time{f' ({first})' if same else ''}: "
            + "; ".join(named)
            + (f"; and {more} more" if more else "")
        )


def call(
    routes: Routes,
    keys: Iterable[Key],
    timeout: float,
    *,
    reads: bool,
    fresh: Callable[[str], bool] = lambda address: True,
    lasting: bool = False,
) -> Call[Key]:
    """Return a :class:`Call` that is about keys."""
    return Call(routes, keys, partition_of, timeout, reads, fresh, lasting)


def _reason(trouble: DstoreError | None) -> str:
    text = str(trouble) if trouble is not None else ""
    reason = text.removeprefix("Global did not answer in time; ")
    return NO_SIGN if reason in ("", NO_REASON) else reason


def _named(items: Sequence[Any]) -> str:
    """Name some items in a text: keys, or numbers of partitions."""
    if isinstance(items[0], int):
        return f"partition {items[0]}" if len(items) == 1 else f"{len(items)} partitions"
    named = ", ".join(repr(public(key)) for key in items[:KEYS_NAMED])
    more = len(items) - KEYS_NAMED
    return f"the key{'s' if len(items) > 1 else ''} {named}" + (
        f" and {more} more" if more > 0 else ""
    )


def _one_of(failures: Sequence[BaseException]) -> BaseException:
    """Return one error for several: that outcomes are unknown counts most, and names all keys."""
    unknown = [each for each in failures if isinstance(each, OutcomeUnknown)]
    if len(unknown) > 1:
        return OutcomeUnknown([key for each in unknown for key in each.keys], unknown[0].reason)
    return (unknown or failures)[0]
