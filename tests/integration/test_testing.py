"""``dstore.testing``: a Global for people's own tests, in a thread and as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from dstore import config
from dstore.testing import global_process, private_shared_memory, running, running_global
from dstore.testing.fixtures import dstore_global
from tests.integration.processes import ROOT

__all__ = ["dstore_global"]

SHM = "DSTORE_SHM"
LARGE = bytes(config.LARGE_FROM_DEFAULT)


def test_a_running_global_has_shared_memory_of_its_own() -> None:
    former = os.environ[SHM]
    with running_global(lease=2) as server, dstore.Node(server.address) as node:
        folder = Path(os.environ[SHM])
        assert folder != Path(former)
        node.set("k", LARGE)
        assert len(list(folder.glob("dstore-*/*/global/*"))) == 1
    assert os.environ[SHM] == former
    assert not folder.exists()


def test_a_running_global_takes_the_folder_given(tmp_path: Path) -> None:
    former = os.environ[SHM]
    with running_global(shm=tmp_path) as server, dstore.Node(server.address, shm=tmp_path) as node:
        assert os.environ[SHM] == former
        node.set("k", LARGE)
        assert len(list(tmp_path.glob("dstore-*/*/global/*"))) == 1


def test_private_shared_memory_gives_back_what_was_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHM)
    with private_shared_memory() as folder:
        assert os.environ[SHM] == folder
    assert SHM not in os.environ
    assert not Path(folder).exists()


def test_the_fixture_names_its_global_for_all_processes(dstore_global: dstore.Global) -> None:
    with dstore.Node() as node:
        node.set("k", "v")
    script = "import dstore; print(dstore.Node().get('k'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("v\n", "")


def test_a_global_process_ends_with_its_block() -> None:
    with global_process("--lease", "2") as (address, process):
        with dstore.Node(address) as node:
            node.set("k", "v")
        assert process.poll() is None
    assert process.returncode == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_global_process_that_was_killed_or_stopped_ends_too(
    monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    monkeypatch.setattr(running, "STOP_TIMEOUT", 0.1)
    with global_process() as started:
        started.process.send_signal(end)
    assert started.process.returncode == -signal.SIGKILL


def test_a_global_process_at_a_path_with_odd_characters(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/ä b"
    with global_process(address=address) as started, dstore.Node(started.address) as node:
        assert started.address == address
        node.set("k", "v")


def test_a_global_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(RuntimeError, match="did not start; its first line is ''"),
        global_process("--lease", "no number", stderr=subprocess.DEVNULL),
    ):
        pass
    monkeypatch.setattr(running, "START_TIMEOUT", 0.0)
    with pytest.raises(RuntimeError, match="did not start within 0 seconds"), global_process():
        pass


def test_the_environment_of_a_global_process(tmp_path: Path) -> None:
    environment = {**os.environ, SHM: str(tmp_path)}
    with global_process(env=environment) as started, dstore.Node(started.address, shm="") as node:
        node.set("k", LARGE)
        assert len(list(tmp_path.glob("dstore-*/*/global/*"))) == 1
