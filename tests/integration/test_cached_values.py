"""What hits return and count: an entry of the cache, by way of a Node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import dstore
from dstore import compiled
from dstore.codecs import Codecs, Encoded

pytestmark = pytest.mark.usefixtures("host_mode")
MakeNode = Callable[..., dstore.Node]


class Text(str):
    """A text of another type, whose hash and equality might be its own."""


@pytest.mark.private
def test_hits_of_keys_of_every_kind_and_of_every_method_are_counted(node: MakeNode) -> None:
    one, two = node(), node()
    two.set_many({"k": 1, b"\xff": [2]})
    one.get_many(["k", b"\xff"])
    assert (one.stats()["hits"], one.stats()["misses"]) == (0, 2)
    hits: list[Callable[[], object]] = [
        lambda: one.get("k"),
        lambda: one.get(b"k"),
        lambda: one.get(b"\xff"),
        lambda: one.get(Text("k")),
        lambda: one.lookup(b"k"),
        lambda: b"\xff" in one,
        lambda: one.get_buffer(b"k"),
        lambda: one.wait(b"\xff"),
        lambda: one.get_many([b"k"]),
    ]
    for count, hit in enumerate(hits, 1):
        hit()
        assert (one.stats()["hits"], one.stats()["misses"]) == (count, 2)


def test_a_node_says_whether_it_is_compiled(node: MakeNode) -> None:
    assert node().stats()["compiled"] is (compiled.native is not None)


@pytest.mark.private
@pytest.mark.parametrize(
    "value", [b"x" * 1000, "x" * 1000, "\N{SNOWMAN}" * 9, 2**64 - 1, -(2**63), 1.5e300, None, True]
)
def test_one_object_serves_all_hits_of_a_value_that_nobody_can_change(
    node: MakeNode, value: object
) -> None:
    one, two = node(), node()
    two.set("k", value)
    first = one.get("k")
    assert first == value
    entry = one._state.entries["k"]
    assert one.get("k") is entry.value is first
    assert one.get(b"k") is one.lookup("k").value is one.get_many(["k"])["k"] is first
    assert entry is one._state.entries["k"], "the cache has the entry that the miss made"


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1, [2]), []])
def test_each_hit_of_a_value_that_can_be_changed_has_its_own(node: MakeNode, value: object) -> None:
    one, two = node(), node()
    two.set("k", value)
    found = [one.get("k"), one.get("k"), one.lookup("k").value, one.get_many(["k"])["k"]]
    assert found == [value] * 4
    assert len(set(map(id, found))) == 4


@pytest.mark.private
@pytest.mark.parametrize(
    ("codec", "body"),
    [("text", b"\xff"), ("msgpack", b"\xc1"), ("msgpack", b"\xcf\xff"), ("msgpack", b"\x91" * 500)],
)
def test_each_read_of_a_damaged_value_raises(node: MakeNode, codec: str, body: bytes) -> None:
    one, two = node(), node()
    encoded = Encoded(codec, (body,), len(body))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codecs, "encode", lambda self, value: encoded)
        two.set("k", "v")
    for _ in range(3):
        with pytest.raises(dstore.ValueCorrupt):
            one.get("k")
    assert one.stats()["hits"] == 2, "it is cached, as it was stored"
    assert bytes(one.get_buffer("k")) == body
    two.set("k", "whole", replace=True)
    assert one.get("k") == "whole"
