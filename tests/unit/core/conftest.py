"""Each test that uses a World is run twice: with an engine that answers at once, and with one that
has to load each value.
"""

from __future__ import annotations

import pytest

from tests.unit.core.world import World

ENGINES = ("at once", "loaded")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    only_one = metafunc.definition.get_closest_marker("at_once") is not None
    if "World" in vars(metafunc.module) and not only_one:
        metafunc.parametrize("values", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def values(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the engine of each World answers reads."""
    monkeypatch.setattr(World, "all_away", getattr(request, "param", "at once") == "loaded")
