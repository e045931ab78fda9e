"""Large values between real processes: sizes, types, and the limit of what is cached."""

from __future__ import annotations

import pytest

import dstore
from dstore.config import BYTES_MAX
from tests.integration.large_values import CHUNK, LARGE, Hosts, content_of, files_of, host, running

__all__ = ["host", "running"]

SIZES = {
    0,
    1,
    LARGE - 1,
    LARGE,
    LARGE + 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    BYTES_MAX,
    BYTES_MAX + 1,
    10 * CHUNK + 7,
}


@pytest.mark.parametrize("where", ["global", "elsewhere", ""], ids=["same", "other", "no memory"])
def test_values_of_every_size_come_back(running: dstore.Global, host: Hosts, where: str) -> None:
    shm = host(where) if where else ""
    with (
        dstore.Node(running.address, shm=shm) as writer,
        dstore.Node(running.address, shm=shm) as reader,
    ):
        for size in sorted(SIZES):
            body = content_of(size, size)
            key = f"k{size}"
            writer.set(key, body)
            for node in (writer, reader, reader):
                value = node.get(key)
                assert value == body
                assert type(value) is (bytes if size <= BYTES_MAX else memoryview)
                buffer = node.get_buffer(key)
                assert buffer == body
                assert buffer.readonly
            assert reader.lookup(key).from_local
            assert reader.put(body) == writer.put(body)
        values = reader.get_many([f"k{size}" for size in SIZES])
        assert {len(value) for value in values.values()} == SIZES
        assert set(writer.delete_many(list(values))) == set(values)
        assert reader.get_many(list(values)) == {}


def test_text_and_lists_may_be_large_and_keep_their_types(
    running: dstore.Global, host: Hosts
) -> None:
    text, items = "grün" * 200_000, [("x", i, b"y") for i in range(50_000)]
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("a")) as reader,
    ):
        assert writer.set_many({"text": text, "items": items, "small": 1}) == []
        for _ in range(2):
            assert reader.get("text") == text
            assert reader.get("items") == items
        writer.set("text", "short", replace=True)
        assert reader.get("text") == "short"
        writer.set("text", items, replace=True)
        assert reader.get("text") == items


def test_an_array_is_read_without_a_copy_and_cannot_be_changed(
    running: dstore.Global, host: Hosts
) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(300_000, dtype="f8").reshape(300, 1000)
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("a")) as reader,
    ):
        writer.set("m", array)
        array[:] = 0  # what was stored is what it was when it was stored
        first, second = reader.get("m"), reader.get("m")
        assert (first == numpy.arange(300_000).reshape(300, 1000)).all()
        assert numpy.shares_memory(first, second)
        with pytest.raises(ValueError, match="read-only"):
            first[0, 0] = 1
        writer.delete("m")
    assert first.sum() == 299_999 * 150_000  # readable for ever


def test_whether_a_key_is_bound_is_known_without_its_bytes(
    running: dstore.Global, host: Hosts
) -> None:
    with (
        dstore.Node(running.address, shm=host("a")) as writer,
        dstore.Node(running.address, shm=host("b")) as asker,
    ):
        uid = writer.put(content_of(LARGE))
        assert uid in asker
        assert asker.put(content_of(LARGE)) == uid
        assert asker.global_stats()["bytes_out"] == 0
        assert asker.global_stats()["bytes_in"] == LARGE
        writer.set("k", 1)
        with pytest.raises(dstore.KeyOccupied):
            asker.set("k", content_of(LARGE))
        assert asker.global_stats()["bytes_in"] == LARGE
        assert files_of(host("b")) == []
