"""What an identity may do by its role, and with which keys by its prefixes."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.authority.access import PREFIXES_SHOWN
from dstore.core.authority.identity import Identity, Role
from dstore.protocol import content, offers
from dstore.protocol.keys import from_bytes, to_bytes
from dstore.protocol.messages import (
    NO_SESSION,
    Chunk,
    Del,
    Expire,
    Fetch,
    Get,
    GetReply,
    Hello,
    Kind,
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
    Ttl,
    Unstage,
    Wait,
)
from dstore.protocol.unpacking import TEXT_BYTES_MAX
from tests.unit.core.identities import READER, ask, bound_large, hello, item, large, writer
from tests.unit.core.test_strangers import BODY
from tests.unit.core.world import World


def denied(answer: Any) -> str:
    assert isinstance(answer, Refused)
    assert answer.refusal is Refusal.DENIED
    return answer.text


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
