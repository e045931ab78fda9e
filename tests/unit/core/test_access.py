"""Identities: what is done for each of them, and that no other one can change it or see it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest

from dstore.config import PEER_SHARE, share_of
from dstore.core.authority import invalidations, stages
from dstore.core.authority.access import PREFIXES_SHOWN
from dstore.core.authority.effects import Publish
from dstore.core.authority.identity import ANYONE, Identity, Role
from dstore.core.local.watching import ALL
from dstore.protocol import content, offers
from dstore.protocol.keys import from_bytes, to_bytes
from dstore.protocol.messages import (
    NO_SESSION,
    Ack,
    AskMap,
    Chunk,
    Del,
    DelStatus,
    Expire,
    Fetch,
    Get,
    GetReply,
    Goodbye,
    Hello,
    Kind,
    Large,
    Offer,
    Refusal,
    Refused,
    Scan,
    Set,
    SetItem,
    SetStatus,
    Stage,
    Staged,
    Stats,
    Stored,
    Sync,
    ToGlobal,
    Ttl,
    Unstage,
    Unwait,
    Wait,
    Welcome,
)
from dstore.protocol.unpacking import TEXT_BYTES_MAX
from tests.unit.core.test_strangers import BODY, everything, owner, picture
from tests.unit.core.world import LEASE, Member, World

READER = Role.READ
WRITER = Role.WRITE


def writer(name: str, *prefixes: str) -> Identity:
    return Identity(name, WRITER, prefixes)


def ask(world: World, identity: Identity, message: ToGlobal, route: bytes = b"r") -> Any:
    """The answer to a message of an identity; None if there is none."""
    inbox = world.inboxes.setdefault(route, deque())
    inbox.clear()
    world.deliver(route, message, identity)
    return inbox[-1] if inbox else None


def hello(world: World, identity: Identity, kind: Kind = Kind.MEMBER) -> Welcome:
    nonce = world.random16()
    welcome = ask(world, identity, Hello(nonce, 0, 0, identity.name, kind), nonce)
    assert isinstance(welcome, Welcome)
    return welcome


def item(world: World, key: str, body: bytes = b"v") -> SetItem:
    return SetItem(key, Stored(world.random16(), "bytes", body))


def large(world: World, body: bytes = BODY) -> Stored:
    return Stored(world.random16(), "bytes", Large(len(body), content.digest("bytes", body)))


def bound_large(world: World, identity: Identity, key: str, body: bytes = BODY) -> Stored:
    """A large value that this identity has uploaded and bound."""
    session, stored = hello(world, identity).session, large(world, body)
    ask(world, identity, Stage(world.epoch, session, 1, stored, 0, body))
    reply = ask(world, identity, Set(world.epoch, session, 2, 1, 0, False, [SetItem(key, stored)]))
    assert reply.items[0].status is SetStatus.STORED
    return stored


def denied(answer: Any) -> str:
    assert isinstance(answer, Refused)
    assert answer.refusal is Refusal.DENIED
    return answer.text


# ---- identities -------------------------------------------------------------------------------


def test_an_identity_sees_the_keys_below_its_prefixes_by_their_bytes() -> None:
    some = writer("some", "a/", "é", from_bytes(b"\xe4\xb8"), "a/b/")
    for key in ("a/", "a/x", "éa", "中", from_bytes(b"\xe4\xb8\xff")):
        assert some.sees(key)
    for key in ("a", "b/a/", "e", from_bytes(b"\xc3"), from_bytes(b"\xe4")):
        assert not some.sees(key)
    assert all(each.sees("x") for each in (ANYONE, writer("all"), writer("any", "")))
    assert some.within("") == ["a/", "é", from_bytes(b"\xe4\xb8")]
    assert some.within("a/b") == ["a/b"]
    assert some.within("a") == ["a/"]
    assert some.within("b") == []
    assert writer("all").within("b") == ["b"]


def test_nothing_of_an_identity_is_a_secret_or_equal_to_another() -> None:
    assert writer("a") != writer("a")
    assert repr(Identity("a", Role.READ, ("x/",))) == "<Identity 'a' READ prefixes=('x/',)>"


# ---- sessions belong to the identity that opened them -----------------------------------------


def lively() -> tuple[World, Member, bytes, Identity]:
    """A session of one identity, with a deletion that waits for it, an upload, a write, a wait."""
    world, mine = World(), writer("mine")
    (a,) = world.joined("a", identity=mine)
    (b,) = world.joined("b", identity=mine)
    for key in ("k", "held"):
        b.set(key, b"v")
        a.get(key)
    stored = large(world)
    world.deliver(b"x", Stage(a.state.epoch, a.state.session, 1, stored, 0, BODY[:4]), mine)
    wait = Wait(a.state.epoch, a.state.session, 2, "waited for", 50.0)
    world.deliver(b"x", wait, mine)
    b.begin_delete("k").send()
    return world, a, stored.token, mine


def test_another_identity_that_knows_id_and_secret_changes_nothing() -> None:
    world, a, token, _ = lively()
    before = picture(world.state)
    other = writer("other")
    epoch, secret, seq = world.epoch, a.state._secret, world.state._log.seq
    for message in everything(epoch, a.state.session, secret, seq, token):
        if isinstance(message, (Get, Wait, Scan, Stats, AskMap, Fetch)):
            continue  # who knows the id of a session may read in its name
        answer = ask(world, other, message)
        if isinstance(message, (Unwait, Unstage)):
            assert answer is None
        elif not isinstance(message, Goodbye):
            assert answer.refusal is Refusal.UNKNOWN_SESSION, message
        assert picture(world.state) == before, message


def test_the_secret_of_another_identity_neither_renews_nor_acknowledges_nor_ends() -> None:
    world, a, _token, _ = lively()
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    world.advance(LEASE / 4)
    end, seq = session.lease_end, world.state._log.seq
    for message in (Ack(*owner(a), seq), Sync(*owner(a), 1, seq, 9), Goodbye(*owner(a))):
        ask(world, writer("other"), message)
        assert (session.open, session.lease_end, session.seen) == (True, end, 0)
        assert world.state._invalidations.pending


def test_a_hello_of_another_identity_replaces_no_session() -> None:
    world, a, _token, mine = lively()
    message = Hello(world.random16(), world.epoch, a.state._secret, "thief")
    assert isinstance(ask(world, writer("other"), message), Welcome)
    assert world.state._sessions.get(a.state.session) is not None
    again = message._replace(nonce=world.random16())
    assert isinstance(ask(world, mine, again), Welcome)
    assert world.state._sessions.get(a.state.session) is None


def test_a_nonce_of_another_identity_opens_another_session() -> None:
    world = World()
    message = Hello(world.random16(), 0, 0, "a")
    mine, other = writer("mine"), writer("other")
    first = ask(world, mine, message)
    second = ask(world, other, message)
    assert {first.session, first.secret}.isdisjoint({second.session, second.secret})
    assert ask(world, mine, message) == first
    assert ask(world, other, message) == second


def test_writes_and_uploads_need_a_session_of_the_same_identity() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    session, stored = hello(world, mine).session, large(world)
    asked = world.epoch, session, 1
    for message in (
        Set(*asked, 1, 0, False, [item(world, "k")]),
        Del(*asked, 1, 0, True, ["k"]),
        Expire(*asked, 1, 0, 1.0, ["k"]),
        Stage(*asked, stored, 0, BODY),
    ):
        assert ask(world, other, message).refusal is Refusal.UNKNOWN_SESSION
    assert len(world.engine) == len(world.state._stages) == 0
    ask(world, mine, Stage(*asked, stored, 0, BODY))
    ask(world, other, Unstage(world.epoch, session, stored.token))
    assert len(world.state._stages) == 1
    ask(world, mine, Unstage(world.epoch, session, stored.token))
    assert len(world.state._stages) == 0


def test_a_wait_belongs_to_the_identity_that_asked_and_not_to_the_session_it_names() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    session = hello(world, mine).session
    asked = world.epoch, session, 5
    for identity, route in ((mine, b"m"), (other, b"o")):
        assert ask(world, identity, Wait(*asked, "k", 9.0), route) is None
    ask(world, other, Unwait(*asked, "k"), b"o")
    assert len(world.state._waits) == 1
    world.engine_holds("k")
    world.state._waits.bound("k")
    world.inboxes.clear()
    world.tick()
    assert list(world.inboxes) == [b"m"]


def test_a_parked_load_belongs_to_the_identity_that_asked() -> None:
    world, mine, other = World(away=True), writer("mine"), writer("other")
    session = hello(world, mine).session
    world.engine_holds("k")
    asked = world.epoch, session, 5
    for identity, route in ((mine, b"m"), (other, b"o")):
        world.deliver(route, Wait(*asked, "k", 9.0), identity)
    world.deliver(b"o", Unwait(*asked, "k"), other)
    world.inboxes.clear()
    world.load()
    world.tick()
    assert list(world.inboxes) == [b"m"]


# ---- reads in the name of another identity's session ------------------------------------------


def test_who_knows_the_id_of_a_session_reads_in_its_name_and_makes_it_a_holder() -> None:
    """As a process does that uses the page of `dstore host`, with a connect file of its own."""
    world, host, process = World(), writer("host"), Identity("process", READER)
    (a,) = world.joined("a", identity=host)
    a.set("k", b"v")
    world.engine_holds("held")
    asked = world.epoch, a.state.session, 9
    assert ask(world, process, Get(*asked, ["held"])).items[0].cacheable
    session = world.state._sessions.get(a.state.session)
    assert session in world.state._sessions.holding("held")
    assert ask(world, process, Wait(*asked, "held", 1.0)).items[0].cacheable
    assert ask(world, process, Ttl(*asked, "held")).bound
    assert ask(world, process, Scan(*asked, "", "", 9)).keys == ["held", "k"]


HOLDING = ("get", "read", "wait", "offer", "set", "replace", "occupied")


@pytest.mark.parametrize("way", HOLDING)
@pytest.mark.parametrize("why", ["prefix", "revoked"])
def test_a_session_holds_only_what_its_own_identity_is_told_of(way: str, why: str) -> None:
    """Else its Local would not hear the name of the key that is deleted, and keep the value."""
    world, process = World(), writer("process")
    world.state.conceal()
    host = writer("host", "own/") if why == "prefix" else writer("host")
    (a,) = world.joined("a", identity=host)
    holder = a.state.session
    own = hello(world, process).session
    world.engine_holds("k")
    if why == "revoked":
        world.revoke(host)
    asked = world.epoch, holder, 9
    cacheable: Any
    if way in ("get", "read"):
        get = Get(*asked, ["k"])
        reply = (
            world.state.read(get, world.now, process) if way == "read" else ask(world, process, get)
        )
        assert isinstance(reply, GetReply) or world.away
        cacheable = isinstance(reply, GetReply) and reply.items[0].cacheable  # type: ignore[union-attr]
    elif way == "wait":
        cacheable = ask(world, process, Wait(*asked, "k", 1.0)).items[0].cacheable
    elif way == "offer":
        digest = offers.digest(world.epoch, holder, "bytes", b"v")
        cacheable = ask(world, process, Offer(*asked, ["k"], digest)).same
    else:
        key, replace = ("fresh", False) if way == "set" else ("k", way == "replace")
        message = Set(world.epoch, own, 9, 1, 0, replace, [item(world, key)], holder)
        (result,) = ask(world, process, message).items
        cacheable = result.cacheable or result.found
    assert not cacheable
    for key in ("k", "fresh"):
        assert world.state._sessions.holding(key) == []


@pytest.mark.parametrize("way", ["get", "wait", "set"])
def test_a_session_holds_what_its_own_identity_sees(way: str) -> None:
    """So that the test above can fail."""
    world, host = World(), writer("host", "own/")
    world.state.conceal()
    (a,) = world.joined("a", identity=host)
    asked = world.epoch, a.state.session, 9
    process, key = writer("process"), "own/k"
    if way == "set":
        session = hello(world, process).session
        message: ToGlobal = Set(
            world.epoch, session, 9, 1, 0, False, [item(world, key)], a.state.session
        )
        assert ask(world, process, message).items[0].cacheable
    else:
        world.engine_holds(key)
        message = Get(*asked, [key]) if way == "get" else Wait(*asked, key, 1.0)
        assert ask(world, process, message).items[0].cacheable
    assert len(world.state._sessions.holding(key)) == 1


def test_the_session_of_globals_own_host_holds_every_key() -> None:
    world = World()
    world.state.conceal()
    session = world.state.open_host(world.now, "host")
    world.engine_holds("k")
    message = Get(world.epoch, session, 1, ["k"])
    assert ask(world, Identity("process", READER), message).items[0].cacheable


# ---- roles ------------------------------------------------------------------------------------


def test_a_role_that_only_reads_writes_nothing_and_is_told_why() -> None:
    world, reader = World(), Identity("r", READER)
    session = hello(world, reader).session
    world.engine_holds("k")
    asked = world.epoch, session, 1
    for message in (
        Set(*asked, 1, 0, True, [item(world, "k")]),
        Del(*asked, 1, 0, True, ["k"]),
        Expire(*asked, 1, 0, 1.0, ["k"]),
        Stage(*asked, large(world), 0, BODY),
        Hello(world.random16(), 0, 0, "r", Kind.WRITER),
    ):
        text = denied(ask(world, reader, message))
        assert "'r' has the role read, and this needs write" in text
        assert "dstore access add NAME --role write" in text
    assert ask(world, reader, Get(*asked, ["k"])).items[0].stored.body == b"v"
    assert ask(world, reader, Ttl(*asked, "k")).left is None
    assert len(world.state._stages) == world.state._log.seq == 0


def test_the_locals_of_others_are_shown_to_an_admin_only() -> None:
    world = World()
    mine, reader, admin = writer("mine"), Identity("r", READER), Identity("admin", Role.ADMIN)
    sessions = {each: hello(world, each).session for each in (mine, reader, admin)}

    def shown(identity: Identity) -> set[str]:
        metrics = ask(world, identity, Stats(world.epoch, sessions[identity], 1)).metrics
        assert metrics["sessions"] == 3
        return {each["identity"] for each in metrics["locals"].values()}

    for _ in range(2):  # the second time from what was gathered
        assert shown(mine) == {"mine"}
        assert shown(reader) == {"r"}
        assert shown(admin) == {"mine", "r", "admin"}
    stats = ask(world, reader, Stats(0, NO_SESSION, 1))
    assert {each["identity"] for each in stats.metrics["locals"].values()} == {"r"}
    assert len(world.state.metrics(world.now)["locals"]) == 3  # type: ignore[arg-type]


# ---- prefixes ---------------------------------------------------------------------------------


def test_a_message_that_names_a_key_beyond_the_prefixes_does_nothing() -> None:
    world, mine = World(), writer("mine", "a/", "b/")
    session = hello(world, mine).session
    world.engine_holds("a/1", "c/1")
    asked = world.epoch, session, 1
    for message in (
        Get(*asked, ["a/1", "c/1", "d"]),
        Wait(*asked, "c/1", 1.0),
        Ttl(*asked, "c/1"),
        Set(*asked, 1, 0, True, [item(world, "a/1"), item(world, "c/1")]),
        Del(*asked, 1, 0, True, ["a/1", "c/1"]),
        Expire(*asked, 1, 0, 1.0, ["a/1", "c/1"]),
    ):
        text = denied(ask(world, mine, message))
        assert text == "'mine' may not use the key 'c/1', only keys that begin with 'a/' or 'b/'"
    assert world.state._log.seq == 0
    assert world.state.read(Get(*asked, ["c/1"]), world.now, mine) is None
    assert isinstance(ask(world, mine, Get(*asked, ["a/1"])), GetReply)


def test_a_refusal_that_names_long_prefixes_is_a_message() -> None:
    prefixes = [from_bytes(b"\xff" * 500 + b"%d" % number) for number in range(9)]
    world, mine = World(), writer("mine", *prefixes)
    key = from_bytes(b"\xfe" * 511)
    text = denied(ask(world, mine, Get(world.epoch, hello(world, mine).session, 1, [key])))
    assert len(text) < TEXT_BYTES_MAX
    assert f"(or {9 - PREFIXES_SHOWN} others)" in text


def scanned(world: World, identity: Identity, prefix: str, limit: int) -> list[str]:
    keys: list[str] = []
    after = ""
    while True:
        page = ask(world, identity, Scan(0, NO_SESSION, 1, prefix, after, limit))
        assert len(page.keys) <= limit
        keys += page.keys
        after = page.after
        if not after:
            return keys


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_scan_returns_the_keys_below_the_prefixes_in_order_page_by_page(limit: int) -> None:
    world = World(limit=1 << 24)
    keys = ["a", "a/1", "a/2", "a/b/1", "b", "c/1", "c/2", "é/1", "z"]
    world.engine_holds(*keys)
    some = writer("some", "é/", "c/", "a/b/", "a/", "a/b")
    assert scanned(world, some, "", limit) == ["a/1", "a/2", "a/b/1", "c/1", "c/2", "é/1"]
    assert scanned(world, some, "a", limit) == ["a/1", "a/2", "a/b/1"]
    assert scanned(world, some, "a/b", limit) == ["a/b/1"]
    assert scanned(world, some, "c/2", limit) == ["c/2"]
    assert scanned(world, some, "z", limit) == []
    assert scanned(world, writer("all"), "", limit) == sorted(keys, key=to_bytes)


def test_what_an_identity_does_not_see_is_not_the_same_in_an_offer() -> None:
    world, mine = World(), writer("mine", "a/")
    session = hello(world, mine).session
    world.engine_holds("a/1", "c/1")
    digest = offers.digest(world.epoch, session, "bytes", b"v")
    message = Offer(world.epoch, session, 1, ["c/1", "a/1"], 2 * digest)
    assert ask(world, mine, message).same == ([] if world.away else [1])


def test_a_fetch_needs_the_key_that_has_the_token_now() -> None:
    world, mine, other = World(), writer("mine", "a/"), writer("other", "b/")
    stored = bound_large(world, mine, "a/large")
    asked = world.epoch, hello(world, mine).session, 7

    def fetched(identity: Identity, key: str) -> Any:
        return ask(world, identity, Fetch(*asked, key, stored.token, 0, 99))

    chunk = fetched(mine, "a/large")
    assert isinstance(chunk, Chunk)
    assert bytes(chunk.data) == BODY
    for identity, key in ((other, "a/large"), (other, "b/x"), (mine, "a/other")):
        assert fetched(identity, key).refusal is Refusal.GONE
    session = hello(world, mine).session
    replacing = Set(world.epoch, session, 1, 1, 0, True, [item(world, "a/large")])
    ask(world, mine, replacing)
    assert fetched(mine, "a/large").refusal is Refusal.GONE


def test_a_small_value_with_the_token_of_a_large_one_is_no_way_to_its_bytes() -> None:
    world, mine, other = World(), writer("mine", "a/"), writer("other", "b/")
    stored = bound_large(world, mine, "a/large")
    session = hello(world, other).session
    small = SetItem("b/x", Stored(stored.token, "bytes", b"small"))
    reply = ask(world, other, Set(world.epoch, session, 1, 1, 0, False, [small]))
    assert reply.items[0].status is SetStatus.STORED
    fetch = Fetch(world.epoch, session, 2, "b/x", stored.token, 0, 99)
    assert ask(world, other, fetch).refusal is Refusal.GONE
    ask(world, other, Del(world.epoch, session, 3, 2, 0, True, ["b/x"]))
    assert bytes(world.bulk.read(stored.token, 0, 99) or b"") == BODY


def test_what_is_loaded_for_one_key_is_not_answered_for_another_with_the_same_token() -> None:
    world, mine, other = World(away=True), writer("mine", "a/"), writer("other", "b/")
    first, second = hello(world, mine).session, hello(world, other).session
    theirs = item(world, "a/k", b"secret")
    ask(world, mine, Set(world.epoch, first, 1, 1, 0, False, [theirs]))
    ours = SetItem("b/k", theirs.stored._replace(body=b"public"))
    ask(world, other, Set(world.epoch, second, 1, 1, 0, False, [ours]))
    ask(world, mine, Get(world.epoch, first, 2, ["a/k"]), b"m")
    ask(world, other, Get(world.epoch, second, 2, ["b/k"]), b"o")
    while world.loads:
        world.load()
    world.tick()
    assert world.inboxes[b"m"][-1].bodies == [b"secret"]  # type: ignore[union-attr]
    assert world.inboxes[b"o"][-1].bodies == [b"public"]  # type: ignore[union-attr]


def test_the_token_of_a_bound_value_binds_nothing_and_destroys_nothing() -> None:
    world, mine, other = World(), writer("mine", "a/"), writer("other", "b/")
    stored = bound_large(world, mine, "a/large")
    session = hello(world, other).session
    for write, replace in ((1, False), (2, True)):
        taken = Set(world.epoch, session, 1, write, 0, replace, [SetItem("b/x", stored)])
        assert ask(world, other, taken).items[0].status is SetStatus.ABSENT
    staged = ask(world, other, Stage(world.epoch, session, 1, stored, 0, b"XXXXXXXXXX"))
    assert isinstance(staged, Staged)
    assert len(world.state._stages) == 0
    again = Set(world.epoch, session, 1, 3, 0, False, [SetItem("b/x", stored)])
    assert ask(world, other, again).items[0].status is SetStatus.ABSENT
    ask(world, other, Unstage(world.epoch, session, stored.token))
    assert bytes(world.bulk.read(stored.token, 0, 99) or b"") == BODY
    assert world.engine.read("b/x") is None


def test_the_upload_of_another_identity_is_not_bound_continued_or_dropped() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    first, second = hello(world, mine).session, hello(world, other).session
    stored = large(world)
    ask(world, mine, Stage(world.epoch, first, 1, stored, 0, BODY))
    taken = Set(world.epoch, second, 1, 1, 0, False, [SetItem("x", stored)])
    assert ask(world, other, taken).items[0].status is SetStatus.ABSENT
    assert isinstance(ask(world, other, Stage(world.epoch, second, 2, stored, 0, BODY)), Refused)
    ask(world, other, Unstage(world.epoch, second, stored.token))
    own = Set(world.epoch, first, 2, 1, 0, False, [SetItem("x", stored)])
    assert ask(world, mine, own).items[0].status is SetStatus.STORED


# ---- content addresses below a prefix ---------------------------------------------------------

DIGEST = content.digest("bytes", b"v")


@pytest.mark.parametrize("prefix", ["", "app1/", "web", from_bytes(b"\xff/")])
def test_an_address_below_the_prefix_of_its_writer_is_bound_to_its_value_only(prefix: str) -> None:
    world, mine = World(), writer("mine", prefix)
    session, key = hello(world, mine).session, content.address(DIGEST, prefix)
    for write, body, status in (
        (1, b"other", SetStatus.MISMATCH),
        (2, b"v", SetStatus.STORED),
        (3, b"v", SetStatus.OCCUPIED),
    ):
        message = Set(world.epoch, session, 1, write, 0, False, [item(world, key, body)])
        assert ask(world, mine, message).items[0].status is status


def test_what_is_a_content_address() -> None:
    digits, value = DIGEST.hex(), Stored(bytes(16), "bytes", b"v")
    plain, below = content.PLAIN, content.Addresses(["a/", "c"])
    for key in ("b3:", "b3:x", f"b3:{digits}", f"b3:{digits}x"):
        assert key in plain
        assert key in below
    for key in ("a/b3:x", f"a/b3:{digits}", f"cb3:{digits}"):
        assert key not in plain
        assert key in below
        assert plain.matches(key, value)
        assert below.matches(key, value) == key.endswith(digits)
    for key in ("x", f"memo/b3:{digits}", f"a/x/b3:{digits}", f"a/b4:{digits}"):
        assert key not in plain
        assert key not in below
    assert below.of(DIGEST) == f"a/b3:{digits}"
    assert plain.of(DIGEST) == f"b3:{digits}"
    assert not plain.matches(f"b3:{digits}x", value)
    assert not below.matches(f"a/b3:{digits}", Stored(bytes(16), "text", b"v"))


def test_a_put_below_a_prefix_lets_its_address_live_longer() -> None:
    world, mine = World(), writer("mine", "a/")
    session, key = hello(world, mine).session, content.address(DIGEST, "a/")
    for write, ttl in ((1, 1.0), (2, 9.0)):
        items = [item(world, key)]
        ask(world, mine, Set(world.epoch, session, 1, write, 0, False, items, NO_SESSION, ttl))
    assert ask(world, mine, Ttl(world.epoch, session, 1, key)).left == pytest.approx(9.0)


# ---- concealed --------------------------------------------------------------------------------


def concealed(*identities: Identity) -> tuple[World, list[Member]]:
    world = World()
    world.state.conceal()
    members = [world.joined(each.name, identity=each)[0] for each in identities]
    return world, members


def test_a_concealed_global_broadcasts_no_names_and_no_tokens() -> None:
    """A subscriber cannot be told apart from others: each holder is told by itself."""
    world, members = concealed(*map(writer, "abcd"))
    a = members[0]
    bound_large(world, a.identity, "large")
    published: list[Any] = []
    perform = world._perform

    def noted(effects: Iterable[Any]) -> None:
        effects = list(effects)
        published.extend(each for each in effects if isinstance(each, Publish))
        perform(effects)

    world._perform = noted  # type: ignore[method-assign]
    a.set("k", b"v")
    for member in members:
        member.get("k")
    call = members[1].begin_delete("k", "large")
    call.send()
    assert sum(bool(each.control) for each in members) == 4  # most Locals, and no broadcast
    world.settle()
    assert call.replies
    for _ in range(50):
        a.set("x", b"v")
        a.delete("x")
    world.live(2 * LEASE)
    assert published == []
    assert a.state.applied == world.state._log.seq


def test_keys_that_a_session_may_not_see_have_no_name_in_its_invalidations() -> None:
    some = writer("some", "a/")
    world, (a, b) = concealed(some, writer("all"))
    b.set("a/1", b"v")
    b.set("c/1", b"v")
    assert a.get("a/1") == b"v"
    for key in ("c/1", "a/1"):
        b.begin_delete(key).send()
    (synced,) = a.control
    assert synced.keys == ["", "a/1"]  # type: ignore[union-attr]
    world.settle()
    assert a.hit("a/1") is None
    assert (a.state.applied, a.state.counters["drops"]) == (2, 1)
    a.outgoing.clear()
    sync = ask(world, some, Sync(*owner(a), 99, 0, 0))
    assert sync.keys == ["", "a/1"]


def test_a_key_without_a_name_counts_and_nothing_is_dropped_or_announced() -> None:
    some = writer("some", "a/")
    world, (a, b) = concealed(some, writer("all"))
    a.state.watch(1, world.now)
    world.settle()
    a.told.clear()
    b.set("a/1", b"v")
    b.set("c/1", b"v")
    assert a.get("a/1") == b"v"
    words = bytes(a.state.vector.words)
    b.delete("c/1")
    world.publish()
    world.settle()
    assert (a.state.applied, a.hit("a/1"), a.told) == (1, b"v", [])
    assert bytes(a.state.vector.words) == words
    b.delete("a/1")
    world.live(LEASE / 10)
    assert a.told == [(ALL, "a/1")]


@pytest.mark.parametrize("kind", [Kind.MEMBER, Kind.OBSERVER])
def test_who_watches_is_sent_what_a_broadcast_would_have_told(kind: Kind) -> None:
    world, (a,) = concealed(writer("all"))
    watcher = Identity("watcher", READER)
    welcome = ask(world, watcher, Hello(world.random16(), 0, 0, "w", kind), b"w")
    ask(world, watcher, Sync(world.epoch, welcome.secret, 1, 0, 0, kind is Kind.MEMBER), b"w")
    for number in range(3):
        a.set(f"k{number}", b"v")
        a.delete(f"k{number}")
        world.inboxes[b"w"].clear()
        world.publish()
        (synced,) = world.inboxes[b"w"]
        assert synced[2:7] == (0, number, number + 1, [f"k{number}"], False)


def test_who_neither_holds_nor_watches_is_not_woken_up_and_hears_with_its_next_renewal() -> None:
    world, (a, b) = concealed(writer("a"), writer("b"))
    a.set("k", b"v")
    a.delete("k")
    world.publish()
    assert not b.control
    world.renew(b)
    assert b.state.applied == 1


def test_a_watcher_that_was_not_sent_one_invalidation_asks_when_the_next_one_comes() -> None:
    world, (a, b) = concealed(writer("a"), writer("b"))
    b.state.watch(1, world.now)
    world.settle()
    for key in ("k", "l"):
        a.set(key, b"v")
        a.delete(key)
        world.members.remove(b)
        world.publish()
        world.members.append(b)
        if key == "k":
            b.control.clear()  # lost with its connection
    b.told.clear()
    b.listen()
    assert b.state.applied == 0
    world.live(LEASE / 10)  # long before it would have renewed its lease
    assert b.state.applied == 2
    assert b.told == [(ALL, "k"), (ALL, "l")]


def test_a_session_acknowledges_only_what_was_sent_to_it() -> None:
    """What is kept for watchers has reached no one else."""
    world, (a, b) = concealed(writer("a"), writer("b"))
    a.set("k", b"v")
    a.delete("k")
    world.publish()
    assert ask(world, b.identity, Ack(*owner(b), 1)).refusal is Refusal.BAD_MESSAGE


def test_tokens_of_large_values_reach_who_sees_their_keys() -> None:
    """Broadcasts name them elsewhere, so that files without a cache entry are released."""
    all_, some = writer("all"), writer("some", "a/")
    world, (a, b) = concealed(all_, some)
    tokens = [bound_large(world, all_, key).token for key in ("a/large", "c/large")]
    for member, keys in ((a, ["a/large", "c/large"]), (b, ["a/large"])):
        get = Get(world.epoch, member.state.session, 1, keys)
        assert not ask(world, member.identity, get).uncacheable
    a.begin_delete("a/large", "c/large").send()
    world.settle()
    assert a.given_up == tokens
    assert b.given_up == tokens[:1]


def test_tokens_that_are_asked_for_again_and_again_are_sent_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invalidations, "REPEATED_MAX", 2)
    mine = writer("mine")
    world, (a,) = concealed(mine)
    world.state._invalidations.log.length = 2
    token = bound_large(world, mine, "large").token
    a.begin_delete("large").send()
    world.settle()
    said = [ask(world, mine, Sync(*owner(a), 1, 0, 0)) for _ in range(4)]
    assert [each.keys for each in said] == [["large"], ["large"], ["large"], None]
    assert [each.tokens for each in said] == [[token], [token], [token], []]


def test_what_was_kept_before_is_not_broadcast_once_concealed() -> None:
    world = World()
    a, b, _c = world.joined("a", "b", "c")
    a.set("k", b"v")
    a.delete("k")
    world.state.conceal()
    world.publish()
    assert not b.published


# ---- revoked ----------------------------------------------------------------------------------


def test_a_revoked_identity_gets_no_answer_to_anything() -> None:
    world, a, token, mine = lively()
    world.revoke(mine)
    world.inboxes.clear()
    before = picture(world.state)
    epoch, secret, seq = world.epoch, a.state._secret, world.state._log.seq
    for message in (
        *everything(epoch, a.state.session, secret, seq, token),
        Hello(world.random16(), 0, 0, "again"),
    ):
        assert world.state.receive(b"x", message, world.now, mine) == []
        assert picture(world.state) == before
    assert world.state.read(Get(epoch, a.state.session, 1, ["held"]), world.now, mine) is None


def test_a_deletion_waits_for_the_lease_of_a_revoked_holder() -> None:
    """Its cache may answer until then, and it is neither told nor believed any more."""
    world, mine, other = World(), writer("mine"), writer("other")
    a, b = world.joined("a", identity=mine)[0], world.joined("b", identity=other)[0]
    b.set("k", b"v")
    assert a.get("k") == b"v"
    end = world.state._sessions.get(a.state.session).lease_end  # type: ignore[union-attr]
    world.revoke(mine)
    call = b.begin_delete("k")
    call.send()
    b.turn()
    assert not a.control
    world.deliver(a.route, Ack(*owner(a), 1), mine)
    world.deliver(a.route, Sync(*owner(a), 9, 1, 0), mine)
    world.deliver(a.route, Goodbye(*owner(a)), mine)
    world.advance(end - world.now - 0.01)
    world.tick()
    assert not call.replies
    assert not a.control  # it was not reminded either
    world.advance(0.02)
    world.tick()
    (reply,) = call.replies
    assert (reply.items[0].status, reply.items[0].expired) == (DelStatus.DELETED, 1)
    assert (reply.items[0].confirmed, a.hit("k")) == (1, None)


def test_a_session_of_a_revoked_identity_ends_with_its_lease() -> None:
    world, mine = World(), writer("mine")
    (a,) = world.joined("a", identity=mine)
    world.renew(a)
    (b,) = world.joined("b")  # whose end makes Global look later
    hello(world, mine, Kind.OBSERVER)
    session = world.state._sessions.get(a.state.session)
    assert session is not None
    end = session.lease_end
    world.members.clear()
    world.revoke(mine)
    assert world.state.sessions_by_identity()[mine] == 1  # what has no lease has ended
    assert world.state.wake_at <= end
    while world.now < end - 0.2:
        world.advance(0.1)
        world.tick()
        assert session.open
    world.advance(end - world.now)
    world.tick()
    assert not session.open
    assert b.state.session


def test_waits_loads_and_uploads_of_a_revoked_identity_are_dropped() -> None:
    world, mine, other = World(away=True), writer("mine"), writer("other")
    session = hello(world, mine).session
    others = hello(world, other).session
    world.engine_holds("away")
    for number, ident in enumerate((session, others, NO_SESSION)):
        asked = world.epoch, ident, number
        world.deliver(b"m", Wait(*asked, "k", 50.0), mine)
        world.deliver(b"m", Get(*asked, ["away"]), mine)
    world.deliver(b"o", Wait(world.epoch, others, 9, "k", 50.0), other)
    world.deliver(b"m", Stage(world.epoch, session, 1, large(world), 0, BODY[:2]), mine)
    world.inboxes.clear()
    world.revoke(mine)
    assert (len(world.state._waits), len(world.state._stages)) == (1, 0)
    world.load()
    world.tick()
    assert b"m" not in world.inboxes
    assert world.state._sessions.loads.taken == 0
    world.deliver(b"o", Set(world.epoch, others, 1, 1, 0, False, [item(world, "k")]), other)
    if world.loads:
        world.load()
    world.tick()
    assert b"m" not in world.inboxes
    assert b"o" in world.inboxes


def test_a_load_of_a_revoked_identity_that_takes_too_long_is_not_refused_but_forgotten() -> None:
    world, mine = World(away=True), writer("mine")
    world.engine_holds("away")
    world.deliver(b"m", Get(world.epoch, NO_SESSION, 1, ["away"]), mine)
    world.revoke(mine)
    world.advance(100.0)
    world.tick()
    assert not world.inboxes.get(b"m")
    assert len(world.state._loads) == 0


@pytest.mark.parametrize("behind", ["deletion", "busy key"])
def test_queued_writes_of_a_revoked_identity_are_not_executed(behind: str) -> None:
    durable = behind == "busy key"
    world, mine, other = World(durable=durable), writer("mine"), writer("other")
    a = world.joined("a", identity=other)[0]
    session = hello(world, mine).session
    if durable:
        asked = Set(world.epoch, a.state.session, 1, 9, 0, False, [item(world, "k", b"first")])
        world.deliver(b"o", asked, other)
    else:
        a.set("k", b"first")
        a.get("k")
        a.begin_delete("k").send()
    queued: tuple[ToGlobal, ...] = (
        Set(world.epoch, session, 1, 1, 0, True, [item(world, "k", b"second")]),
        Expire(world.epoch, session, 1, 2, 0, 5.0, ["k"]),
        Del(world.epoch, session, 1, 3, 0, True, ["k"]),
    )
    for message in queued:
        world.deliver(b"m", message, mine)
    world.inboxes.pop(b"m", None)
    world.revoke(mine)
    if durable:
        world.commit()
    else:
        world.settle()
    bound = world.engine.read("k")
    assert (bound and bound.body) == (b"first" if durable else None)
    assert not world.state._invalidations.pending
    assert not world.inboxes.get(b"m")


def test_a_deletion_of_a_revoked_identity_that_has_begun_goes_on_and_is_not_answered() -> None:
    world, mine, other = World(), writer("mine"), writer("other")
    (a,) = world.joined("a", identity=other)
    session = hello(world, mine).session
    a.set("k", b"v")
    world.deliver(b"m", Del(world.epoch, session, 1, 1, 0, True, ["k"]), mine)
    assert world.state._invalidations.pending
    world.revoke(mine)
    world.settle()
    assert world.engine.read("k") is None
    assert not world.inboxes.get(b"m")


def test_to_revoke_twice_is_to_revoke_once() -> None:
    world, mine = World(), writer("mine")
    hello(world, mine)
    world.revoke(mine)
    before = picture(world.state)
    world.revoke(mine)
    assert picture(world.state) == before


def test_the_same_name_with_another_key_begins_anew() -> None:
    world, mine = World(), writer("mine")
    hello(world, mine)
    world.revoke(mine)
    again = writer("mine")
    session = hello(world, again).session
    reply = ask(world, again, Set(world.epoch, session, 1, 1, 0, False, [item(world, "k")]))
    assert reply.items[0].status is SetStatus.STORED
    counted = world.state.sessions_by_identity()
    assert (counted[mine], counted[again]) == (1, 1)


# ---- budgets ----------------------------------------------------------------------------------


def test_one_identity_takes_a_part_of_the_sessions_and_leaves_the_rest_to_others() -> None:
    world = World()
    most = world.state._memberships.max_clients = 8
    greedy, other = writer("greedy"), writer("other")
    for number in range(share_of(most)):
        message = Hello(world.random16(), 0, 0, "g")
        assert isinstance(ask(world, greedy, message, b"%d" % number), Welcome)
    refused = ask(world, greedy, Hello(world.random16(), 0, 0, "g"), b"last")
    assert (refused.refusal, "as many as one identity" in refused.text) == (Refusal.BUSY, True)
    assert isinstance(ask(world, other, Hello(world.random16(), 0, 0, "o"), b"o"), Welcome)


def test_one_identity_with_many_sessions_does_not_take_a_whole_budget() -> None:
    world, greedy, other = World(), writer("greedy"), writer("other")
    waits = world.state._sessions.waits
    waits.total, waits.share, waits.assured = 40_000, 40_000, 2_000
    sessions = [hello(world, greedy).session for _ in range(5)] + [NO_SESSION]
    refused = 0
    for number in range(60):
        asked = world.epoch, sessions[number % 6], number
        refused += ask(world, greedy, Wait(*asked, f"k{number}", 50.0)) is not None
    assert refused
    assert waits.taken <= PEER_SHARE * waits.total
    last = hello(world, greedy)
    few = (0, 0, 0)
    for ident in (last.session, hello(world, other).session, hello(world, other).session):
        taken = 0
        while (
            ask(
                world,
                greedy if ident == last.session else other,
                Wait(world.epoch, ident, taken, f"w{taken}", 50.0),
            )
            is None
        ):
            taken += 1
        few = (*few[1:], taken)
    assert few[0] >= 1  # what is assured to each session
    assert few[1] > few[0]  # and what one identity leaves to others


def test_uploads_of_one_identity_leave_room_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "UPLOADS_MAX", 8)
    world, greedy, other = World(), writer("greedy"), writer("other")
    for number in range(7):
        session = hello(world, greedy).session
        staged = ask(world, greedy, Stage(world.epoch, session, number, large(world), 0, BODY[:1]))
        assert isinstance(staged, Staged) == (number < share_of(8)), staged
    assert staged.refusal is Refusal.BUSY
    session = hello(world, other).session
    assert isinstance(
        ask(world, other, Stage(world.epoch, session, 1, large(world), 0, BODY[:1])), Staged
    )


def test_uploads_of_one_identity_reserve_a_part_of_the_memory() -> None:
    world, greedy, other = World(limit=4_000), writer("greedy"), writer("other")
    answers = []
    for number in range(5):
        session = hello(world, greedy).session
        stored = large(world, bytes(800))
        stage = Stage(world.epoch, session, number, stored, 0, b"\0")
        answers.append(ask(world, greedy, stage))
    assert [isinstance(each, Staged) for each in answers] == [True] * 3 + [False] * 2
    session = hello(world, other).session
    stage = Stage(world.epoch, session, 1, large(world, bytes(800)), 0, b"\0")
    assert isinstance(ask(world, other, stage), Staged)
