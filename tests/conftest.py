"""Fixtures for all tests: the leak check, and a Global with Nodes that are closed at the end."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import hypothesis
import pytest

import dstore
from dstore import compiled, config
from dstore.testing import running_global
from tests.leaks import Footprint, left_behind, private_shared_memory, start_what_stays
from tests.postgres import (  # noqa: F401 (fixtures)
    new_postgres,
    postgres,
    postgres_pair,
    postgres_pair_url,
    postgres_url,
)

# How long one example takes says what else the machine does, and nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


NATIVE = "DSTORE_TEST_NATIVE"
"""The environment variable without which tests may use the pure classes where none are compiled."""

LEASE = 1.0
"""Seconds of a lease in tests: enough for a busy machine, short enough to wait for."""


def pytest_report_header() -> str:
    if compiled.native is None:
        return f"dstore: in Python alone, since {compiled.missing}"
    return f"dstore: hits are compiled, in {compiled.native.__file__}"


def pytest_configure() -> None:
    # Most tests are about one Node and what it has cached. Those about sharing ask for it.
    os.environ.setdefault(config.HOST_VARIABLE, "off")
    if os.environ.get(NATIVE) and compiled.native is None:
        raise pytest.UsageError(f"${NATIVE} asks for compiled hits, but {compiled.missing}")


@pytest.fixture(autouse=True, scope="session")
def _long_lived() -> Iterator[None]:
    with private_shared_memory():
        start_what_stays()
        gc.collect()
        gc.freeze()  # the leak checks need not visit the objects that exist now
        _restore_signals()
        yield


def _restore_signals() -> None:
    # A shell starts background jobs with SIGINT ignored, and nohup ignores SIGHUP. Children inherit
    # that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves behind a thread, descriptor, child or shared-memory file."""
    before = Footprint()
    yield
    if leaks := left_behind(before):
        pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def free_global(request: pytest.FixtureRequest) -> Iterator[dstore.Global]:
    """A Global on a free port, in a thread of this process. Parametrize it to set its lease."""
    # Its shared memory is that of all tests, where leaks are looked for.
    with running_global(lease=getattr(request, "param", LEASE), shm=None) as server:
        yield server


@pytest.fixture
def node(free_global: dstore.Global) -> Iterator[Callable[..., dstore.Node]]:
    """A function that makes Nodes of ``free_global`` and takes what ``dstore.Node`` takes."""
    with ExitStack() as nodes:

        def make(**options: Any) -> dstore.Node:
            return nodes.enter_context(dstore.Node(free_global.address, **options))

        yield make
