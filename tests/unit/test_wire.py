"""Frames: what is encoded is decoded, and anything else is refused with one exception."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dstore.config import (
    CHUNK_BYTES_MAX,
    KEY_BYTES_MAX,
    KEYS_PER_MESSAGE_MAX,
    LABEL_MAX,
    LOG_LENGTH_MAX,
    TTL_MAX,
)
from dstore.errors import BadMessage
from dstore.protocol import messages, unpacking, wire
from dstore.protocol.messages import (
    Chunk,
    Get,
    GetReply,
    Hello,
    Large,
    SetReply,
    Stage,
    Stored,
    Welcome,
)
from dstore.protocol.partitions import MEMBERS_MAX, NOBODY, PARTITIONS

uints = st.integers(0, 2**64 - 1)
id16 = st.binary(min_size=16, max_size=16)
clusters = st.just(b"") | id16
short = st.text(st.characters(codec="utf-8"), max_size=20)
keys = (
    st.binary(min_size=1, max_size=KEY_BYTES_MAX)
    | st.text(st.characters(codec="utf-8"), min_size=1, max_size=KEY_BYTES_MAX // 4).map(str.encode)
).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
codecs = st.sampled_from(["bytes", "text"])
larges = st.builds(Large, st.integers(1, 2**62 - 1), st.binary(min_size=32, max_size=32))
stored = st.builds(Stored, id16, codecs, st.binary(max_size=50) | larges)
found = st.builds(messages.Found, uints, st.booleans(), stored)
metrics = st.dictionaries(short, uints | short | st.none(), max_size=3)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "nonce": id16,
    "token": id16,
    "tokens": st.lists(id16, max_size=3),
    "stored": st.builds(Stored, id16, codecs, larges),
    "data": st.binary(min_size=1, max_size=50),
    "length": st.integers(1, CHUNK_BYTES_MAX),
    "label": short,
    "publisher": short,
    "text": short,
    "lease": st.floats(0.001, 1e6),
    "prefix": short,
    "after": short,
    "replace": st.booleans(),
    "wait": st.booleans(),
    "refusal": st.sampled_from(messages.Refusal),
    "kind": st.sampled_from(messages.Kind),
    "metrics": metrics,
    "acknowledge": st.booleans(),
    "watching": st.booleans(),
    "key": keys,
    "timeout": st.floats(0, 1e8, exclude_min=True),
    "ttl": st.none() | st.floats(0, TTL_MAX, exclude_min=True),
    "bound": st.booleans(),
    "left": st.none() | st.floats(0, 1e10),
    "quiet": st.floats(0, 1e10),
    "durable": st.booleans(),
    "partitions": st.just(b"") | st.binary(min_size=32, max_size=32),
    "cluster": clusters,
}
ITEMS: dict[type, st.SearchStrategy[Any]] = {
    messages.Set: st.builds(messages.SetItem, keys, stored),
    messages.SetReply: st.builds(
        messages.SetResult,
        st.sampled_from(messages.SetStatus),
        uints,
        st.booleans(),
        st.none() | found,
        uints,
        uints,
    ),
    messages.DelReply: st.builds(
        messages.DelResult, st.sampled_from(messages.DelStatus), uints, uints, uints, uints
    ),
    messages.ExpireReply: st.sampled_from(messages.ExpireStatus),
}


replies = st.builds(
    GetReply.of, st.tuples(uints, uints, uints), uints, st.lists(st.none() | found, max_size=5)
)


offers = st.lists(st.tuples(keys, id16), min_size=1, max_size=5).flatmap(
    lambda pairs: st.builds(
        messages.Offer,
        *[uints] * 3,
        st.just([key for key, _ in pairs]),
        st.just(b"".join(digest for _, digest in pairs)),
    )
)
answers = st.lists(st.tuples(uints, id16), max_size=5, unique_by=lambda pair: pair[0]).flatmap(
    lambda pairs: st.builds(
        messages.Offered,
        *[uints] * 4,
        st.just([index for index, _ in pairs]),
        st.just(b"".join(token for _, token in pairs)),
    )
)
maps = st.lists(short, max_size=MEMBERS_MAX).flatmap(
    lambda members: st.builds(
        messages.MapReply,
        *[uints] * 4,
        st.just(members),
        st.lists(
            st.sampled_from([*range(len(members)), NOBODY]),
            min_size=PARTITIONS,
            max_size=PARTITIONS,
        ).map(bytes),
        clusters,
    )
) | st.builds(messages.MapReply, *[uints] * 4, st.just([]), st.just(b""), clusters)
COLUMNS: dict[type, st.SearchStrategy[Any]] = {
    GetReply: replies,
    messages.Offer: offers,
    messages.Offered: answers,
    messages.MapReply: maps,
}


def fields_of(kind: type) -> st.SearchStrategy[Any]:
    if kind in COLUMNS:
        return COLUMNS[kind]
    strategies: dict[str, st.SearchStrategy[Any]] = {}
    for name in kind._fields:  # type: ignore[attr-defined]
        if name == "keys":
            some: st.SearchStrategy[Any] = st.lists(keys, min_size=1, max_size=5)
            if kind is messages.Synced:  # some keys may be concealed
                some = st.none() | st.lists(keys | st.just(""), max_size=5)
            strategies[name] = some
        elif (kind, name) == (messages.Synced, "after"):
            strategies[name] = uints
        elif name == "items":
            strategies[name] = st.lists(ITEMS[kind], min_size=1, max_size=5)
        else:
            strategies[name] = FIELDS.get(name, uints)
    return st.builds(kind, **strategies)


TO_GLOBAL = [kind for kind, _ in wire._TO_GLOBAL.values()]
TO_LOCAL = [kind for kind, _ in wire._TO_LOCAL.values()]
any_to_global = st.one_of([fields_of(kind) for kind in TO_GLOBAL])
any_to_local = st.one_of([fields_of(kind) for kind in TO_LOCAL])


@given(any_to_global)
def test_a_message_to_global_comes_out_as_it_went_in(message: Any) -> None:
    decoded = wire.decode_to_global(wire.encode(message), wire.data_of(message))
    assert decoded == message
    assert type(decoded) is type(message)


@given(any_to_local)
def test_a_message_to_a_local_comes_out_as_it_went_in(message: Any) -> None:
    decoded = wire.decode_to_local(wire.encode(message), wire.data_of(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_the_parts_of_a_message_have_their_types() -> None:
    large = Stored(bytes(16), "bytes", Large(1, bytes(32)))
    reply = GetReply.of((1, 1, 1), 1, [messages.Found(1, True, large)])
    (item,) = wire.decode_to_local(wire.encode(reply)).items  # type: ignore[union-attr]
    assert isinstance(item, messages.Found)
    assert isinstance(item.stored, Stored)
    assert isinstance(item.stored.body, Large)
    outcome = SetReply(1, 1, 1, [messages.SetResult(messages.SetStatus.FULL, 1)])
    (result,) = wire.decode_to_local(wire.encode(outcome)).items  # type: ignore[union-attr]
    assert result.status is messages.SetStatus.FULL  # type: ignore[union-attr]


@given(st.binary())
@example(b"")
@example(b"dS")
@example(b"dS\x02")
@example(b"dS\x02\xc1")
@example(b"dS\x02\x90")
@example(b"dS\x02\x91\x91\x05")
@example(b"dS\x02\xdd\xff\xff\xff\xff")
@example(b"dS\x02" + b"\x91" * 5000)
def test_any_bytes_are_refused_with_bad_message(frame: bytes) -> None:
    for decode in (wire.decode_to_global, wire.decode_to_local):
        with pytest.raises(BadMessage):
            decode(frame)


things = st.recursive(
    st.none() | st.booleans() | uints | st.integers(-9, 0) | st.floats() | short | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=3),
    max_leaves=15,
)


@given(st.sampled_from([*wire._TO_GLOBAL, *wire._TO_LOCAL, 0, 64]), st.lists(things, max_size=8))
def test_any_fields_decode_or_are_refused_with_bad_message(number: int, fields: Any) -> None:
    frame = wire.PREFIX + msgpack.packb([number, *fields])
    for decode in (wire.decode_to_global, wire.decode_to_local):
        try:
            decode(frame)
        except BadMessage:
            pass


@given(any_to_global, st.data())
def test_a_truncated_frame_is_refused(message: Any, data: st.DataObject) -> None:
    frame = wire.encode(message)
    with pytest.raises(BadMessage):
        wire.decode_to_global(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(any_to_global, st.binary(min_size=1))
def test_a_frame_with_more_behind_it_is_refused(message: Any, more: bytes) -> None:
    with pytest.raises(BadMessage):
        wire.decode_to_global(wire.encode(message) + more)


def test_another_version_is_named() -> None:
    frame = bytearray(wire.encode(Hello(bytes(16), 0, 0, "")))
    frame[2] = wire.VERSION + 1
    with pytest.raises(wire.OtherVersion, match=f"version {wire.VERSION + 1}"):
        wire.decode_to_global(bytes(frame))


def test_neither_side_takes_the_others_messages() -> None:
    welcome = Welcome(1, 1, bytes(16), 0, 1.0, "", 1, 1, 1)
    with pytest.raises(BadMessage, match="unknown operation"):
        wire.decode_to_global(wire.encode(welcome))
    with pytest.raises(BadMessage, match="unknown operation"):
        wire.decode_to_local(wire.encode(Hello(bytes(16), 0, 0, "")))


@pytest.mark.parametrize(
    "key", ["", "x" * (KEY_BYTES_MAX + 1), "ä" * (KEY_BYTES_MAX // 2 + 1), b"k", None, 5]
)
def test_a_key_that_is_none_is_refused_and_its_sender_can_be_answered(key: Any) -> None:
    frame = wire.PREFIX + msgpack.packb([5, 11, 12, 13, [key]])
    with pytest.raises(wire.Malformed, match="GET: ") as caught:
        wire.decode_to_global(frame)
    assert caught.value.envelope == (11, 12, 13)


def test_only_an_answer_to_sync_may_leave_out_the_name_of_a_key() -> None:
    synced = messages.Synced(1, 1, 1, 0, 2, ["k", ""], tokens=[bytes(16)])
    assert wire.decode_to_local(wire.encode(synced)) == synced
    for frame in (messages.Broadcast(1, 1, ["k", ""], True), messages.ScanReply(1, 1, 1, [""], "")):
        with pytest.raises(BadMessage, match="expected a key, got ''"):
            wire.decode_to_local(wire.encode(frame))


def test_a_key_of_the_greatest_length_is_taken() -> None:
    for key in ("x" * KEY_BYTES_MAX, "ä" * (KEY_BYTES_MAX // 2), "\udcff" * KEY_BYTES_MAX):
        message = Get(1, 1, 1, [key])
        assert wire.decode_to_global(wire.encode(message)) == message


@pytest.mark.parametrize("many", [0, KEYS_PER_MESSAGE_MAX + 1])
def test_no_keys_or_too_many_are_refused(many: int) -> None:
    with pytest.raises(wire.Malformed, match="1 to 2,000 items") as caught:
        wire.decode_to_global(wire.encode(Get(11, 12, 13, ["k"] * many)))
    assert caught.value.envelope == (11, 12, 13)


@pytest.mark.parametrize("name", ["", "x" * 65, "\udcff", "a\nb", "ä"])
def test_the_name_of_a_codec_is_plain(name: str) -> None:
    item = messages.SetItem("b3:00", Stored(bytes(16), name, b""))
    with pytest.raises(BadMessage, match="codec"):
        wire.decode_to_global(wire.encode(messages.Set(1, 1, 1, 1, 0, False, [item])))


@pytest.mark.parametrize("bits", [bytes(31), bytes(33), "", None, 0])
def test_a_scan_names_all_partitions_by_a_bit_for_each_or_by_none(bits: Any) -> None:
    for taken in (b"", bytes(31) + b"\x80"):
        scan = messages.Scan(1, 1, 1, "", "", 9, taken)
        assert wire.decode_to_global(wire.encode(scan)) == scan
    with pytest.raises(wire.Malformed, match="SCAN: expected a bit for each of 256 partitions"):
        wire.decode_to_global(wire.encode(messages.Scan(1, 1, 1, "", "", 9, bits)))


@pytest.mark.parametrize(
    ("members", "owners", "problem"),
    [
        (["a"], bytes([0, NOBODY] * 127 + [0, 1]), "no member"),
        ([], bytes(256), "no member"),
        (["a"], b"", "256 partitions"),
        (["a"], bytes(255), "256 partitions"),
        (["a"] * (MEMBERS_MAX + 1), bytes(256), "0 to 250 items"),
        ([7], bytes(256), "expected text"),
    ],
)
def test_a_map_names_a_member_or_nobody_for_each_partition(
    members: Any, owners: bytes, problem: str
) -> None:
    reply = messages.MapReply(1, 1, 1, 5, members, owners)
    with pytest.raises(wire.Malformed, match=problem):
        wire.decode_to_local(wire.encode(reply))


@pytest.mark.parametrize("cluster", [b"x", bytes(15), bytes(17), "x" * 16, None])
def test_the_id_of_a_cluster_has_16_bytes_or_none(cluster: Any) -> None:
    welcome = Welcome(1, 1, bytes(16), 0, 1.0, "", 1, 1, 1, cluster=cluster)
    found = messages.MapReply(1, 1, 1, 5, [], b"", cluster)
    for message in (welcome, found):
        with pytest.raises(BadMessage, match="16 bytes"):
            wire.decode_to_local(wire.encode(message))


def test_an_error_shows_nothing_huge_and_needs_no_great_stack() -> None:
    deep = wire.PREFIX + b"\x92\x05" + b"\x91" * 1000 + b"\x00"
    huge = wire.PREFIX + msgpack.packb([5, 1, 1, 1, "x" * 1_000_000])
    for frame in (deep, huge):
        with pytest.raises(BadMessage) as caught:
            wire.decode_to_global(frame)
        assert len(str(caught.value)) < 200


def test_a_lease_may_be_a_whole_number() -> None:
    welcome = Welcome(1, 1, bytes(16), 0, 2, "", 1, 1, 1)
    decoded = wire.decode_to_local(wire.encode(welcome))
    assert isinstance(decoded, Welcome)
    assert isinstance(decoded.lease, float)


def test_data_come_with_the_messages_that_have_some_and_with_no_others() -> None:
    large = Stored(bytes(16), "bytes", Large(3, bytes(32)))
    stage = wire.encode(Stage(1, 1, 1, large, 0, b"abc"))
    chunk = wire.encode(Chunk(1, 1, 1, bytes(16), 0, b"abc"))
    get = wire.encode(Get(1, 1, 1, ["k"]))
    for frame, data in ((stage, None), (get, b"abc"), (stage, b""), (stage, bytes(1 << 23))):
        with pytest.raises(BadMessage):
            wire.decode_to_global(frame, data)
    with pytest.raises(BadMessage):
        wire.decode_to_local(chunk)
    assert wire.decode_to_local(chunk, memoryview(b"abc")).data == b"abc"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "body", [[0, bytes(32)], [5, bytes(31)], [-1, bytes(32)], [5], "x", 5, None]
)
def test_what_stands_for_a_large_value_is_checked(body: object) -> None:
    item = ["k", [bytes(16), "bytes", body]]
    frame = wire.PREFIX + msgpack.packb([6, 1, 1, 1, 1, 1, False, [item], 1])
    with pytest.raises(BadMessage):
        wire.decode_to_global(frame)


# ---- frames that are read step by step ----------------------------------------------------------


@pytest.fixture(params=["items together", "each item by itself"])
def step_by_step(request: pytest.FixtureRequest) -> Iterator[None]:
    """As every frame is read that is not small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "QUICK_BYTES_MAX", -1)
        if request.param == "each item by itself":
            patch.setattr(unpacking, "QUICK_BYTES_MAX", -1)
        yield


@given(any_to_global | any_to_local)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_step_by_step_a_message_comes_out_as_it_went_in(step_by_step: None, message: Any) -> None:
    decode = wire.decode_to_global if type(message) in TO_GLOBAL else wire.decode_to_local
    decoded = decode(wire.encode(message), wire.data_of(message))
    assert decoded == message
    assert type(decoded) is type(message)


def test_messages_with_as_much_as_there_may_be_are_read() -> None:
    key = "ä" * (KEY_BYTES_MAX // 2)
    body = bytes(70_000)
    items = [messages.SetItem(f"{key}", Stored(bytes(16), "bytes", body))] * 3
    some = [messages.Found(1, False, Stored(bytes(16), "text", b"x"))] * 300 + [None]
    large = messages.Found(1, True, Stored(bytes(16), "text", body))
    figure = {"label": "x" * LABEL_MAX, "lease_left": 1.5}
    for message in (
        Get(1, 1, 1, [key] * KEYS_PER_MESSAGE_MAX),
        messages.Set(1, 1, 1, 1, 0, False, items * 100),
        messages.Set(1, 1, 1, 1, 0, False, [messages.SetItem("k", items[0].stored)]),
        messages.Synced(
            1, 1, 1, 0, LOG_LENGTH_MAX, ["k", ""] * (LOG_LENGTH_MAX // 2), tokens=[bytes(16)]
        ),
        messages.Broadcast(1, 1, [key] * 11_000, True, [bytes(16)] * 11_000),
        GetReply.of((1, 1, 1), 1, [*some, large, *some, large, large] * 3),
        GetReply.of((1, 1, 1), 1, some[:1] * KEYS_PER_MESSAGE_MAX),
        SetReply(1, 1, 1, [messages.SetResult(messages.SetStatus.OCCUPIED, 1, found=large)] * 300),
        messages.DelReply(
            1,
            1,
            1,
            [messages.DelResult(messages.DelStatus.DELETED, 1 << 40)] * KEYS_PER_MESSAGE_MAX,
        ),
        messages.Expire(1, 1, 1, 1, 0, 1.5, [key] * KEYS_PER_MESSAGE_MAX),
        messages.Offer(1, 1, 1, [key] * KEYS_PER_MESSAGE_MAX, bytes(16) * KEYS_PER_MESSAGE_MAX),
        messages.Offered(1, 1, 1, 1, list(range(1000)), bytes(16) * 1000),
        messages.ScanReply(1, 1, 1, [key] * KEYS_PER_MESSAGE_MAX, key),
        messages.StatsReply(1, 1, 1, {"locals": {f"{2**64 - n}": figure for n in range(1000)}}),
    ):
        decode = wire.decode_to_global if type(message) in TO_GLOBAL else wire.decode_to_local
        frame = wire.encode(message)
        assert len(frame) > unpacking.QUICK_BYTES_MAX
        assert decode(frame) == message


# ---- columns -----------------------------------------------------------------------------------


@given(st.tuples(uints, uints, uints), uints, st.lists(st.none() | found, max_size=5))
def test_the_values_of_a_reply_come_out_as_they_went_in(
    envelope: tuple[int, int, int], seq: int, items: list[messages.Found | None]
) -> None:
    expected = [each and each._replace(seq=seq) for each in items]
    reply = GetReply.of(envelope, seq, items)
    assert reply.items == expected
    assert GetReply.of(envelope, seq, reply.items) == reply
    assert wire.decode_to_local(wire.encode(reply)).items == expected  # type: ignore[union-attr]


LARGE = [5, bytes(32)]  # as it is packed
GOOD: dict[str, tuple[Any, ...]] = {
    "no keys": ([], b"", [], []),
    "missing": ([""], bytes(16), [None], []),
    "two codecs": (["text", "custom"], bytes(32), [b"", Large(5, bytes(32))], [1, 0]),
    "all kinds": (["text", "", "text"], bytes(48), [b"a", None, Large(5, bytes(32))], [0]),
}
BAD: dict[str, tuple[Any, ...]] = {
    "codecs: no list": ("text", bytes(16), [b""], []),
    "codecs: nil": (None, bytes(16), [b""], []),
    "codecs: bytes": ([b"text"], bytes(16), [b""], []),
    "codecs: a number": ([0], bytes(16), [None], []),
    "codecs: false": ([False], bytes(16), [None], []),
    "codecs: nil within": ([None], bytes(16), [None], []),
    "codecs: nil beside a name": (["text", None], bytes(32), [b"", None], []),
    "codecs: a list": ([["text"]], bytes(16), [b""], []),
    "codecs: a list beside a name": (["text", []], bytes(32), [b"", b""], []),
    "codecs: a table beside a name": (["text", {}], bytes(32), [b"", b""], []),
    "codecs: bytes beside a name": (["text", b"text"], bytes(32), [b"", b""], []),
    "codecs: no name": (["a\nb"], bytes(16), [b""], []),
    "codecs: a long name": (["x" * 65], bytes(16), [b""], []),
    "codecs: no name beside one": (["text", "ä"], bytes(32), [b"", b""], []),
    "codecs: too few": (["text"], bytes(32), [b"", b""], []),
    "codecs: too many": (["text"] * 2, bytes(16), [b""], []),
    "codecs: none for a value": ([""], bytes(16), [b""], []),
    "codecs: one for no value": (["text"], bytes(16), [None], []),
    "codecs: of another value": (["", "text"], bytes(32), [b"", None], []),
    "codecs: more than in a message": (["text"] * 2001, bytes(16 * 2001), [b""] * 2001, []),
    "tokens: text": (["text"], "x" * 16, [b""], []),
    "tokens: a list": (["text"], [bytes(16)], [b""], []),
    "tokens: nil": (["text"], None, [b""], []),
    "tokens: too short": (["text"], bytes(15), [b""], []),
    "tokens: too long": (["text"], bytes(17), [b""], []),
    "tokens: one too many": (["text"], bytes(32), [b""], []),
    "tokens: one too few": ([""], b"", [None], []),
    "bodies: no list": (["text"], bytes(16), b"", []),
    "bodies: text": (["text"], bytes(16), ["a"], []),
    "bodies: a number": (["text"], bytes(16), [5], []),
    "bodies: a table": (["text"], bytes(16), [{}], []),
    "bodies: large of no size": (["text"], bytes(16), [[0, bytes(32)]], []),
    "bodies: large of a short digest": (["text"], bytes(16), [[5, bytes(31)]], []),
    "bodies: large of three parts": (["text"], bytes(16), [[*LARGE, 1]], []),
    "bodies: too few": (["text"], bytes(16), [], []),
    "bodies: too many": (["text"], bytes(16), [b"", b""], []),
    "uncacheable: no list": (["text"], bytes(16), [b""], 0),
    "uncacheable: nil": (["text"], bytes(16), [b""], None),
    "uncacheable: negative": (["text"], bytes(16), [b""], [-1]),
    "uncacheable: true": (["text"] * 2, bytes(32), [b"", b""], [True]),
    "uncacheable: a float": (["text"] * 2, bytes(32), [b"", b""], [1.0]),
    "uncacheable: a list": (["text"], bytes(16), [b""], [[]]),
    "uncacheable: out of range": (["text"], bytes(16), [b""], [1]),
    "uncacheable: of no keys": ([], b"", [], [0]),
    "uncacheable: twice": (["text"] * 2, bytes(32), [b"", b""], [1, 1]),
    "uncacheable: more than in a message": (["text"], bytes(16), [b""], list(range(2001))),
    "seq": (-1, ["text"], bytes(16), [b""], []),
}


def reply_frame(columns: tuple[Any, ...]) -> bytes:
    seq = () if type(columns[0]) is int else (1,)
    packed: bytes = msgpack.packb([68, 11, 12, 13, *seq, *columns])
    return wire.PREFIX + packed


@pytest.mark.parametrize("columns", GOOD.values(), ids=GOOD)
def test_columns_are_read_as_a_whole_and_step_by_step(
    columns: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = wire.decode_to_local(reply_frame(columns))
    assert isinstance(decoded, GetReply)
    assert [*decoded[4:]] == [*columns]
    monkeypatch.setattr(wire, "QUICK_BYTES_MAX", -1)
    assert wire.decode_to_local(reply_frame(columns)) == decoded


@pytest.mark.parametrize("quick", [unpacking.QUICK_BYTES_MAX, -1])
@pytest.mark.parametrize("columns", BAD.values(), ids=BAD)
def test_columns_that_are_wrong_or_do_not_fit_together_are_refused(
    columns: tuple[Any, ...], quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "QUICK_BYTES_MAX", quick)
    with pytest.raises(wire.Malformed, match="GETREPLY: ") as caught:
        wire.decode_to_local(reply_frame(columns))
    assert caught.value.envelope == (11, 12, 13)


@pytest.mark.parametrize("quick", [unpacking.QUICK_BYTES_MAX, -1])
@pytest.mark.parametrize("columns", [(["text"], bytes(16), [b""]), ([], b"", [], [], [])])
def test_a_reply_has_all_columns_and_no_more(
    columns: tuple[Any, ...], quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "QUICK_BYTES_MAX", quick)
    with pytest.raises(BadMessage, match="expected 8 fields"):
        wire.decode_to_local(reply_frame(columns))


@pytest.mark.parametrize("name", ["text", "bytes", "msgpack"])
@pytest.mark.parametrize("uncacheable", [[], [0]])
def test_a_usual_value_is_read_in_few_steps_as_by_the_decoder(
    name: str, uncacheable: list[int]
) -> None:
    frame = reply_frame(([name], b"t" * 16, [b"v"], uncacheable))
    assert wire.value_of(frame, 13) == (1, not uncacheable, b"t" * 16, name, b"v")
    assert wire.value_of(frame, 14) is None
    (found,) = wire.decode_to_local(frame).items  # type: ignore[union-attr]
    assert found == (1, not uncacheable, (b"t" * 16, name, b"v"))


@pytest.mark.parametrize("columns", [*BAD.values(), *GOOD.values()], ids=[*BAD, *GOOD])
def test_an_unusual_reply_is_left_to_the_decoder(columns: tuple[Any, ...]) -> None:
    assert wire.value_of(reply_frame(columns), 13) is None


@pytest.mark.parametrize(
    "columns",
    [
        ({"text": 1}, bytes(16), [b""], []),
        (["text"], bytes(16), {b"": 1}, []),
        (["text"], bytes(16), [b""], {}),
        (["text"], bytes(16), [b""], [False]),
        (["text"], bytes(16), [b""], [0.0]),
    ],
)
def test_what_resembles_a_reply_is_no_value(columns: tuple[Any, ...]) -> None:
    assert wire.value_of(reply_frame(columns), 13) is None
    with pytest.raises(BadMessage):
        wire.decode_to_local(reply_frame(columns))


@pytest.mark.parametrize("head", [[68.0, 1, 2, 13, 1], [68, -1, 2, 13, 1], [68, 1, -2, 13, 1]])
def test_a_value_of_a_bad_envelope_is_none(head: list[Any]) -> None:
    frame = wire.PREFIX + msgpack.packb([*head, ["text"], bytes(16), [b""], []])
    assert wire.value_of(frame, 13) is None
    with pytest.raises(BadMessage):
        wire.decode_to_local(frame)


def short_ways_agree(frame: bytes) -> None:
    """What is read in few steps is what the decoder reads; what it refuses is not read."""
    get, value = wire.get_of(frame), wire.value_of(frame, 1)
    if get is not None:
        assert wire.decode_to_global(frame) == get
    if value is not None:
        seq, cacheable, *of_value = value
        reply = wire.decode_to_local(frame)
        assert isinstance(reply, GetReply)
        assert reply.items == [(seq, cacheable, tuple(of_value))]


def damaged(frame: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(3, len(changed)))
        until = data.draw(st.integers(at, min(at + 8, len(changed))))
        changed[at:until] = data.draw(st.binary(max_size=6))
    return bytes(changed)


usual = st.builds(
    lambda value, cacheable: GetReply.of((1, 1, 1), 1, [messages.Found(1, cacheable, value)]),
    st.builds(Stored, id16, codecs, st.binary(max_size=9)),
    st.booleans(),
)


@given(fields_of(Get) | usual | replies, st.data())
def test_a_damaged_frame_is_read_in_few_steps_as_by_the_decoder(
    message: Any, data: st.DataObject
) -> None:
    frame = wire.encode(message)
    short_ways_agree(frame)
    short_ways_agree(damaged(frame, data))


def test_replies_share_the_names_of_codecs() -> None:
    """Each cached value keeps the name of its codec: a text for each would take 54 bytes."""
    for names in (["text"] * 3, ["text", "bytes", "text"]):
        frame = reply_frame((names, bytes(48), [b""] * 3, []))
        first, again = wire.decode_to_local(frame), wire.decode_to_local(frame)
        assert isinstance(first, GetReply)
        assert isinstance(again, GetReply)
        assert [*map(id, first.codecs)] == [*map(id, again.codecs)]


# ---- frames of strangers -------------------------------------------------------------------------


def array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def tree(depth: int) -> bytes:
    """Lists of two in lists of two, in as many bytes."""
    return b"\x92" + 2 * tree(depth - 1) if depth else b"\x90"


GET, SET, STATS_REPLY = b"\x95\x05\1\1\1", b"\x98\x06\1\1\1\1\1\xc2", b"\x95\x48\1\1\1"
REPLY = b"\x99\x44\1\1\1\1"
TOKEN, MANY = b"\xc4\x10" + bytes(16), 1 << 20
WIDE = "\U0001f600".encode() + b"a" * (MANY - 4)
BOMBS = {
    "numbers": GET + array(MANY) + b"\xe0" * MANY,
    "lists": GET + array(MANY) + b"\x90" * MANY,
    "tables": GET + array(MANY) + b"\x80" * MANY,
    "extensions": GET + array(MANY) + b"\xd4\1\0" * MANY,
    "keys that are lists": GET + array(1000) + (array(1000) + b"\x90" * 1000) * 1000,
    "keys that are trees": GET + array(1000) + tree(9) * 1000,
    "a text": GET + array(1) + b"\xdb" + MANY.to_bytes(4, "big") + WIDE,
    "wide texts": GET + array(100) + (b"\xda\x3f\xf0" + WIDE[:0x3FF0]) * 100,
    "items that are trees": SET + array(1000) + tree(9) * 1000,
    "a body that is a tree": SET + array(1) + b"\x92\xa1k\x93" + TOKEN + b"\xa1c" + tree(19),
    "bodies that are trees": SET + array(99) + (b"\x92\xa1k\x93" + TOKEN + b"\xa1c" + tree(9)) * 99,
    "claims": array(MANY - 5) * (MANY // 5),
    "claims, small": array(3000) * 600,
    "claims as they may be": array(256) * 1000,
    "depth": b"\x91" * MANY,
    "fields": array(MANY) + b"\x05" * MANY,
    "metrics": STATS_REPLY + b"\xdf" + array(MANY)[1:] + b"\xa0\x80" * MANY,
    "deep metrics": STATS_REPLY + b"\x81\xa1k" * MANY,
    "metrics that are lists": STATS_REPLY + b"\x81\xa1k" + array(MANY) + b"\x90" * MANY,
    "codecs that are trees": REPLY + array(1000) + tree(9) * 1000,
    "codecs without end": REPLY + array(MANY) + b"\xa0" * MANY,
    "wide codecs": REPLY + array(100) + (b"\xda\x3f\xf0" + WIDE[:0x3FF0]) * 100,
    "tokens that are lists": REPLY + b"\x90" + array(MANY) + b"\x90" * MANY,
    "body trees": REPLY + b"\x90\xc4\0" + array(1000) + tree(9) * 1000,
    "indexes without end": REPLY + b"\x90\xc4\0\x90" + array(MANY) + b"\0" * MANY,
    "indexes that are trees": REPLY + b"\x90\xc4\0\x90" + array(1000) + tree(9) * 1000,
    "results with trees": b"\x95\x45\1\1\1"
    + array(99)
    + (b"\x96\1\1\xc2" + tree(9) + b"\1\1") * 99,
    "a label": b"\x95\x01" + TOKEN + b"\0\0\xdb" + MANY.to_bytes(4, "big") + WIDE,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_what_a_stranger_sends_does_not_become_many_times_its_size(bomb: bytes) -> None:
    frame = wire.PREFIX + bomb
    for decode in (wire.decode_to_global, wire.decode_to_local):
        gc.collect()
        tracemalloc.start()
        try:
            with pytest.raises(BadMessage) as caught:
                decode(frame)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5 * len(frame) + (4 << 20)
        assert len(str(caught.value)) < 200


@given(any_to_global | any_to_local, st.data())
def test_a_damaged_frame_decodes_or_is_refused_with_bad_message(
    message: Any, data: st.DataObject
) -> None:
    frame = damaged(wire.encode(message), data)
    quick = data.draw(st.sampled_from([-1, unpacking.QUICK_BYTES_MAX]))
    for decode in (wire.decode_to_global, wire.decode_to_local):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire, "QUICK_BYTES_MAX", quick)
            patch.setattr(unpacking, "QUICK_BYTES_MAX", quick)
            try:
                decoded = decode(frame, wire.data_of(message))
            except BadMessage:
                continue
            assert decode(wire.encode(decoded), wire.data_of(decoded)) == decoded


@pytest.mark.parametrize("quick", [-1, unpacking.QUICK_BYTES_MAX])
def test_a_message_is_a_list_and_nothing_else(quick: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "QUICK_BYTES_MAX", quick)
    for packed in (b"\xc4\x03\x04\x01\x01", b"\xa3\x04\x01\x01", b"\x83\x04\x01\x01\x01\x02\x02"):
        with pytest.raises(BadMessage):
            wire.decode_to_global(wire.PREFIX + packed)


@pytest.mark.parametrize("ttl", [float("nan"), float("inf"), 0.0, -1, TTL_MAX * 1.001, True, "1"])
def test_a_time_to_live_is_one(ttl: Any) -> None:
    item = messages.SetItem("k", Stored(bytes(16), "bytes", b"v"))
    for message in (
        messages.Set(1, 1, 1, 1, 0, False, [item], 1, ttl),
        messages.Expire(1, 1, 1, 1, 0, ttl, ["k"]),
    ):
        with pytest.raises(BadMessage):
            wire.decode_to_global(wire.encode(message))


@pytest.mark.parametrize("left", [float("nan"), float("inf"), -1, True, "1"])
def test_the_rest_of_a_time_to_live_is_one(left: Any) -> None:
    with pytest.raises(BadMessage):
        wire.decode_to_local(wire.encode(messages.TtlReply(1, 1, 1, True, left)))


@pytest.mark.parametrize("span", [float("nan"), float("inf"), -float("inf"), 0.0, -1, 1e9])
def test_a_span_of_time_is_one(span: float) -> None:
    with pytest.raises(BadMessage):
        wire.decode_to_global(wire.encode(messages.Wait(1, 1, 1, "k", span)))


@pytest.mark.parametrize(
    "message",
    [
        messages.Offer(1, 1, 1, ["k", "l"], bytes(31)),
        messages.Offer(1, 1, 1, ["k"], bytes(32)),
        messages.Offered(1, 1, 1, 1, [0], b""),
        messages.Offered(1, 1, 1, 1, [], bytes(16)),
        messages.Offered(1, 1, 1, 1, [0, 0], bytes(32)),
    ],
)
def test_the_columns_of_an_offer_and_of_its_answer_fit_together(message: Any) -> None:
    decode = wire.decode_to_global if type(message) in TO_GLOBAL else wire.decode_to_local
    with pytest.raises(BadMessage):
        decode(wire.encode(message))
