"""Fixtures for tests of AsyncNodes, and of Nodes that share the membership of their host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import dstore
from dstore import compiled, config
from dstore.protocol import wire
from dstore.protocol.messages import ToLocal
from dstore.transport.router import Router
from tests.integration.async_calls import (
    Gate,
    MakeNode,
)
from tests.integration.processes import GlobalProcess
from tests.integration.sharing import LONG_LEASE, host_folder

HOST_MODES = {"private": "off", "shared": "auto"}
"""Whether the Nodes of a test share the membership of the host, and the setting that says so."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use ``host_mode`` once in each mode, or in the one that they are marked with.

    So a whole file has it by ``pytestmark = pytest.mark.usefixtures("host_mode")``.
    """
    if "host_mode" in metafunc.fixturenames:
        marked = [mode for mode in HOST_MODES if metafunc.definition.get_closest_marker(mode)]
        # Without the compiled part, which is a run beside one with it, the shared mode has to do.
        unmarked = list(HOST_MODES) if compiled.native is not None else ["shared"]
        metafunc.parametrize("host_mode", marked or unmarked, indirect=True)


@pytest.fixture
def host_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the Nodes of this test, and of the processes that it starts, use their host."""
    mode: str = request.param
    monkeypatch.setenv(config.HOST_VARIABLE, HOST_MODES[mode])
    return mode


@pytest.fixture
def anode(free_global: dstore.Global) -> Iterator[MakeNode]:
    """A function that makes AsyncNodes of ``free_global``; they are closed with the test."""
    with ExitStack() as nodes:

        def make(**settings: Any) -> dstore.AsyncNode:
            made = dstore.AsyncNode(settings.pop("address", free_global.address), **settings)
            nodes.enter_context(made.node)
            return made

        yield make


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def hold(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function after which replies of these kinds, and all behind them, wait at ``gate``."""

    def replies(*kinds: type[ToLocal]) -> None:
        send = Router.send

        def held(self: Router, route: bytes, frame: bytes, data: Any = None) -> None:
            if isinstance(wire.decode_to_local(frame, data), kinds):
                gate.come_by()
            send(self, route, frame, data)

        monkeypatch.setattr(Router, "send", held)

    return replies


@pytest.fixture
def at_gate(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], None]:
    """A function after which a method is entered only through ``gate``."""

    def guard(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def guarded(*arguments: Any, **keywords: Any) -> Any:
            gate.come_by()
            return method(*arguments, **keywords)

        monkeypatch.setattr(owner, name, guarded)

    return guard


@pytest.fixture
def here() -> Iterator[str]:
    with host_folder() as folder:
        yield folder


@pytest.fixture
def served(here: str) -> Iterator[GlobalProcess]:
    """A Global on this host, in a process of its own."""
    with GlobalProcess(lease=LONG_LEASE, options=("--shm", here)) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def share(served: GlobalProcess, here: str) -> Iterator[Callable[..., dstore.Node]]:
    """A function that makes Nodes which share the membership of Global's host."""
    with ExitStack() as nodes:

        def make(**settings: Any) -> dstore.Node:
            settings = {"shm": here, "host": "require", **settings}
            return nodes.enter_context(dstore.Node(served.address, **settings))

        yield make
