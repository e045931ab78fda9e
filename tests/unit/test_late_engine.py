"""Engines that load values keep the contract, that of the examples too, and broken ones do not."""

from __future__ import annotations

import importlib.util
import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstore.engines import Key, Loaded, LoadingEngine, MemoryEngine
from dstore.testing.engine_contract import LoadingContract
from tests.engines import AwayEngine, LateEngine

EXAMPLES = Path(__file__).parents[2] / "examples"


class TestLateEngine(LoadingContract):
    def make(self, limit: int) -> LateEngine:
        return LateEngine(MemoryEngine(limit))


class TestEngineOfTheExample(LoadingContract):
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path) -> None:
        self.folders = (tmp_path / str(number) for number in itertools.count())

    def make(self, limit: int) -> LoadingEngine:
        folder = next(self.folders)
        folder.mkdir()
        made: LoadingEngine = example("engine_in_files").FileEngine(folder, limit, small=0)
        return made


def example(name: str) -> Any:
    """Import a file of examples/."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PromptEngine(AwayEngine):
    """Ends each load as soon as it has begun."""

    def __init__(self, limit: int) -> None:
        super().__init__(MemoryEngine(limit))
        self._ended: deque[tuple[int, list[Loaded]]] = deque()
        self._wake: Callable[[], None]

    def begin(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def load(self, number: int, wanted: list[tuple[Key, bytes]]) -> None:
        self._ended.append((number, self.results(wanted)))
        self._wake()

    def results(self, wanted: list[tuple[Key, bytes]]) -> list[Loaded]:
        return [self.result(*each) for each in wanted]

    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        ended, self._ended = self._ended, deque()
        return list(ended)


class TestPromptEngine(LoadingContract):
    def make(self, limit: int) -> PromptEngine:
        return PromptEngine(limit)


class ByKey(PromptEngine):
    """Loads a value once, and takes it for the value of its key from then on."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._cache: dict[Key, Loaded] = {}

    def result(self, key: Key, token: bytes) -> Loaded:
        return self._cache.setdefault(key, super().result(key, token))


class Disordered(PromptEngine):
    def results(self, wanted: list[tuple[Key, bytes]]) -> list[Loaded]:
        return super().results(sorted(wanted))


class Twice(PromptEngine):
    def loaded(self) -> list[tuple[int, list[Loaded]]]:
        return list(self._ended)


class Spoiled(PromptEngine):
    """Lets all values of a load fail with one of them."""

    def results(self, wanted: list[tuple[Key, bytes]]) -> list[Loaded]:
        found = super().results(wanted)
        failed = [each for each in found if isinstance(each, Exception)]
        return [failed[0]] * len(found) if failed else found


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (ByKey, "test_what_is_loaded_for_a_token_is_of_that_token"),
        (Disordered, "test_values_are_loaded_in_the_order_in_which_they_are_wanted"),
        (Twice, "test_many_loads_are_under_way_and_each_ends_once"),
        (Spoiled, "test_what_is_removed_while_it_is_loaded_disturbs_no_other"),
    ],
)
def test_the_contract_refuses_broken_engines(
    broken: Callable[[int], PromptEngine], test: str
) -> None:
    contract = TestPromptEngine()
    getattr(contract, test)()
    contract.make = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(AssertionError):
        getattr(contract, test)()
