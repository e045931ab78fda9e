"""Large values on the way: transfers, what they ask for, and when they give up."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.local import transfer
from dstore.core.local.steps import ReceiveReply, StepResult, Transfer, TransferFailed
from dstore.core.local.transfer import Damaged
from dstore.protocol.messages import Refusal, Refused, Staged, Stored
from tests.unit.core.large_values import BODY, CHUNK, chunk, envelope, large, sends
from tests.unit.core.world import World


def download(stored: Stored, into: bytearray) -> Transfer:
    def write(offset: int, data: Any) -> None:
        into[offset : offset + len(data)] = data

    return transfer.download(envelope(), "k", stored, write, 0.0, 4.0, CHUNK)


def test_a_download_asks_for_a_few_chunks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNKS_AHEAD", 2)
    stored = large(World())
    got = bytearray(len(BODY))
    moving = download(stored, got)
    asked, _ = sends(moving, next(moving), 0.0)
    assert [(each.offset, each.length) for each in asked] == [(0, 3), (3, 3)]
    asked, _ = sends(moving, moving.send(StepResult(0.1, chunk(stored, 0))), 0.1)
    assert [(each.offset, each.length) for each in asked] == [(6, 3)]
    asked, _ = sends(moving, moving.send(StepResult(0.1, chunk(stored, 3))), 0.1)
    assert [(each.offset, each.length) for each in asked] == [(9, 1)]
    moving.send(StepResult(0.1, chunk(stored, 6)))
    with pytest.raises(StopIteration):
        moving.send(StepResult(0.1, chunk(stored, 9)))
    assert bytes(got) == BODY


def test_a_download_goes_on_from_what_has_arrived() -> None:
    stored = large(World())
    got = bytearray(len(BODY))
    moving = download(stored, got)
    _, step = sends(moving, next(moving), 0.0)
    moving.send(StepResult(0.1, chunk(stored, 0)))
    step = moving.send(StepResult(0.1, chunk(stored, 6)))  # 3 was lost: this one is of no use
    assert isinstance(step, ReceiveReply)
    asked, step = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert [each.offset for each in asked] == [3, 6, 9]
    moving.send(StepResult(1.0, chunk(stored, 0, b"XXX")))  # an old one that comes late
    for offset in (3, 6):
        moving.send(StepResult(1.0, chunk(stored, offset)))
    with pytest.raises(StopIteration):
        moving.send(StepResult(1.0, chunk(stored, 9)))
    assert bytes(got) == BODY


def test_a_transfer_that_stands_still_gives_up_and_one_that_moves_does_not() -> None:
    stored = large(World())
    moving = download(stored, bytearray(len(BODY)))
    _, step = sends(moving, next(moving), 0.0)
    now = 0.0
    for offset in (0, 3, 6):
        now += 3.9
        _, step = sends(moving, moving.send(StepResult(now, chunk(stored, offset))), now)
    end = now + 4.0
    while step.until < end:
        _, step = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert step.until == end
    with pytest.raises(TransferFailed) as raised:
        moving.send(StepResult(end, None))
    assert raised.value.refusal is None


def test_a_download_that_does_not_have_its_digest_is_damaged() -> None:
    stored = large(World())
    moving = download(stored, bytearray(len(BODY)))
    sends(moving, next(moving), 0.0)
    for offset in (0, 3, 6):
        moving.send(StepResult(0.1, chunk(stored, offset)))
    with pytest.raises(Damaged):
        moving.send(StepResult(0.1, chunk(stored, 9, b"X")))


def test_an_upload_sends_no_more_than_its_credit() -> None:
    stored = large(World())
    moving = transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK)
    parts, _ = sends(moving, next(moving), 0.0)
    assert [(each.offset, bytes(each.data)) for each in parts] == [(0, b"012")]
    confirmed = Staged(*envelope(), stored.token, 3, 6)
    parts, _ = sends(moving, moving.send(StepResult(0.1, confirmed)), 0.1)
    assert [each.offset for each in parts] == [3, 6]


def test_an_upload_begins_anew_when_global_has_dropped_it() -> None:
    stored = large(World())
    moving = transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK)
    sends(moving, next(moving), 0.0)
    _, step = sends(
        moving, moving.send(StepResult(0.1, Staged(*envelope(), stored.token, 3, 9))), 0.1
    )
    for _ in range(3):  # each of the chunks under way is answered so
        step = moving.send(StepResult(0.2, Staged(*envelope(), stored.token, 0, 9)))
        assert isinstance(step, ReceiveReply)
    parts, _ = sends(moving, moving.send(StepResult(step.until, None)), step.until)
    assert [each.offset for each in parts] == [0, 3, 6]


def test_a_refused_transfer_says_by_what() -> None:
    stored = large(World())
    for moving in (
        download(stored, bytearray(len(BODY))),
        transfer.upload(envelope(), stored, memoryview(BODY), 0.0, 4.0, CHUNK),
    ):
        sends(moving, next(moving), 0.0)
        with pytest.raises(TransferFailed) as raised:
            moving.send(StepResult(0.1, Refused(*envelope(), Refusal.GONE, "gone")))
        assert raised.value.refusal is not None
