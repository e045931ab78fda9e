"""A pytest fixture that runs a Global. Import it in your ``conftest.py``::

    from dstore.testing.fixtures import dstore_global

Then a test has a Global of its own by taking it as an argument::

    def test_it(dstore_global):
        with dstore.Node() as node: ...

This module needs pytest.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dstore import config
from dstore.server.server import Global
from dstore.testing.running import running_global

__all__ = ["dstore_global"]


@pytest.fixture
def dstore_global(monkeypatch: pytest.MonkeyPatch) -> Iterator[Global]:
    """A Global at a free port, in a thread, with a shared-memory folder of its own.

    During the test ``$DSTORE_GLOBAL`` names it, so that Nodes without an address find it, also in
    processes that the test starts.
    """
    with running_global() as server:
        monkeypatch.setenv(config.ADDRESS_VARIABLE, server.address)
        yield server
