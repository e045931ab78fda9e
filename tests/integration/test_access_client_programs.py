"""Commands, and the processes of a host, as clients of a Global that asks for keys."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dstore
from dstore.access.connect import Connect
from dstore.client.owner import HostOwner
from dstore.config import CONNECT_VARIABLE
from dstore.protocol.messages import Hello, Kind
from dstore.transport.curve import new_pair
from tests.integration.keyed_router import Keys, file, keys, patient, server
from tests.integration.processes import PATIENCE

__all__ = ["file", "keys", "server"]


def command(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        env={**os.environ, **environment},
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_commands_take_a_connect_file(file: str, server: dstore.Global) -> None:
    assert command("set", "key", "value", "--connect", file)[0] == 0
    assert command("get", "key", **{CONNECT_VARIABLE: file})[:2] == (0, "value")
    code, out, _ = command("repl", "--connect", file, stdin="GET key\n")
    assert code == 0
    assert "global: key -> value" in out
    assert server.address.removeprefix("tcp://") in out


@pytest.mark.long
def test_commands_say_in_one_line_why_they_are_not_let_in(
    keys: Keys, file: str, server: dstore.Global, tmp_path: Path
) -> None:
    keys.revoke(file)
    astray = keys.client(tmp_path / "astray.json", server.address, server_keys=[new_pair()[0]])
    for arguments, expected, text in (
        (("--connect", file), 1, "does not admit 'worker'"),
        (("--connect", astray), 3, "does not have the server key"),
        (("--address", server.address), 3, "asks for keys, and this client has none"),
        (("--connect", str(tmp_path / "missing")), 2, "cannot be read: No such file"),
    ):
        code, out, errors = command("get", "key", "--timeout", "300", *arguments)
        assert (code, out) == (expected, "")
        assert text in errors
        assert errors.count("\n") == 1
    code, out, _ = command("repl", "--connect", astray, "--timeout", "300", stdin="GET key\n")
    assert code == 3
    assert "does not have the server key" in out


def test_the_owner_of_a_host_ends_when_it_is_not_let_in(
    keys: Keys, file: str, server: dstore.Global, tmp_path: Path
) -> None:
    astray = keys.client(tmp_path / "astray.json", server.address, server_keys=[new_pair()[0]])
    shm = os.environ["DSTORE_SHM"]
    del keys.admitted[Connect.load(file).public_key]
    for path, code, text in ((file, 1, "does not admit"), (astray, 3, "the server key")):
        ended = command("host", "--connect", path, "--shm", shm)
        assert ended[0] == code
        assert text in ended[2]


def test_the_owner_of_a_host_has_an_identity_of_its_own(
    keys: Keys, file: str, server: dstore.Global
) -> None:
    there = threading.Event()
    ended: list[BaseException] = []
    owner = HostOwner(connect=file, changed=lambda page: there.set() if page else None)

    def run() -> None:
        try:
            owner.run()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert there.wait(PATIENCE)
        assert Connect.load(file).secret_key not in repr(owner)
        with dstore.Node.from_file(file, host="require") as node:
            node.set("key", 1)
            assert node.stats()["membership"] == "shared"
        keys.revoke(file)
        thread.join(PATIENCE)
        assert [type(each) for each in ended] == [dstore.AccessDenied]
    finally:
        owner.stop()
        thread.join(PATIENCE)


def test_a_process_of_a_host_that_may_not_write_learns_it(
    keys: Keys, file: str, server: dstore.Global
) -> None:
    def denies(message: object) -> str | None:
        writer = isinstance(message, Hello) and message.kind is Kind.WRITER
        return "role read may not write" if writer else None

    keys.denies = denies
    there = threading.Event()
    owner = HostOwner(connect=file, changed=lambda page: there.set() if page else None)
    thread = threading.Thread(target=owner.run)
    thread.start()
    try:
        assert there.wait(PATIENCE)
        with patient(file, host="require") as node:
            assert node.get("key", "absent") == "absent"
            for _ in range(2):
                with pytest.raises(dstore.AccessDenied, match="role read may not write"):
                    node.set("key", 1)
            assert node.get("key", "absent") == "absent"
            keys.denies = lambda message: None
            node.set("key", 1)
    finally:
        owner.stop()
        thread.join(PATIENCE)
