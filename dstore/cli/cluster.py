"""``dstore cluster``: prepare the database of a cluster of Globals, look at it, drain a member.

These commands ask the database, and no Global.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dstore.cli import console
from dstore.cli.console import plain
from dstore.cli.tables import table_lines
from dstore.core.cluster.assignment import assignment
from dstore.errors import DataError
from dstore.quoting import visible
from dstore.server import postgres
from dstore.server.parameters import has_password

if TYPE_CHECKING:
    from dstore.server.postgres.operation import Status

HEADINGS = ("MEMBER", "ADDRESS", "PARTITIONS", "LEASE", "CACHE LEASE", "STATE")
ID_SHOWN = 8
"""Characters of the id of a member, or of the cluster, that a person sees."""
BEAT_PART = 1 / 3
"""The part of its ownership lease in which the beat of a member that is alive has risen."""
WATCH_MAX = 3.0
"""Seconds for which beats are watched at most."""
LOOK_EVERY = 0.1
"""Seconds between two looks."""


def cluster(options: Namespace) -> int:
    """Carry out one of the commands. Returns the exit code."""
    warn_of_password(options.url)
    try:
        return ACTIONS[options.action](options)
    except DataError as error:
        console.complain(console.said(error))
        return console.EXIT_USAGE


def warn_of_password(url: str) -> None:
    """Warn if a URL on the command line has a password."""
    if has_password(url):
        console.complain(
            "warning: other users of this machine may see the password in the arguments of this "
            "process; libpq also takes it from $PGPASSWORD, ~/.pgpass or a service file"
        )


def init(options: Namespace) -> int:
    """Create the tables, or bring those of a former dstore up to date."""
    done = "the database is prepared"
    if not postgres.init(options.url, standby=not options.no_standby):
        done += " already, and nothing was changed"
    needs = postgres.status(options.url).needs_standby
    how = "write only while it has a synchronous standby" if needs else "need no standby"
    console.complain(f"{done}; its members {how}")
    return console.EXIT_OK


def status(options: Namespace) -> int:
    """Show members, partitions, and standbys."""
    shown = _described(*_watched(options.url))
    if options.json:
        print(json.dumps(shown))
    else:
        for line in _lines(shown):
            print(line)
    return console.EXIT_OK


def drain(options: Namespace) -> int:
    """Ask a member to hand over its partitions, and wait until it has."""
    now = postgres.status(options.url)
    found = _member_named(now, options.member)
    if found is None:
        return console.EXIT_REFUSED
    name = f"the member at {plain(now.members[found].address)}"
    postgres.drain(options.url, found)
    end = time.monotonic() + options.wait
    while (left := _owned(postgres.status(options.url))[found]) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
    if left:
        console.complain(
            f"{name} is asked to hand over, and owns {left} partitions still; it needs another "
            "member that takes them"
        )
        return console.EXIT_REFUSED
    console.complain(f"{name} owns nothing any more, and can be stopped")
    return console.EXIT_OK


ACTIONS = {"init": init, "status": status, "drain": drain}


# What there is -------------------------------------------------------------------------------


def _watched(url: str) -> tuple[Status, Status]:
    """Look at the database, and once more when each member that is alive has made a beat."""
    before = now = postgres.status(url)
    leases = [each.lease for each in before.members.values()]
    end = time.monotonic() + min(WATCH_MAX, BEAT_PART * max(leases, default=0.0))
    while not _all_beat(before, now) and time.monotonic() < end:
        time.sleep(LOOK_EVERY)
        now = postgres.status(url)
    return before, now


def _beats(before: Status, now: Status, member: bytes) -> bool:
    """Whether a member has made a beat between two looks."""
    former = before.members.get(member)
    return former is None or now.members[member].beat > former.beat


def _all_beat(before: Status, now: Status) -> bool:
    return all(_beats(before, now, each) for each in now.members)


def _owned(now: Status) -> Counter[bytes]:
    """Return how many partitions each member owns."""
    return Counter(each.owner for each in now.partitions if each.owner is not None)


def _member_named(now: Status, name: str) -> bytes | None:
    """Return the member with an address, or an id that begins so; else say what is wrong."""
    found = [each for each, row in now.members.items() if plain(row.address) == plain(name)]
    if not found:
        found = [each for each in now.members if name and each.hex().startswith(name.lower())]
    if len(found) == 1:
        return found[0]
    there = ", ".join(
        f"{each.hex()[:ID_SHOWN]} at {plain(row.address)}" for each, row in now.members.items()
    )
    if found:
        console.complain(f"several members are called {name!r}; give more of the id: {there}")
    else:
        console.complain(f"there is no member {name!r}; there are: {there or 'none'}")
    return None


def _state(draining: bool, owns: int, *, beats: bool) -> str:
    """Return the state of a member in a word or two."""
    if not beats:
        return "no beat"
    if not draining:
        return "up"
    return "draining" if owns else "drained"


def _described(before: Status, now: Status) -> dict[str, Any]:
    owned = _owned(now)
    live = [each for each in now.members if _beats(before, now, each)]
    planned = assignment(
        tuple(sorted(each for each in live if not now.members[each].draining)),
        len(now.partitions),
    )
    fences = [each.fence for each in now.partitions]
    return {
        "cluster": now.cluster.hex(),
        "members": [
            {
                "id": each.hex(),
                "address": row.address,
                "partitions": owned[each],
                "beat": row.beat,
                "beats": each in live,
                "lease": row.lease,
                "cache_lease": row.cache_lease,
                "draining": row.draining,
                "state": _state(row.draining, owned[each], beats=each in live),
            }
            for each, row in sorted(now.members.items(), key=lambda pair: pair[1].address)
        ],
        "partitions": {
            "owned": sum(owned[each] for each in live),
            "free": sum(each.owner not in now.members for each in now.partitions),
            "of_silent_members": sum(owned[each] for each in now.members if each not in live),
            "to_move": sum(
                each.owner in live and wanted not in (None, each.owner)
                for each, wanted in zip(now.partitions, planned)
            ),
        },
        "keys": now.keys,
        "bytes": now.bytes,
        "fences": {"lowest": min(fences), "highest": max(fences), "sum": sum(fences)},
        "standby": {
            "needed": now.needs_standby,
            "servers": [each._asdict() for each in now.standbys],
        },
    }


# For people ----------------------------------------------------------------------------------


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    yield f"cluster: {shown['cluster'][:ID_SHOWN]}"
    rows = [HEADINGS, *map(_row, shown["members"])]
    if shown["members"]:
        yield from table_lines(rows)
    else:
        yield "no members"
    yield f"keys: {shown['keys']:,} ({shown['bytes']:,} bytes)"
    partitions, fences = shown["partitions"], shown["fences"]
    silent = partitions["of_silent_members"]
    yield (
        f"partitions: {partitions['owned']} owned, {partitions['free']} free, {silent} of members "
        f"without a beat, {partitions['to_move']} to be handed over"
    )
    yield f"fences: {fences['lowest']} to {fences['highest']}, sum {fences['sum']}"
    yield from _standby_lines(shown["standby"])


def _row(member: dict[str, Any]) -> tuple[str, ...]:
    return (
        member["id"][:ID_SHOWN],
        visible(plain(member["address"])),
        str(member["partitions"]),
        f"{member['lease']:g} s",
        f"{member['cache_lease']:g} s",
        member["state"],
    )


def _standby_lines(standby: dict[str, Any]) -> Iterator[str]:
    if not standby["servers"]:
        needed = "needed, and none is there" if standby["needed"] else "none, and none is needed"
        yield f"standby: {needed}"
    for each in standby["servers"]:
        kind = "synchronous" if each["synchronous"] else "asynchronous"
        lag = "lag not known" if each["lag"] is None else f"{each['lag']:,} bytes behind"
        yield f"standby: {visible(each['name'])}, {kind}, {each['state'] or 'unknown'}, {lag}"
