"""The settings of a Global with keys, and its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dstore
from dstore.access import running
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from dstore.errors import AddressError, KeyFolderError
from tests.integration.driven_router import alice, folder, served
from tests.integration.keyed import KeyedPeer

__all__ = ["alice", "folder"]


@pytest.mark.parametrize(
    ("address", "publisher"),
    [
        ("tcp://*:0", None),
        ("tcp://0.0.0.0:0", None),
        ("tcp://[::]:0", None),
        ("tcp://127.0.0.1:0", "tcp://*:0"),
    ],
)
def test_an_address_that_others_can_reach_needs_keys(
    folder: KeyFolder, address: str, publisher: str | None
) -> None:
    server = dstore.Global(address, publisher=publisher)
    with pytest.raises(AddressError, match=r"(?s)dstore access init.*--insecure.*insecure=True"):
        server.bind()
    server.close()
    for settings in ({"insecure": True}, {"keys": folder.path}):
        with dstore.Global(address, publisher=publisher, **settings):
            pass


def test_loopback_and_ipc_need_no_keys_and_may_have_some(folder: KeyFolder, tmp_path: Path) -> None:
    for address in (
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
        "tcp://localhost:0",
        f"ipc://{tmp_path}/g",
    ):
        for keys in (None, folder.path):
            with dstore.Global(address, keys=keys):
                pass


def test_a_folder_that_is_none_is_one_line_and_may_be_tried_again(tmp_path: Path) -> None:
    server = dstore.Global("tcp://127.0.0.1:0", keys=tmp_path / "keys")
    with pytest.raises(KeyFolderError, match="dstore access init"):
        server.bind()
    KeyFolder(tmp_path / "keys").create()
    with server:
        assert "serving" in repr(server)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dstore", "global", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_says_what_is_wrong_in_one_line(folder: KeyFolder, tmp_path: Path) -> None:
    for options, says in (
        (["--keys", str(tmp_path / "none")], "dstore access init"),
        (["--keys", folder.path, "--insecure"], "one of them"),
        (["--keys", ""], "--keys"),
    ):
        ran = command("--address", "tcp://127.0.0.1:0", *options)
        assert ran.returncode == 2, ran
        assert says in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert ran.stdout == ""
    ran = command("--address", "tcp://*:0")
    assert ran.returncode not in (0, -signal.SIGTERM)
    assert "--insecure" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_command_serves_with_keys(folder: KeyFolder, alice: Connect) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "dstore", "global", "--address", "tcp://*:0", "--keys", folder.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with started:
        try:
            assert started.stdout is not None and started.stderr is not None
            port = started.stdout.readline().rsplit(":", 1)[1].strip()
            with KeyedPeer(f"tcp://127.0.0.1:{port}", alice) as one:
                one.join()
        finally:
            started.terminate()
        assert started.stderr.read() == ""
        assert started.wait() == 0


def test_a_child_that_was_forked_holds_neither_port_nor_folder(
    folder: KeyFolder, alice: Connect
) -> None:
    with served(folder) as server:
        address, publisher = server.address, server.publisher
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        try:
            server.close()
            assert running.statuses(folder.path) == []
            with (
                dstore.Global(address, publisher=publisher, keys=folder.path) as other,
                KeyedPeer(other.address, alice) as one,
            ):
                one.join()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
