"""Large values, arrays and files on the command line, and the bar that shows how far they are."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from blake3 import blake3

import dstore
from dstore import cli, config
from dstore.testing import global_process
from tests.integration.processes import PATIENCE, ROOT
from tests.integration.terminals import (
    AT_ONCE,
    CURSOR_HIDDEN,
    CURSOR_SHOWN,
    MAIN,
    AtTerminal,
    inked,
)

DONE, REFUSED, USAGE = 0, 1, 2
LARGE = 3 * config.CHUNK_BYTES
STAND_STILL = """
from dstore.cli import progress
def update(self, what, done, total):
    print(what, flush=True)
    sys.stdin.read()
progress.Bar.update = update
"""
"""Makes a command with a terminal wait in the middle of a transfer until Ctrl-C comes."""

Shell = Callable[..., "tuple[int, bytes, str]"]
NodeMaker = Callable[..., dstore.Node]


@pytest.fixture
def shell(
    free_global: dstore.Global,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Shell:
    """Runs a command line in this process; returns exit code, output and errors."""
    monkeypatch.setenv(config.ADDRESS_VARIABLE, free_global.address)

    def run(*arguments: object, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return run


@pytest.fixture
def at_terminal(
    free_global: dstore.Global, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AtTerminal]:
    """Starts commands at a terminal, far from the host's shared memory: so chunks travel."""
    monkeypatch.setenv(config.ADDRESS_VARIABLE, free_global.address)
    monkeypatch.setenv("DSTORE_SHM", "")
    return AtTerminal


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LARGE))
    return file


def one_line(err: str) -> bool:
    return err.startswith("dstore: ") and err.count("\n") == 1 and err.endswith("\n")


def not_this_way(*_: object, **__: object) -> NoReturn:
    raise AssertionError("the whole value would be in the memory of this process")


# ---- files of some size -----------------------------------------------------------------------


def test_a_large_file_comes_and_goes_piece_by_piece(
    shell: Shell, large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("set", "put", "get", "get_buffer"):
        monkeypatch.setattr(dstore.Node, way, not_this_way)
    address = f"b3:{blake3(large_file.read_bytes()).hexdigest()}"
    assert shell("set", "k", "--file", large_file) == (DONE, b"", "")
    assert shell("put", "--file", large_file) == (DONE, f"{address}\n".encode(), "")
    for key in ("k", address):
        assert shell("get", key, "-o", tmp_path / "out") == (DONE, b"", "")
        assert (tmp_path / "out").read_bytes() == large_file.read_bytes()
    assert shell("set", "k", "--file", large_file)[0] == REFUSED
    large_file.write_bytes(bytes(LARGE))
    assert shell("set", "k", "--file", large_file, "--replace")[0] == DONE
    assert shell("get", "k", "-o", tmp_path / "out")[0] == DONE
    assert (tmp_path / "out").read_bytes() == bytes(LARGE)


def test_a_pipe_is_read_to_its_end_and_written_to_but_not_replaced(
    shell: Shell, large_file: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    other_side = threading.Thread(target=pipe.write_bytes, args=(large_file.read_bytes(),))
    other_side.start()
    assert shell("set", "k", "--file", pipe)[0] == DONE
    other_side.join(PATIENCE)
    read: list[bytes] = []
    other_side = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    other_side.start()
    assert shell("get", "k", "-o", pipe) == (DONE, b"", "")
    other_side.join(PATIENCE)
    assert read == [large_file.read_bytes()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_that_claims_to_be_empty_is_read(shell: Shell) -> None:
    shell("set", "k", "--file", "/proc/self/status")
    assert shell("get", "k")[1].startswith(b"Name:")


def test_what_is_read_into_memory_has_a_bound(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "VALUE_LIMIT_DEFAULT", LARGE)
    assert shell("set", "k", stdin=bytes(LARGE)) == (DONE, b"", "")
    code, out, err = shell("set", "l", stdin=bytes(LARGE + 1))
    assert (code, out) == (USAGE, b"")
    assert one_line(err)
    assert f"standard input has more than the {LARGE:,} bytes" in err
    code, out, err = shell("put", "--file", "/dev/zero")
    assert (code, out, one_line(err)) == (USAGE, b"", True)
    assert err.startswith("dstore: /dev/zero has more than")


# Global's own limit is below what the command line would read.
def test_a_file_beyond_the_limit_of_global_is_one_line(
    shell: Shell, large_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dstore.Global("tcp://127.0.0.1:0", value_limit=LARGE - 1) as strict:
        monkeypatch.setenv(config.ADDRESS_VARIABLE, strict.address)
        for command in (["set", "k"], ["put"]):
            code, out, err = shell(*command, "--file", large_file)
            assert (code, out, one_line(err)) == (USAGE, b"", True)
            assert f"{LARGE:,} bytes" in err
            assert f"{LARGE - 1:,}" in err


# ---- what a file gets -------------------------------------------------------------------------


class Grid:
    """A type that only its own program knows."""


def pickled(node: NodeMaker) -> bytes:
    """A value that the command line cannot read, bound to ``k``; the bytes that are stored."""
    program = node(pickle=True)
    program.set("k", {1, 2, 3})
    return bytes(program.get_buffer("k"))


def of_own_codec(node: NodeMaker) -> bytes:
    codec = dstore.Codec("grid", Grid, lambda _: b"#" * LARGE, lambda _: Grid())
    node(codecs=[codec]).set("k", Grid())
    return b"#" * LARGE


@pytest.mark.parametrize("store", [pickled, of_own_codec])
def test_what_only_a_program_can_read_is_written_as_it_is_stored(
    shell: Shell, node: NodeMaker, tmp_path: Path, store: Callable[[NodeMaker], bytes]
) -> None:
    stored = store(node)
    assert shell("get", "k", "-o", tmp_path / "out") == (DONE, b"", "")
    assert (tmp_path / "out").read_bytes() == stored
    assert shell("get", "k") == (DONE, stored, "")


@pytest.mark.parametrize("items", [3, 100_000])
@pytest.mark.parametrize("way", ["-o", "stdout", "stdout without numpy"])
def test_an_array_becomes_an_npy_file(
    shell: Shell,
    node: NodeMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    items: int,
    way: str,
) -> None:
    array = np.arange(2.0 * items).reshape(2, items)
    node().set("k", array)
    if way == "-o":
        assert shell("get", "k", "-o", tmp_path / "out.npy") == (DONE, b"", "")
        assert np.array_equal(np.load(tmp_path / "out.npy"), array)
        return
    if way == "stdout without numpy":
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.partition(".")[0] == "numpy"]:
                patch.setitem(sys.modules, name, None)
            code, out, err = shell("get", "k")
    else:
        code, out, err = shell("get", "k")
    assert (code, err) == (DONE, "")
    assert np.array_equal(np.load(io.BytesIO(out)), array)


@pytest.mark.parametrize("count", [3, 50_000])
def test_other_values_go_to_a_file_as_json(
    shell: Shell, node: NodeMaker, tmp_path: Path, count: int
) -> None:
    node().set("k", {"numbers": list(range(count)), "b": b"\xff\x00"})
    assert shell("get", "k", "-o", tmp_path / "out") == (DONE, b"", "")
    expected = {"numbers": list(range(count)), "b": "/wA="}
    assert json.loads((tmp_path / "out").read_bytes()) == expected
    assert json.loads(shell("get", "k")[1]) == expected


def test_large_text_and_bytes_are_written_as_they_are(shell: Shell, node: NodeMaker) -> None:
    for value in ("ü" * LARGE, os.urandom(config.BYTES_MAX + 1)):
        node().set("k", value, replace=True)
        expected = value.encode() if isinstance(value, str) else value
        assert shell("get", "k") == (DONE, expected, "")


# ---- a file appears when it is whole ----------------------------------------------------------


def test_a_file_keeps_its_mode_and_a_link_its_target(
    shell: Shell, node: NodeMaker, tmp_path: Path
) -> None:
    node().set("k", "new")
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    assert shell("get", "k", "-o", link)[0] == DONE
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_long_name_is_no_problem(shell: Shell, node: NodeMaker, tmp_path: Path) -> None:
    node().set("k", "v")
    assert shell("get", "k", "-o", tmp_path / ("n" * 255)) == (DONE, b"", "")


def test_a_file_stays_as_it_is_when_there_is_nothing_to_write(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    assert shell("get", "missing", "-o", file)[0] == REFUSED
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("", "Is a directory"),
        ("no/file", "No such file or directory"),
        ("no/", "No such file or directory"),
        ("file/file", "Not a directory"),
    ],
)
def test_a_place_for_no_file_is_one_line(
    shell: Shell, node: NodeMaker, tmp_path: Path, where: str, why: str
) -> None:
    node().set("k", "v")
    (tmp_path / "file").write_text("old")
    place = f"{tmp_path}/{where}"
    assert shell("get", "k", "-o", place) == (USAGE, b"", f"dstore: {place}: {why}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_device_is_one_line(shell: Shell, node: NodeMaker) -> None:
    node().set("k", bytes(LARGE))
    expected = "dstore: /dev/full: No space left on device\n"
    assert shell("get", "k", "-o", "/dev/full") == (USAGE, b"", expected)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("value", "limit"),
    [(bytes(LARGE), LARGE // 2), ([0] * LARGE, LARGE // 2), ([0] * LARGE, 2 * LARGE)],
    ids=["bytes", "json", "json that is longer than what is stored"],
)
def test_a_full_disk_is_one_line_and_no_half_file_stays(
    shell: Shell, node: NodeMaker, tmp_path: Path, value: Any, limit: int
) -> None:
    node().set("k", value)
    for before in ([], ["out"]):
        for name in before:
            (tmp_path / name).write_text("old")
        with files_of_at_most(limit):
            ran = shell("get", "k", "-o", tmp_path / "out")
        assert ran == (USAGE, b"", f"dstore: {tmp_path}/out: File too large\n")
        assert [path.name for path in tmp_path.iterdir()] == before
    assert (tmp_path / "out").read_text() == "old"


# ---- at a terminal ----------------------------------------------------------------------------


@pytest.mark.long
def test_a_terminal_shows_values_for_people(
    at_terminal: Callable[..., AtTerminal], node: NodeMaker
) -> None:
    array = np.zeros((300, 300))
    for value, shown in (
        (array, f"{array!r}\n"),
        (np.zeros((2,) * 20), f"<array of float64, shape {(2,) * 20}, 8,388,608 bytes>\n"),
        ("text", "text\n"),
        ([1, 2], "[1, 2]\n"),
        (b"bytes", "bytes"),
    ):
        node().set("k", value, replace=True)
        with at_terminal("get", "k", stdout=True) as command:
            assert command.end() == (DONE, b"", shown)


def test_a_terminal_is_spared_what_only_a_program_can_read(
    at_terminal: Callable[..., AtTerminal], node: NodeMaker
) -> None:
    pickled(node)
    with at_terminal("get", "k", stdout=True) as command:
        code, _, screen = command.end()
    assert code == USAGE
    assert one_line(screen)
    assert "'pickle'" in screen
    assert "-o FILE" in screen


def test_a_bar_shows_how_far_it_is_and_disappears(
    at_terminal: Callable[..., AtTerminal], large_file: Path, tmp_path: Path
) -> None:
    for arguments, doing in (
        (["set", "k", "--file", str(large_file)], ["reading", "sending"]),
        (["put", "--file", str(large_file)], ["reading", "sending"]),
        (["get", "k", "-o", str(tmp_path / "out")], ["fetching"]),
    ):
        with at_terminal(*arguments, script=AT_ONCE + MAIN) as command:
            code, out, screen = command.end()
        assert (code, screen.count(CURSOR_HIDDEN)) == (DONE, 1)
        assert out.count(b"\n") == (arguments[0] == "put")
        for what in doing:
            assert what in inked(screen)
        assert f"/{LARGE / 1e6:.1f} MB" in inked(screen)
        assert screen.rpartition(CURSOR_SHOWN)[2].endswith("\x1b[2K")  # its line is cleared
    assert (tmp_path / "out").read_bytes() == large_file.read_bytes()


@pytest.mark.parametrize(
    ("script", "options"), [(MAIN, []), (AT_ONCE + MAIN, ["-q"]), (AT_ONCE + MAIN, ["--quiet"])]
)
def test_no_bar_if_it_is_quick_or_nobody_wants_it(
    at_terminal: Callable[..., AtTerminal], large_file: Path, script: str, options: list[str]
) -> None:
    with at_terminal("set", "k", "--file", str(large_file), *options, script=script) as command:
        assert command.end() == (DONE, b"", "")


def test_no_bar_where_there_is_no_terminal(large_file: Path, free_global: dstore.Global) -> None:
    command = ["set", "k", "--file", str(large_file), "--address", free_global.address]
    ran = subprocess.run(
        [sys.executable, "-c", AT_ONCE + MAIN, *command], cwd=ROOT, capture_output=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (DONE, b"", b"")


def test_a_terminal_that_has_gone_ends_no_transfer(
    monkeypatch: pytest.MonkeyPatch, shell: Shell, large_file: Path, tmp_path: Path
) -> None:
    from dstore.cli import progress as bar

    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> NoReturn:
            raise OSError(5, "Input/output error")

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bar, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(sys, "stderr", Gone())
    assert shell("set", "k", "--file", large_file)[0] == DONE
    assert shell("get", "k", "-o", tmp_path / "out")[0] == DONE
    assert (tmp_path / "out").read_bytes() == large_file.read_bytes()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_signal_in_the_middle_is_quiet_and_leaves_no_half_file(
    at_terminal: Callable[..., AtTerminal],
    node: NodeMaker,
    large_file: Path,
    tmp_path: Path,
    direction: str,
    signum: signal.Signals,
) -> None:
    (tmp_path / "place").mkdir()
    if direction == "out":
        node().set("k", large_file.read_bytes())
        arguments = ["get", "k", "-o", str(tmp_path / "place" / "out")]
    else:
        arguments = ["set", "k", "--file", str(large_file)]
    script = "import sys\n" + STAND_STILL + MAIN
    with at_terminal(*arguments, script=script) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.readline() in (b"reading\n", b"fetching\n")
        command.process.send_signal(signum)
        assert command.end() == (128 + signum, b"", "")
    assert list((tmp_path / "place").iterdir()) == []
    assert ("k" in node()) == (direction == "out")


# ---- dstore global ----------------------------------------------------------------------------


@contextmanager
def serving(*options: str, **variables: str) -> Iterator[str]:
    """``dstore global`` as a process; gives its address."""
    with global_process(*options, env={**os.environ, **variables}) as server:
        yield server.address
    assert server.process.returncode == 0


def test_global_takes_the_sizes_and_the_folder(shell: Shell, tmp_path: Path) -> None:
    options = ["--large-from", "2K", "--value-limit", "4K", "--shm", str(tmp_path)]
    with serving(*options) as address:
        for size, code, files in ((2047, DONE, 0), (2048, DONE, 1), (4097, USAGE, 1)):
            assert shell("set", size, "--address", address, stdin=bytes(size))[0] == code
            assert len(list(tmp_path.glob("dstore-*/*/global/*"))) == files
            assert shell("get", size, "--address", address)[1] == bytes(size) * (code == DONE)
    assert list(tmp_path.iterdir()) == []


def test_global_without_shared_memory(shell: Shell, tmp_path: Path) -> None:
    with serving("--shm", "", DSTORE_SHM=str(tmp_path)) as address:
        assert shell("set", "k", "--address", address, stdin=bytes(LARGE))[0] == DONE
        assert list(tmp_path.iterdir()) == []
        assert shell("get", "k", "--address", address)[1] == bytes(LARGE)
