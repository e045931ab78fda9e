"""Pickled values: only for a Node that asks for them, and without copies of large buffers."""

from __future__ import annotations

import dataclasses
import pickle
import struct
from collections.abc import Callable
from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from dstore.codecs import Buffer
from dstore.errors import UnknownCodec, ValueCorrupt
from tests.unit.codecs.bodies import (
    KINDS,
    PICKLING,
    PLAIN,
    checked,
    corrupt,
    private,
    shared,
    stored,
    through,
)


@dataclasses.dataclass
class Model:
    """A value that only pickle can encode."""

    name: str
    weights: Any


sprung: list[str] = []


class Trap:
    """Its function runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return spring, ("by hand",)


def spring(how: str) -> None:
    sprung.append(how)


class Unwilling:
    """Raises while it is pickled."""

    def __init__(self, reason: type[Exception]) -> None:
        self.reason = reason

    def __reduce__(self) -> Any:
        raise self.reason("not now")


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


# ---- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [{1, 2}, 1j, Decimal("1.5"), Model("m", [1, 2]), [Model("m", {1})], 2**100, "\udcff", range(3)],
    ids=repr,
)
def test_a_value_that_no_other_codec_takes_is_pickled(value: object) -> None:
    assert PICKLING.encode(value).codec == "pickle"
    for kind in (private, shared):
        assert through(value, PICKLING, kind) == value


def test_a_value_too_deep_for_msgpack_is_pickled() -> None:
    value: list[Any] = []
    for _ in range(150):
        value = [value]
    assert through(value, PICKLING) == value


def test_a_cycle_is_pickled() -> None:
    back = through(cycle(), PICKLING)
    assert back[0] is back


def test_a_value_that_another_codec_takes_is_not_pickled() -> None:
    for value in (b"a", "a", 1, None, [1, (2.5, "a")], {"a": [b"b"]}):
        assert PICKLING.encode(value) == PLAIN.encode(value)


def test_a_value_is_unpickled_for_each_read() -> None:
    body = stored("pickle", PICKLING.encode({1, 2}).joined())
    one, other = (PICKLING.decode(body) for _ in range(2))
    assert one == other
    assert one is not other


# ---- large buffers ----------------------------------------------------------------------------


def layout(body: bytes) -> list[tuple[int, int]]:
    """The offsets of the buffers, from the table at the beginning of the body."""
    (count,) = struct.unpack_from("<Q", body)
    lengths = struct.unpack_from(f"<{count + 1}Q", body, 8)
    end = 8 * (count + 2) + lengths[0]
    found = []
    for length in lengths[1:]:
        start = (end + 63) // 64 * 64
        end = start + length
        found.append((start, end))
    assert end == len(body)
    return found


def test_the_buffers_of_a_value_are_not_copied_when_encoded() -> None:
    memory = bytearray(100)
    *_, part = checked(PICKLING.encode([pickle.PickleBuffer(memory)])).parts
    memory[50] = 1
    assert bytes(part) == memory


def test_the_buffers_lie_at_multiples_of_64_bytes() -> None:
    sizes = [100, 1, 0, 64, 63]
    value = [pickle.PickleBuffer(bytes([size]) * size) for size in sizes]
    body = PICKLING.encode(value).joined()
    slices = layout(body)
    assert [body[start:end] for start, end in slices] == [bytes([size]) * size for size in sizes]
    assert all(start % 64 == 0 for start, _ in slices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_buffers_of_a_decoded_value_are_the_body_s(kind: Callable[[bytes], Buffer]) -> None:
    np: Any = pytest.importorskip("numpy")
    weights = {"a": np.arange(1000.0), "b": np.asfortranarray(np.ones((7, 9), "<i2"))}
    body = kind(PICKLING.encode(Model("m", weights)).joined())
    back: Any = PICKLING.decode(stored("pickle", body))
    for name, original in weights.items():
        array = back.weights[name]
        assert array.tobytes() == original.tobytes()
        assert array.flags.f_contiguous == original.flags.f_contiguous
        assert np.shares_memory(array, np.frombuffer(body, "u1"))
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            array.flags.writeable = True


def test_a_decoded_value_keeps_its_memory_mapped() -> None:
    np: Any = pytest.importorskip("numpy")
    body = shared(PICKLING.encode([np.arange(1000)]).joined())
    memory: Any = body.obj
    back: Any = PICKLING.decode(stored("pickle", body))
    body.release()
    with pytest.raises(BufferError):
        memory.close()
    assert back[0].sum() == 499_500
    del back
    memory.close()


def test_arrays_that_are_not_contiguous_are_pickled_too() -> None:
    np: Any = pytest.importorskip("numpy")
    value = [np.arange(24).reshape(2, 3, 4)[:, :, ::2], np.array([None, "a"])]
    back = through(value, PICKLING)
    assert [each.tolist() for each in back] == [each.tolist() for each in value]


@pytest.mark.parametrize("kind", KINDS)
def test_data_frames_share_their_columns(kind: Callable[[bytes], Buffer]) -> None:
    np: Any = pytest.importorskip("numpy")
    pandas: Any = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "number": np.arange(1000.0),
            "count": np.arange(1000),
            "day": pandas.date_range("2026-01-01", periods=1000),
            "name": [f"name {number}" for number in range(1000)],
        }
    )
    body = kind(PICKLING.encode(frame).joined())
    back: Any = PICKLING.decode(stored("pickle", body))
    pandas.testing.assert_frame_equal(back, frame)
    whole = np.frombuffer(body, "u1")
    assert np.shares_memory(back["number"].to_numpy(), whole)
    assert np.shares_memory(back["count"].to_numpy(), whole)
    changed = back.assign(count=1)
    assert changed["count"].sum() == 1000
    assert back["count"].sum() == 499_500


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_unpickled_without_pickle_true(kind: Callable[[bytes], Buffer]) -> None:
    body = kind(PICKLING.encode(Trap()).joined())
    with pytest.raises(UnknownCodec, match="create the Node with pickle=True"):
        PLAIN.decode(stored("pickle", body))
    assert sprung == []
    PICKLING.decode(stored("pickle", body))
    assert sprung.pop() == "by hand"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: None, "function cannot be pickled: .*give the Node a Codec for its type"),
        ([Unwilling(KeyError)], "list cannot be pickled: 'not now'"),
        (pickle.PickleBuffer(memoryview(b"abcd")[::2]), "non-contiguous"),
    ],
)
def test_a_value_that_cannot_be_pickled_is_refused(value: object, reason: str) -> None:
    with pytest.raises(TypeError, match=reason) as caught:
        PICKLING.encode(value)
    assert caught.value.__cause__ is not None


def test_a_lack_of_memory_is_not_the_value_s_fault() -> None:
    with pytest.raises(MemoryError):
        PICKLING.encode([Unwilling(MemoryError)])


def test_a_value_too_deep_for_pickle_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        PICKLING.encode(value)


# ---- damage -----------------------------------------------------------------------------------

VALUE = [{1, 2}, pickle.PickleBuffer(b"x" * 70), pickle.PickleBuffer(b"y" * 3)]


def test_a_body_that_was_cut_is_corrupt() -> None:
    body = PICKLING.encode(VALUE).joined()
    for kind in (private, shared):
        for end in range(len(body)):
            corrupt("pickle", kind(body[:end]), PICKLING)
        corrupt("pickle", kind(body + b"\0"), PICKLING)


def test_lengths_that_were_damaged_are_corrupt_or_do_no_harm() -> None:
    whole = PICKLING.encode(VALUE).joined()
    for position, mask in product(range(8 * (1 + len(VALUE))), (0x01, 0x04, 0x80)):
        body = bytearray(whole)
        body[position] ^= mask
        try:
            back: Any = PICKLING.decode(stored("pickle", bytes(body)))
        except ValueCorrupt:
            continue
        assert back[0] == {1, 2}
        assert len(body) == len(whole)


def test_a_value_that_raises_while_it_is_unpickled_is_corrupt() -> None:
    data = b"cno_such_module\nName\n."
    body = struct.pack("<QQ", 0, len(data)) + data
    with pytest.raises(ValueCorrupt, match="ModuleNotFoundError: No module named") as caught:
        PICKLING.decode(stored("pickle", body))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_count_beyond_all_bounds_reads_nothing() -> None:
    body = struct.pack("<Q", 2**64 - 1) + bytes(64)
    assert "too few for" in corrupt("pickle", body, PICKLING)


def test_private_bodies_may_be_of_odd_addresses() -> None:
    np: Any = pytest.importorskip("numpy")
    body = private(PICKLING.encode([np.arange(5)]).joined())
    odd = memoryview(b"x" + body)[1:]
    back: Any = PICKLING.decode(stored("pickle", odd))
    assert back[0].tolist() == [0, 1, 2, 3, 4]
