"""The path of an ipc socket belongs to one running Global, and no other file is removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dstore
from dstore.errors import AddressError
from dstore.transport.path_lock import PathLock
from tests.integration.processes import send_signal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ipc is for Unix")

SERVE = """
import sys
import dstore
try:
    with dstore.Global(sys.argv[1]):
        print("up", flush=True)
        sys.stdin.read()
except dstore.AddressError as error:
    print(error, flush=True)
"""


@contextlib.contextmanager
def serving(address: str, script: str = SERVE) -> Iterator[subprocess.Popen[str]]:
    """A Global in a process of its own, which has printed its first line."""
    server = subprocess.Popen(
        [sys.executable, "-c", script, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        try:
            yield server
        finally:
            if server.poll() is None:
                os.kill(server.pid, signal.SIGCONT)
                server.communicate()


def refusal(address: str, publisher: str | None = None) -> str:
    with pytest.raises(AddressError) as caught:
        dstore.Global(address, publisher=publisher).bind()
    return str(caught.value)


def works(address: str) -> bool:
    with dstore.Node(address, timeout=20) as node:
        node.set("k", 1, replace=True)
        return bool(node.get("k") == 1)


def fill_backlog(path: str, waiting: contextlib.ExitStack) -> None:
    """Connect until no further connection is accepted."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock = waiting.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            sock.connect(path)


def test_nothing_is_left_at_the_path(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/g"
    for _ in range(3):
        with dstore.Global(address):
            assert works(address)
            assert stat.S_ISSOCK(os.stat(tmp_path / "g").st_mode)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("asked", ["g", "g.pub"])
def test_a_path_that_is_in_use(tmp_path: Path, asked: str) -> None:
    address = f"ipc://{tmp_path}/g"
    with dstore.Global(address), serving(f"ipc://{tmp_path}/other"):
        assert "is in use already; stop what listens there" in refusal(f"ipc://{tmp_path}/{asked}")
        assert "is in use already" in refusal(f"ipc://{tmp_path}/other")
        assert "is in use already" in refusal(f"ipc://{tmp_path}/new", f"ipc://{tmp_path}/{asked}")
        assert works(address)
        assert works(f"ipc://{tmp_path}/other")
    assert os.listdir(tmp_path) == []


def test_a_global_that_stands_still_and_takes_no_more_connections_keeps_its_path(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "g")
    with serving(f"ipc://{path}") as server:
        send_signal(server.pid, signal.SIGSTOP)
        with contextlib.ExitStack() as waiting:
            fill_backlog(path, waiting)
            assert "is in use already" in refusal(f"ipc://{path}")
        os.kill(server.pid, signal.SIGCONT)
        assert works(f"ipc://{path}")


def test_so_does_a_program_without_a_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "g")
    with contextlib.ExitStack() as waiting:
        other = waiting.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(path)
        other.listen(0)
        assert "is in use already" in refusal(f"ipc://{path}")
        fill_backlog(path, waiting)
        assert "is in use already" in refusal(f"ipc://{path}")
        assert os.path.exists(path)
    with dstore.Global(f"ipc://{path}"):  # it has ended, and left its socket
        assert works(f"ipc://{path}")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize("name", ["g", "g.pub", "@g"])
def test_what_is_no_socket_is_not_removed(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / name
    if kind == "file":
        there.write_text("mine")
    elif kind == "folder":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "nowhere")
    told = refusal("ipc://@g" if name == "@g" else f"ipc://{tmp_path}/g")
    assert "what is at this path is no socket, and would be lost" in told
    assert os.listdir(tmp_path) == [name]
    assert kind != "file" or there.read_text() == "mine"


@pytest.mark.parametrize("name", ["g", "g.pub"])
def test_a_file_that_comes_while_it_serves_stays(tmp_path: Path, name: str) -> None:
    with dstore.Global(f"ipc://{tmp_path}/g"):
        os.unlink(tmp_path / name)
        (tmp_path / name).write_text("mine")
    assert os.listdir(tmp_path) == [name]


def test_what_a_killed_global_left_is_taken_over(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/g"
    for _ in range(2):
        with serving(address) as server:
            server.kill()
            server.wait()
        assert sorted(os.listdir(tmp_path)) == ["g", "g.lock", "g.pub", "g.pub.lock"]
    with dstore.Global(address):
        assert works(address)
    assert os.listdir(tmp_path) == []


FORKS = """
import os, sys
import dstore
gate = os.pipe()
server = dstore.Global(sys.argv[1])
server.start()
if os.fork() == 0:
    os.close(gate[1])
    os.close(1)
    os.read(gate[0], 1)  # until the parent has ended
    os.read(0, 1)
    os._exit(0)
print("up", flush=True)
os.read(0, 1)
server.close()
print("closed", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_forked_child_does_not_keep_the_path(tmp_path: Path, how: str) -> None:
    """The child has inherited the listening socket, so that connections are still accepted."""
    address = f"ipc://{tmp_path}/g"
    with serving(address, FORKS) as server:
        assert server.stdin is not None and server.stdout is not None
        if how == "closed":
            server.stdin.write("x")
            server.stdin.flush()
            assert server.stdout.readline() == "closed\n"
        else:
            server.kill()
            server.wait()
        with dstore.Global(address):
            assert works(address)


def test_a_childs_end_does_not_free_the_path(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/g"
    script = """
import os, sys
import dstore
with dstore.Global(sys.argv[1]) as server:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    print("up", flush=True)
    sys.stdin.read()
"""
    script = script.replace("sys.exit(0)", "os._exit(0)")
    with serving(address, script):
        assert "is in use already" in refusal(address)
        assert works(address)


@pytest.mark.long
def test_one_of_many_that_start_together_wins(tmp_path: Path) -> None:
    script = """
import os, sys
import dstore
server = dstore.Global(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    server.start()
    print("won", flush=True)
except dstore.AddressError as error:
    assert "is in use already" in str(error)
    print("lost", flush=True)
sys.stdin.readline()
server.close()
"""
    address = f"ipc://{tmp_path}/g"
    for left in (False, True, True):
        if left:
            with serving(address) as killed:
                killed.kill()
                killed.wait()
        with contextlib.ExitStack() as running:
            starters = [
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", script, address],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
                for _ in range(4)
            ]

            def say(to: subprocess.Popen[str]) -> None:
                assert to.stdin is not None
                to.stdin.write("\n")
                to.stdin.flush()

            def line(of: subprocess.Popen[str]) -> str:
                assert of.stdout is not None
                return of.stdout.readline().strip()

            assert [line(each) for each in starters] == ["ready"] * 4
            for each in starters:
                say(each)
            assert sorted(line(each) for each in starters) == ["lost"] * 3 + ["won"]
            assert works(address)
            for each in starters:
                say(each)
        assert os.listdir(tmp_path) == []


def test_a_path_passes_from_one_to_the_next(tmp_path: Path) -> None:
    """Several processes try repeatedly; each removes only its own files."""
    script = """
import sys
import dstore
won = 0
while won < 15:
    server = dstore.Global(sys.argv[1])
    try:
        server.start()
    except dstore.AddressError as error:
        assert "is in use already" in str(error), error
    else:
        with dstore.Node(sys.argv[1], timeout=20) as node:
            assert node.global_stats()["keys"] == 0
            node.set("k", 1)
            assert node.get("k") == 1
        won += 1
    finally:
        server.close()
"""
    address = f"ipc://{tmp_path}/g"
    running = [subprocess.Popen([sys.executable, "-c", script, address]) for _ in range(3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    assert os.listdir(tmp_path) == []


def test_the_lock_is_given_up_between_opening_and_locking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is then on a file that is not at the path any more, and protects nothing."""
    address = f"ipc://{tmp_path}/g"
    first, lock = PathLock(address), fcntl.flock

    def give_up_and_lock(file: int, how: int) -> None:
        first.release()
        lock(file, how)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", give_up_and_lock)
        second = PathLock(address)
    with pytest.raises(AddressError, match="is in use already"):
        PathLock(address)
    second.release()
    assert os.listdir(tmp_path) == []


def test_a_folder_where_nothing_may_be_written(tmp_path: Path) -> None:
    told = refusal(f"ipc://{tmp_path}/no/g")
    assert "cannot lock" in told and "(no such file or directory)" in told
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "(permission denied)" in refusal(f"ipc://{tmp_path}/g")
        tmp_path.chmod(0o700)


def test_a_lock_that_is_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "g.lock").symlink_to(tmp_path / "precious")
    assert "cannot lock" in refusal(f"ipc://{tmp_path}/g")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_relative_path_and_a_process_that_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is so deep that only the relative path is short enough for a socket."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with dstore.Global("ipc://g"):
        assert works("ipc://g")
        assert "is in use already" in refusal("ipc://g")
        monkeypatch.chdir(tmp_path)
    assert os.listdir(deep) == []


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    assert "an ipc path has 1 to 100 bytes" in refusal("ipc:///" + "x" * 100)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"ipc://@tests-of-dstore-{os.getpid()}"
    with dstore.Global(address):
        assert works(address)
        assert "is in use already" in refusal(address)
        assert works(address)
    with serving(address) as server:
        server.kill()
        server.wait()
    with dstore.Global(address):
        assert works(address)
    assert os.listdir(tmp_path) == []
