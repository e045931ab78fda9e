"""What a durable Global does with Python's collector of reference cycles while it loads."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import pytest

from dstore.server.durable import _collector_paused


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """All tests have frozen what was there before them; a program usually has not."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_meanwhile_and_is_then_as_it_was(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    try:
        with contextlib.suppress(KeyError), _collector_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_what_was_loaded_counts_as_old() -> None:
    with _collector_paused():
        loaded: list[object] = [[]]
    assert not any(each is loaded for each in gc.get_objects(generation=0))


def test_what_the_program_has_frozen_stays_frozen() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with _collector_paused():
        pass
    assert gc.get_freeze_count() == before > 0
