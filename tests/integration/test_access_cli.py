"""``dstore access``: the commands as a shell meets them, beside programs that use the folder."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dstore import cli
from dstore.access.connect import Connect
from dstore.access.keys import KeyFolder
from tests.disks import fill, mounted_disk
from tests.ending import kill
from tests.integration.processes import PATIENCE, ROOT, send_signal

DONE, REFUSED, USAGE = 0, 1, 2
ADDRESS = "10.0.0.5:50051"
FOREIGN = 12_345


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Shell = Callable[..., Ran]


@pytest.fixture
def access(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs ``dstore access`` in this process. Each error is one line."""

    def run(*arguments: object) -> Ran:
        code = cli.main(["access", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert all(each.startswith("dstore: ") for each in err.splitlines())
        return Ran(code, out, err)

    return run


@pytest.fixture
def keys(access: Shell, tmp_path: Path) -> Path:
    """A key folder without clients."""
    assert access("init", tmp_path / "keys").code == DONE
    return tmp_path / "keys"


@pytest.fixture
def add(access: Shell, keys: Path) -> Shell:
    """Adds a client to the folder."""

    def run(name: str, *more: object, role: str = "write") -> Ran:
        given = () if "--address" in more else ("--address", ADDRESS)
        return access("add", name, "--role", role, "--keys", keys, *given, *more)

    return run


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


class StandIn:
    """A process that uses the folder as a Global does."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.access_globals", str(folder)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.admits = self.next_report()

    def next_report(self) -> list[str]:
        """Wait for the next report. Returns the names that are admitted."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[1:]

    def kill(self) -> None:
        kill(self.process)


@pytest.fixture
def stand_in(keys: Path) -> Iterator[Callable[[], StandIn]]:
    """A function that starts such a process."""
    with contextlib.ExitStack() as all_:

        def start() -> StandIn:
            made = StandIn(keys)
            all_.callback(made.kill)
            return made

        yield start


# ---- init -------------------------------------------------------------------------------------


def test_init_makes_a_folder_once(access: Shell, tmp_path: Path) -> None:
    ran = access("init", tmp_path / "keys")
    assert (ran.code, ran.out) == (DONE, "")
    assert "dstore access add" in ran.err and f"--keys {tmp_path / 'keys'}" in ran.err
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    before = KeyFolder(tmp_path / "keys").server_keys
    ran = access("init", tmp_path / "keys")
    assert ran.code == REFUSED and "is a key folder already" in ran.err
    assert KeyFolder(tmp_path / "keys").server_keys == before
    assert access("init", tmp_path / "missing" / "keys").code == REFUSED


@pytest.mark.parametrize("arguments", [[], ["init"], ["revoke", "bob"], ["add", "bob"], ["what"]])
def test_wrong_usage(access: Shell, arguments: list[str], capsys: object) -> None:
    assert cli.main(["access", *arguments]) == USAGE


# ---- add --------------------------------------------------------------------------------------


def test_add_writes_a_connect_file(add: Shell, keys: Path, tmp_path: Path) -> None:
    file = tmp_path / "alice.json"
    ran = add("alice", "--prefix", "app1/", "--prefix", "app2/", "-o", file)
    assert (ran.code, ran.out) == (DONE, "")
    assert "who can read that file is alice" in ran.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    connect = Connect.load(file)
    assert (connect.name, connect.address) == ("alice", f"tcp://{ADDRESS}")
    assert connect.prefixes == ["app1/", "app2/"]
    assert connect.server_keys == KeyFolder(keys).server_keys
    (client,) = KeyFolder(keys).clients()
    assert client.public_key == connect.public_key
    assert connect.secret_key not in ran.err


def test_add_writes_to_standard_output(add: Shell, tmp_path: Path) -> None:
    ran = add("alice")
    assert (ran.code, ran.err) == (DONE, "")
    (tmp_path / "alice.json").write_text(ran.out)
    (tmp_path / "alice.json").chmod(0o600)
    assert Connect.load(tmp_path / "alice.json").name == "alice"
    assert add("bob", "-o", "-").out.startswith("{")


def test_add_warns_on_a_terminal(keys: Path) -> None:
    ours, theirs = pty.openpty()
    ran = subprocess.run(
        [sys.executable, "-m", "dstore", "access", "add", "alice", "--role", "read",
         "--keys", keys, "--address", ADDRESS],
        env=environment(), stdout=theirs, stderr=subprocess.PIPE, timeout=PATIENCE, check=True,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert b"warning: what follows is a secret" in ran.stderr


@pytest.mark.parametrize("kind", ["file", "dangling link", "no folder", "folder"])
def test_nothing_is_added_if_the_file_cannot_be_made(
    add: Shell, keys: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "alice.json"
    if kind == "file":
        file.write_text("mine")
    elif kind == "dangling link":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        file.mkdir()
    else:
        file = tmp_path / "missing" / "alice.json"
    ran = add("alice", "-o", file)
    assert ran.code == USAGE and str(file) in ran.err
    assert KeyFolder(keys).clients() == []
    assert kind != "file" or file.read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_is_added_if_standard_output_is_closed(keys: Path) -> None:
    command = [sys.executable, "-m", "dstore", "access", "add", "alice", "--role", "read"]
    command += ["--keys", str(keys), "--address", ADDRESS]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            command, env=environment(), stdout=full, stderr=subprocess.PIPE, check=False,
            timeout=PATIENCE,
        )  # fmt: skip
    assert ran.returncode == USAGE and b"No space left" in ran.stderr
    assert KeyFolder(keys).clients() == []


def test_no_file_stays_if_nothing_is_added(add: Shell, keys: Path, tmp_path: Path) -> None:
    assert add("alice").code == DONE
    ran = add("alice", "-o", tmp_path / "alice.json")
    assert ran.code == REFUSED and "a client alice already" in ran.err
    with mounted_disk(tmp_path, "1m") as disk:
        folder = disk / "keys"
        KeyFolder(folder).create()
        fill(disk)
        ran = add("bob", "--keys", folder, "-o", tmp_path / "bob.json")
        assert ran.code == REFUSED and "No space left" in ran.err
        assert KeyFolder(folder).clients() == []
        (disk / "ballast").unlink()
        fill(disk)
        assert add("bob", "-o", disk / "bob.json").code == USAGE
    assert [each.name for each in KeyFolder(keys).clients()] == ["alice"]
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a/b"], "is no name of a client"),
        (["x" * 65], "is no name of a client"),
        (["bob", "--prefix", ""], "a prefix has 1 to 444 bytes"),
        (["bob", "--prefix", "b3:"], "content addresses"),
        (["bob", "--address", "10.0.0.5"], "is not an address"),
        (["bob", "--address", "tcp://*:50051"], "name the host"),
        (["bob", "--prefix", "x", *["--prefix", "y"] * 3, *["--prefix", "z" * 500]], "444"),
    ],
)
def test_bad_arguments_of_add(add: Shell, keys: Path, arguments: list[str], line: str) -> None:
    ran = add(*arguments)
    assert ran.code == USAGE and line in ran.err and ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert KeyFolder(keys).clients() == []


def test_two_commands_that_add_at_once_both_do(keys: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dstore", "access", "add"]
    more = ["--role", "read", "--keys", str(keys), "--address", ADDRESS, "-o"]
    both = [
        subprocess.Popen([*command, name, *more, str(tmp_path / name)], env=environment())
        for name in ("alice", "bob")
    ]
    assert [each.wait(PATIENCE) for each in both] == [DONE, DONE]
    assert [each.name for each in KeyFolder(keys).clients()] == ["alice", "bob"]


def test_add_waits_for_running_globals_and_says_if_one_has_not_seen_it(
    add: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    one = stand_in()
    assert add("alice", "--timeout", PATIENCE).err == ""
    assert one.next_report() == ["alice"]
    send_signal(one.process.pid, signal.SIGSTOP)
    ran = add("bob", "--timeout", 0.1)
    assert ran.code == DONE
    assert f"bob is added in the folder, but Global (process {one.process.pid})" in ran.err


# ---- list -------------------------------------------------------------------------------------


def test_list_shows_what_running_globals_know(
    access: Shell, add: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    add("alice", "--prefix", "app1/", "--prefix", os.fsdecode(b"\xff"))
    assert re.search(
        r"alice +write +app1/, b'\\xff' .*Z +- +0\n", access("list", "--keys", keys).out
    )
    stand_in(), stand_in()
    add("bob", role="admin")
    lines = access("list", "--keys", keys).out.splitlines()
    assert lines[0].split("  ")[0] == "NAME"
    assert re.fullmatch(
        r"bob +admin +\(all keys\) +20\d\d-\d\d-\d\dT\S+Z +2030-03-17T17:46:40Z +4", lines[2]
    )
    found = json.loads(access("list", "--keys", keys, "--json").out)
    alice, bob = found["clients"]
    assert alice["prefixes"] == ["app1/", {"base64": "/w=="}]
    assert (bob["name"], bob["role"], bob["sessions"]) == ("bob", "admin", 4)
    assert bob["last_seen"] == "2030-03-17T17:46:40Z"
    assert len(found["globals"]) == 2
    assert found["server_keys"] == KeyFolder(keys).server_keys
    secret = json.loads((keys / "server.key").read_text())["secret_key"]
    assert secret not in json.dumps(found)


def test_list_of_no_clients(access: Shell, keys: Path) -> None:
    ran = access("list", "--keys", keys)
    assert (ran.code, ran.out) == (DONE, "") and "there are no clients" in ran.err
    assert json.loads(access("list", "--keys", keys, "--json").out)["clients"] == []


@pytest.mark.parametrize("command", ["list", "revoke bob", "rotate", "rotate --finish"])
@pytest.mark.parametrize("fault", ["missing", "wide", "foreign"])
def test_a_folder_that_cannot_be_used_is_one_line(
    access: Shell, keys: Path, command: str, fault: str
) -> None:
    if fault == "missing":
        keys = keys.with_name("other")
    elif fault == "wide":
        keys.chmod(0o750)
    elif os.geteuid():
        pytest.skip("only root can give files away")
    else:
        os.chown(keys, FOREIGN, -1)
    ran = access(*command.split(), "--keys", keys)
    assert (ran.code, ran.out) == (REFUSED, "")
    assert len(ran.err.splitlines()) == 1 and str(keys) in ran.err


# ---- revoke -----------------------------------------------------------------------------------


def test_revoke_without_a_global(access: Shell, add: Shell, keys: Path) -> None:
    add("alice")
    ran = access("revoke", "alice", "--keys", keys)
    assert ran.code == DONE
    assert ran.err == "dstore: alice is revoked; no running Global uses this key folder\n"
    ran = access("revoke", "alice", "--keys", keys)
    assert ran.code == REFUSED and "there is no client alice" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_revoke_returns_when_all_running_globals_have_confirmed(
    access: Shell, add: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    add("alice")
    both = [stand_in(), stand_in()]
    assert [each.admits for each in both] == [["alice"], ["alice"]]
    ran = access("revoke", "alice", "--keys", keys, "--timeout", PATIENCE)
    assert (ran.code, ran.out) == (DONE, "")
    assert ran.err == "dstore: alice is revoked; all 2 running Globals have confirmed it\n"
    both[0].kill()
    assert both[1].next_report() == []
    add("alice")
    ran = access("revoke", "alice", "--keys", keys, "--timeout", PATIENCE)
    assert ran.err == "dstore: alice is revoked; the running Global has confirmed it\n"


def test_revoke_says_which_global_has_not_confirmed(
    access: Shell, add: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    add("alice")
    stand_in()
    stands_still = stand_in()
    pid = stands_still.process.pid
    send_signal(pid, signal.SIGSTOP)
    ran = access("revoke", "alice", "--keys", keys, "--timeout", 0.5)
    assert ran.code == REFUSED
    assert f"Global (process {pid}) has not confirmed it in 0.5 seconds" in ran.err
    assert "may still answer it" in ran.err
    assert KeyFolder(keys).clients() == [], "it is revoked all the same"
    send_signal(pid, signal.SIGCONT)
    assert stands_still.next_report() == []


def test_revoke_names_the_damaged_file_that_keeps_globals_from_applying_it(
    access: Shell, add: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    add("alice")
    add("bob")
    one = stand_in()
    send_signal(one.process.pid, signal.SIGSTOP)
    (keys / "clients" / "bob.json").write_text("{")
    ran = access("revoke", "alice", "--keys", keys, "--timeout", 0.1)
    assert ran.code == REFUSED
    assert "No Global can read the folder" in ran.err and "bob.json is damaged" in ran.err
    assert access("revoke", "bob", "--keys", keys, "--timeout", 0.1).code == REFUSED
    send_signal(one.process.pid, signal.SIGCONT)
    assert one.next_report() == []


# ---- rotate and update ------------------------------------------------------------------------


def test_the_server_key_is_changed_with_an_overlap(
    access: Shell, add: Shell, keys: Path, tmp_path: Path, stand_in: Callable[[], StandIn]
) -> None:
    file = tmp_path / "alice.json"
    add("alice", "-o", file)
    (present,) = Connect.load(file).server_keys
    one = stand_in()
    ran = access("rotate", "--keys", keys)
    assert ran.code == DONE
    assert "dstore access update FILE" in ran.err and "rotate --finish" in ran.err
    ran = access("update", file, "--keys", keys)
    assert ran.code == DONE and "the present and the next server key now" in ran.err
    assert Connect.load(file).server_keys == KeyFolder(keys).server_keys
    assert Connect.load(file).server_keys[0] == present
    assert access("rotate", "--keys", keys).code == REFUSED

    ran = access("rotate", "--finish", "--keys", keys, "--timeout", PATIENCE)
    assert ran.code == DONE and "the running Global has confirmed it" in ran.err
    assert one.process.poll() is None
    (coming,) = KeyFolder(keys).server_keys
    assert Connect.load(file).server_keys == [present, coming]
    assert "has the server key now" in access("update", file, "--keys", keys).err
    assert Connect.load(file).server_keys == [coming]
    assert "already" in access("update", file, "--keys", keys).err
    ran = access("rotate", "--finish", "--keys", keys)
    assert ran.code == REFUSED and "no next server key" in ran.err


def test_rotate_says_which_global_has_not_confirmed(
    access: Shell, keys: Path, stand_in: Callable[[], StandIn]
) -> None:
    one = stand_in()
    access("rotate", "--keys", keys)
    one.next_report()  # it does not stand still in the middle of reading the folder
    send_signal(one.process.pid, signal.SIGSTOP)
    ran = access("rotate", "--finish", "--keys", keys, "--timeout", 0.2)
    assert ran.code == REFUSED and f"process {one.process.pid}" in ran.err
    assert len(KeyFolder(keys).server_keys) == 1


def test_update_keeps_mode_links_and_all_other_fields(
    access: Shell, add: Shell, keys: Path, tmp_path: Path
) -> None:
    file, link = tmp_path / "alice.json", tmp_path / "link.json"
    add("alice", "--prefix", "app1/", "-o", file)
    before = json.loads(file.read_text())
    file.chmod(0o400)
    link.symlink_to(file)
    access("rotate", "--keys", keys)
    assert access("update", link, "--keys", keys).code == DONE
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert link.is_symlink()
    after = json.loads(file.read_text())
    assert len(after.pop("server_keys")) == 2
    before.pop("server_keys")
    assert after == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["alice.json", "keys", "link.json"]


@pytest.mark.parametrize("kind", ["revoked", "missing", "damaged", "wide"])
def test_update_of_what_is_no_connect_file_of_a_client(
    access: Shell, add: Shell, keys: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "alice.json"
    add("alice", "-o", file)
    access("rotate", "--keys", keys)
    if kind == "revoked":
        access("revoke", "alice", "--keys", keys)
    elif kind == "missing":
        file.unlink()
    elif kind == "damaged":
        file.write_text("{")
    else:
        file.chmod(0o644)
    before = file.read_bytes() if file.exists() else b""
    ran = access("update", file, "--keys", keys)
    assert ran.code in (REFUSED, USAGE) and len(ran.err.splitlines()) == 1 and str(file) in ran.err
    assert (file.read_bytes() if file.exists() else b"") == before


Change = Callable[[Callable[[], None]], None]


@pytest.fixture
def after_load(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Has ``update`` do something once, between reading the connect file and replacing it."""
    clients = KeyFolder.clients

    def hook(do: Callable[[], None]) -> None:
        def hooked(folder: KeyFolder) -> object:
            monkeypatch.setattr(KeyFolder, "clients", clients)
            do()
            return folder.clients()

        monkeypatch.setattr(KeyFolder, "clients", hooked)

    return hook


def test_update_replaces_only_the_file_that_it_has_read(
    access: Shell, add: Shell, keys: Path, tmp_path: Path, after_load: Change
) -> None:
    file, away, other = tmp_path / "alice.json", tmp_path / "away.json", tmp_path / "other.json"
    add("alice", "-o", file)
    access("rotate", "--keys", keys)
    other.write_text("of another user")
    before = file.read_bytes()

    def swap() -> None:
        file.rename(away)
        other.rename(file)

    after_load(swap)
    ran = access("update", file, "--keys", keys)
    assert ran.code == USAGE and "replaced by another file" in ran.err
    assert (file.read_text(), away.read_bytes()) == ("of another user", before)
    assert sorted(os.listdir(tmp_path)) == ["alice.json", "away.json", "keys"]


@pytest.mark.parametrize("instead", ["file", "link"])
def test_update_resolves_links_once_before_it_reads(
    access: Shell, add: Shell, keys: Path, tmp_path: Path, after_load: Change, instead: str
) -> None:
    """Who can swap the link gets no secret into a file of his."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    file, link, other = tmp_path / "alice.json", theirs / "link.json", theirs / "other.json"
    add("alice", "-o", file)
    access("rotate", "--keys", keys)
    link.symlink_to(file)
    other.write_text("of another user")
    if os.geteuid() == 0:
        os.chown(other, FOREIGN, FOREIGN)

    def swap() -> None:
        link.unlink()
        if instead == "link":
            link.symlink_to(other)
        else:
            other.rename(link)

    after_load(swap)
    assert access("update", link, "--keys", keys).code == DONE
    assert link.read_text() == "of another user"
    assert len(Connect.load(file).server_keys) == 2
    assert file.stat().st_uid == os.geteuid()
    names = ["link.json", "other.json"] if instead == "link" else ["link.json"]
    assert sorted(os.listdir(theirs)) == names


def test_update_changes_the_owner_of_no_other_file(
    access: Shell, add: Shell, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user of the folder puts a symbolic link in place of the new file while it is written."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files to others")
    theirs, victim = tmp_path / "theirs", tmp_path / "victim"
    theirs.mkdir()
    file, away = theirs / "alice.json", theirs / "away"
    add("alice", "-o", file)
    access("rotate", "--keys", keys)
    os.chown(file, 0, FOREIGN)
    file.chmod(0o400)
    victim.touch(0o600)
    write = os.write

    def written(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        (new,) = theirs.glob(".*.new")
        new.rename(away)
        new.symlink_to(victim)
        return os.write(fd, data)

    monkeypatch.setattr(os, "write", written)
    access("update", file, "--keys", keys)
    assert os.write is write
    status = victim.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)
    status = away.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, FOREIGN, 0o400)


def test_update_keeps_the_owner(access: Shell, add: Shell, keys: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files to others")
    file = tmp_path / "alice.json"
    add("alice", "-o", file)
    os.chown(file, 0, FOREIGN)
    access("rotate", "--keys", keys)
    assert access("update", file, "--keys", keys).code == DONE
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, FOREIGN, 0o600)
    assert len(Connect.load(file).server_keys) == 2


def test_update_on_a_full_disk_leaves_the_file(
    access: Shell, add: Shell, keys: Path, tmp_path: Path
) -> None:
    with mounted_disk(tmp_path, "1m") as disk:
        add("alice", "-o", disk / "alice.json")
        before = (disk / "alice.json").read_bytes()
        access("rotate", "--keys", keys)
        fill(disk)
        ran = access("update", disk / "alice.json", "--keys", keys)
        assert ran.code == USAGE and "No space left" in ran.err
        assert (disk / "alice.json").read_bytes() == before
        assert sorted(os.listdir(disk)) == ["alice.json", "ballast"]


# ---- kill -9 ----------------------------------------------------------------------------------


def test_a_command_that_is_killed_leaves_nothing_half_made(keys: Path) -> None:
    """At any time: before, during or after the change. The folder can be used in each case."""
    command = [sys.executable, "-m", "dstore", "access", "add"]
    more = ["--role", "read", "--keys", str(keys), "--address", ADDRESS]
    for number in range(6):
        process = subprocess.Popen(
            [*command, f"client{number}", *more], env=environment(), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        if number % 2:
            process.stdout.read(1)  # its secret is handed out, and it is being added
        kill(process)
        KeyFolder(keys).load()  # which refuses what is half made
    folder = KeyFolder(keys)
    for client in folder.clients():
        folder.revoke(client.name)
    assert folder.load().identities == ()
