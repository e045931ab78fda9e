"""Rows: what is read of many at once is what is read of each, damaged or not."""

from __future__ import annotations

from typing import Any

import pytest

from dstore.core.engine import NO_DEADLINE
from dstore.protocol.messages import Large
from dstore.server.data import rows
from tests.unit.server.data_files import token_of, value

SOON = 2_000_000_000.5
COLUMNS = rows.Row._fields


def read_row(number: int, body: bytes | Large, deadline: float) -> tuple[Any, ...]:
    """A row as SQLite returns it: texts are bytes."""
    row = rows.row_of(f"k{number}".encode(), value(number, body), deadline)
    return tuple(each.encode() if isinstance(each, str) else each for each in row)


SOUND = [
    read_row(number, body, deadline)
    for number, (body, deadline) in enumerate(
        (body, deadline)
        for body in (b"", b"small", bytes(100_000), Large(1 << 30, b"d" * 32))
        for deadline in (NO_DEADLINE, SOON)
    )
]


def changed(row: tuple[Any, ...], column: str) -> list[tuple[Any, ...]]:
    """The row with other contents in a column, and with contents of other types."""
    place = COLUMNS.index(column)
    old = row[place]
    others: list[object] = [None, 7, 1.5, b"", b"other", "text"]
    if isinstance(old, bytes) and old:
        others.append(old[:-1] + bytes([old[-1] ^ 1]))
    return [
        (*row[:place], new, *row[place + 1 :])
        for new in others
        if (type(new), new) != (type(old), old)
    ]


def test_sound_rows_of_all_kinds() -> None:
    found = list(rows.kept_of_all(SOUND))
    assert found == [rows.kept_of(row) for row in SOUND]
    assert [kept.stored for kept in found] == [
        value(number, body)
        for number, body in enumerate(
            body
            for body in (b"", b"small", bytes(100_000), Large(1 << 30, b"d" * 32))
            for _ in (NO_DEADLINE, SOON)
        )
    ]
    assert [kept.deadline for kept in found] == [NO_DEADLINE, SOON] * 4


@pytest.mark.parametrize("column", [each for each in COLUMNS if each != "key"])
@pytest.mark.parametrize("row", SOUND[:4], ids=["empty", "empty, soon", "small", "small, soon"])
def test_a_row_that_is_damaged_in_one_column_has_no_value_or_no_token(
    row: tuple[Any, ...], column: str
) -> None:
    others = changed(row, column)
    found = list(rows.kept_of_all(others))
    assert found == [rows.kept_of(each) for each in others]
    assert len(found) >= 5 and all(kept.stored is None for kept in found)
    lost = column in ("token", "deadline", "head_sum")
    assert {kept.token for kept in found} == {b"" if lost else row[1]}


def test_a_row_whose_key_is_damaged_stops_the_reading() -> None:
    for row in SOUND[:4]:
        reading = rows.kept_of_all([SOUND[0], (b"other", *row[1:])])
        assert next(reading).token == token_of(0)
        with pytest.raises(rows.KeyUnreadable):
            next(reading)


def test_values_share_the_name_of_their_codec() -> None:
    first, second = rows.kept_of_all([SOUND[0], SOUND[2]])
    assert first.stored is not None and second.stored is not None
    assert first.stored.codec is second.stored.codec
