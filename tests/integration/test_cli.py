"""The one-shot commands and ``dstore global``, as a shell script meets them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from blake3 import blake3

import dstore
from dstore import cli, compiled, config
from dstore.testing.running import announced_address

DONE, REFUSED, USAGE, UNREACHED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""


class Ran(NamedTuple):
    code: int
    out: bytes
    err: str


Shell = Callable[..., Ran]


@pytest.fixture
def dstore_(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Runs a command line in this process."""

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(arguments)
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err
        return Ran(code, out, err.decode())

    return run


@pytest.fixture
def shell(dstore_: Shell, free_global: dstore.Global, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Runs a command line in this process, with a Global that answers."""
    monkeypatch.setenv(config.ADDRESS_VARIABLE, free_global.address)
    return dstore_


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, nor can."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield "tcp://{}:{}".format(*reserved.getsockname())


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``python -m dstore`` as a process of its own, which ends with the test."""

    def end(process: subprocess.Popen[str]) -> None:
        process.terminate()  # a Global that is killed leaves its shared memory to others
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()

    with ExitStack() as processes:

        def popen(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "dstore", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            processes.enter_context(process)
            processes.callback(end, process)
            return process

        yield popen


# ---- values in and out ------------------------------------------------------------------------


def test_text_from_the_command_line_is_text(shell: Shell, node: Callable[..., dstore.Node]) -> None:
    assert shell("set", "greeting", "good morning") == Ran(DONE, b"", "")
    assert node().get("greeting") == "good morning"
    assert shell("get", "greeting") == Ran(DONE, b"good morning", "")


@pytest.mark.parametrize("arguments", [["--file", "FILE"], ["-"], [], ["--file", "-"]])
def test_bytes_of_a_file_or_of_stdin_come_back_exactly(
    shell: Shell, tmp_path: Path, arguments: list[str]
) -> None:
    data = bytes(range(256)) + b"\r\n\n"
    file = tmp_path / "in put"
    file.write_bytes(data)
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    stdin = b"not this" if str(file) in arguments else data
    assert shell("set", "k", *arguments, stdin=stdin).code == DONE
    assert shell("get", "k").out == data
    assert shell("get", "k", "-o", str(tmp_path / "out")) == Ran(DONE, b"", "")
    assert (tmp_path / "out").read_bytes() == data


def test_other_values_are_written_as_json(shell: Shell, node: Callable[..., dstore.Node]) -> None:
    value = {"n": [1, 2.5, None, True], "t": ("ü", b"\xff\x00"), 7: {(1, 2): "x"}}
    node().set("k", value)
    expected = {"n": [1, 2.5, None, True], "t": ["ü", "/wA="], "7": {"[1, 2]": "x"}}
    assert json.loads(shell("get", "k").out) == expected


def test_put_prints_the_key_and_twice_the_same(shell: Shell) -> None:
    expected = f"b3:{blake3(b'some bytes').hexdigest()}\n".encode()
    assert shell("put", stdin=b"some bytes") == Ran(DONE, expected, "")
    assert shell("put", "-", stdin=b"some bytes") == Ran(DONE, expected, "")
    of_text = shell("put", "some bytes").out
    assert of_text.startswith(b"b3:")
    assert shell("get", of_text.decode().strip()).out == b"some bytes"


def test_a_key_that_is_not_utf8_passes_through(shell: Shell) -> None:
    key = os.fsdecode(b"caf\xe9")
    assert shell("set", key, "x").code == DONE
    assert shell("keys").out == b"caf\xe9\n"
    assert shell("get", key).out == b"x"
    assert shell("del", key).code == DONE


# ---- keys, del, stats -------------------------------------------------------------------------


def test_an_occupied_key_is_refused_unless_replaced(shell: Shell) -> None:
    shell("set", "k", "one")
    code, out, err = shell("set", "k", "two")
    assert (code, out) == (REFUSED, b"")
    assert err == "dstore: 'k' is occupied; delete it first, or use --replace\n"
    assert shell("set", "k", "two", "--replace").code == DONE
    assert shell("get", "k").out == b"two"


def test_keys_lists_a_prefix_line_by_line_or_with_nul(shell: Shell) -> None:
    for key in ("a/1", "a/2", "b"):
        shell("set", key, "x")
    assert sorted(shell("keys").out.splitlines()) == [b"a/1", b"a/2", b"b"]
    assert sorted(shell("keys", "a/").out.splitlines()) == [b"a/1", b"a/2"]
    assert shell("keys", "b", "-0").out == b"b\0"
    assert shell("keys", "nothing") == Ran(DONE, b"", "")


@pytest.mark.parametrize("wait", [[], ["--no-wait"]])
def test_del_tries_every_key_and_names_the_missing(shell: Shell, wait: list[str]) -> None:
    shell("set", "a", "x")
    shell("set", "b", "x")
    code, out, err = shell("del", "a", "nix", "b", *wait)
    assert (code, out) == (REFUSED, b"")
    assert err == "dstore: no value is bound to 'nix'\n"
    assert shell("get", "a").code == REFUSED
    assert shell("keys").out == b""
    shell("set", "a", "x")
    assert shell("del", "a", *wait) == Ran(DONE, b"", "")


def test_stats_are_those_of_global(shell: Shell) -> None:
    shell("set", "k", "x")
    counters = json.loads(shell("stats", "--json").out)
    assert counters["keys"] == 1
    assert counters["compiled"] is (compiled.native is not None)
    assert (counters["membership"], counters["owner"]) == ("private", "")
    lines = shell("stats").out.decode().splitlines()
    assert ["keys", "1"] in [line.split() for line in lines]
    assert ["compiled", str(counters["compiled"])] in [line.split() for line in lines]
    assert any(line.startswith("locals.") and ".label" in line for line in lines)


# ---- keys that expire -------------------------------------------------------------------------


def seconds_left(shell: Shell, key: str) -> float:
    """What ``dstore ttl`` prints for a key that expires."""
    code, out, err = shell("ttl", key)
    assert (code, err) == (DONE, "")
    assert re.fullmatch(rb"\d+\.\d{3}\n", out), out
    return float(out)


def test_expire_persist_and_ttl_of_a_key(shell: Shell) -> None:
    shell("set", "k", "x")
    assert shell("ttl", "k") == Ran(DONE, b"never\n", "")
    assert shell("expire", "k", "1e4") == Ran(DONE, b"", "")
    assert 9_000 < seconds_left(shell, "k") <= 10_000
    assert shell("expire", "k", "2000.5") == Ran(DONE, b"", "")
    assert 1_000 < seconds_left(shell, "k") <= 2_000.5
    assert shell("persist", "k") == Ran(DONE, b"", "")
    assert shell("ttl", "k") == Ran(DONE, b"never\n", "")
    assert shell("expire", "k", "0.001") == Ran(DONE, b"", "")
    while shell("get", "k").code == DONE:
        pass
    for arguments in (["expire", "k", "1"], ["persist", "k"], ["ttl", "k"]):
        assert shell(*arguments) == Ran(REFUSED, b"", "dstore: no value is bound to 'k'\n")


@pytest.mark.parametrize("size", [10, config.LARGE_FROM_DEFAULT])
def test_what_is_stored_with_a_time_to_live_expires(
    shell: Shell, tmp_path: Path, size: int
) -> None:
    (tmp_path / "file").write_bytes(bytes(size))
    file = ["--file", str(tmp_path / "file")]
    assert shell("set", "k", *file, "--ttl", "2000").code == DONE
    assert 1_000 < seconds_left(shell, "k") <= 2_000
    assert shell("set", "k", *file, "--replace", "--ttl", "1e4").code == DONE
    assert 9_000 < seconds_left(shell, "k") <= 10_000
    assert shell("set", "k", *file, "--replace").code == DONE
    assert shell("ttl", "k").out == b"never\n"
    put = shell("put", *file, "--ttl", "2000").out.decode().strip()
    assert 1_000 < seconds_left(shell, put) <= 2_000
    assert shell("put", *file, "--ttl", "1").code == DONE
    assert seconds_left(shell, put) > 1_000
    assert shell("put", *file).code == DONE
    assert shell("ttl", put).out == b"never\n"


# ---- what goes wrong --------------------------------------------------------------------------


def one_line(err: str) -> bool:
    return err.startswith("dstore: ") and err.count("\n") == 1 and err.endswith("\n")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (REFUSED, ["get", "missing"]),
        (REFUSED, ["del", "missing"]),
        (USAGE, ["get"]),
        (USAGE, ["frobnicate"]),
        (USAGE, ["get", "k", "--frobnicate"]),
        (USAGE, ["set", "k", "value", "--file", "and a file"]),
        (USAGE, ["set", "k", "--file", "no/such/file"]),
        (USAGE, ["set", "k", "--file", "."]),
        (USAGE, ["put", "--file", "no/such/file"]),
        (USAGE, ["set", "", "empty key"]),
        (USAGE, ["get", "k" * (config.KEY_BYTES_MAX + 1)]),
        (USAGE, ["set", config.CONTENT_PREFIX + "reserved", "x"]),
        (REFUSED, ["expire", "missing", "1"]),
        (REFUSED, ["persist", "missing"]),
        (REFUSED, ["ttl", "missing"]),
        (USAGE, ["expire", "k"]),
        (USAGE, ["expire", "k", "0"]),
        (USAGE, ["expire", "k", "-1"]),
        (USAGE, ["expire", "", "1"]),
        (USAGE, ["persist", "k", "1"]),
        (USAGE, ["ttl", "k", "l"]),
        (USAGE, ["set", "k", "x", "--ttl", "soon"]),
        (USAGE, ["set", "k", "x", "--ttl", "nan"]),
        (USAGE, ["put", "x", "--ttl", "1e10"]),
        (USAGE, ["get", "k", "--timeout", "0"]),
        (USAGE, ["get", "k", "--timeout", "soon"]),
        (USAGE, ["get", "k", "--address", "no address"]),
        (USAGE, ["get", "k", "--address", "tcp://127.0.0.1:65536"]),
        (USAGE, ["get", "k", "--address", "127.0.0.1:port"]),
        (USAGE, ["repl", "--address", "no address"]),
    ],
)
def test_what_is_refused_takes_one_line(shell: Shell, code: int, arguments: list[str]) -> None:
    ran = shell(*arguments)
    assert (ran.code, ran.out) == (code, b"")
    assert one_line(ran.err), ran.err


def test_a_file_that_cannot_be_written_is_bad_input(shell: Shell, tmp_path: Path) -> None:
    shell("set", "k", "x")
    ran = shell("get", "k", "-o", str(tmp_path / "no" / "file"))
    assert ran == Ran(USAGE, b"", f"dstore: {tmp_path}/no/file: No such file or directory\n")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["get", "k"], ["set", "k", "x"], ["put", "x"], ["del", "k"], ["keys"], ["stats"]),
        *(["expire", "k", "1"], ["persist", "k"], ["ttl", "k"]),
    ],
)
def test_a_global_that_is_down_is_code_3(dstore_: Shell, nobody: str, arguments: list[str]) -> None:
    ran = dstore_(*arguments, "--address", nobody, "--timeout", "0.1")
    assert (ran.code, ran.out) == (UNREACHED, b"")
    assert one_line(ran.err)
    assert nobody.removeprefix("tcp://") in ran.err


def test_tcp_may_be_left_out_of_an_address(dstore_: Shell, free_global: dstore.Global) -> None:
    address = free_global.address.removeprefix("tcp://")
    assert dstore_("keys", "--address", address) == Ran(DONE, b"", "")


def test_without_a_command_the_help_is_shown(dstore_: Shell) -> None:
    ran = dstore_()
    assert (ran.code, ran.out) == (USAGE, b"")
    assert "COMMAND" in ran.err
    assert dstore_("--help").code == DONE


# ---- as a process -----------------------------------------------------------------------------


def test_what_is_not_needed_is_not_imported(
    free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    """Neither the line editor nor what draws on screens."""
    node().set("k", "v")
    script = (
        "import sys; from dstore.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or len({'cmd2', 'rich', 'prompt_toolkit', 'numpy'} & set(sys.modules)))"
    )
    for arguments, said in (
        (["--version"], f"dstore {dstore.__version__}\n"),
        (["get", "k", "--address", free_global.address], "v"),
    ):
        command = [sys.executable, "-c", script, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert (ran.returncode, ran.stdout) == (0, said)


def test_a_closed_stdout_gives_no_traceback(
    start: Start, shell: Shell, free_global: dstore.Global, node: Callable[..., dstore.Node]
) -> None:
    node().set_many({f"{number:05}" + 200 * "x": b"" for number in range(2000)})
    keys = start("keys", "--address", free_global.address)
    assert keys.stdout
    assert keys.stderr
    assert keys.stdout.readline().startswith("0")
    keys.stdout.close()
    assert keys.stderr.read() == ""
    assert keys.wait(PATIENCE) == PIPE_CLOSED


def test_ctrl_c_ends_a_command_quietly(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(PATIENCE)
        address = "{}:{}".format(*mute.getsockname())
        process = start("get", "k", "--address", address, "--timeout", "60")
        mute.accept()[0].close()  # it has come as far as asking
        interrupt(process)
        assert process.communicate() == ("", "")
        assert process.returncode == INTERRUPTED


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C as a person does, who presses it again if nothing happens: a signal that comes
    when Python is about to wait is noticed when it has waited.
    """
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE / 3)
            return


# ---- dstore global ----------------------------------------------------------------------------


def listening(server: subprocess.Popen[str]) -> str:
    """The address that a server says in its first line, as people write it."""
    assert server.stdout
    return announced_address(server.stdout.readline()).removeprefix("tcp://")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_global_serves_until_a_signal_and_frees_its_port(
    start: Start, dstore_: Shell, signum: signal.Signals
) -> None:
    server = start("global", "--bind", "127.0.0.1:0", "--lease", "1")
    address = listening(server)
    assert dstore_("set", "k", "x", "--address", address).code == DONE
    assert dstore_("get", "k", "--address", address).out == b"x"
    server.send_signal(signum)
    out, err = server.communicate(timeout=PATIENCE)
    assert (server.returncode, out, err) == (0, "", "")
    with dstore.Global(f"tcp://{address}", publisher="tcp://127.0.0.1:0") as again:
        assert again.address == f"tcp://{address}"


LEVELS = ("debug", "info", "warning")
LOGS = """
from argparse import Namespace
from dstore.cli import serve
from dstore.runtime.logs import Log
serve._log(Namespace(quiet={quiet}, verbose={verbose}))
for name in ("global", "shm"):
    log = Log("dstore." + name)
    log.debug(name + "-debug")
    log.info(name + "-info")
    log.warning(name + "-warning")
"""


@pytest.mark.parametrize(
    ("quiet", "verbose", "logged"),
    [
        (False, 0, {"global-info", "global-warning", "shm-warning"}),
        (False, 1, {"global-info", "global-warning", "shm-info", "shm-warning"}),
        (False, 2, {f"{name}-{each}" for name in ("global", "shm") for each in LEVELS}),
        (True, 0, set()),
    ],
)
def test_the_news_of_global_are_shown_unless_it_is_quiet(
    quiet: bool, verbose: int, logged: set[str]
) -> None:
    script = LOGS.format(quiet=quiet, verbose=verbose)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert {line.split()[-1] for line in ran.stderr.splitlines()} == logged


def test_an_ipc_address_is_shown_in_full(start: Start, dstore_: Shell, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/g"
    assert listening(start("global", "--address", address)) == address
    assert dstore_("keys", "--address", address).code == DONE


def test_global_warns_when_other_machines_can_reach_it(start: Start) -> None:
    server = start("global", "--address", "tcp://0.0.0.0:0", "--insecure")
    address = listening(server)
    assert server.stderr
    warning = server.stderr.readline()
    assert warning.startswith("dstore: warning: ")
    assert address in warning
    assert "no authentication and no encryption" in warning


def test_an_address_in_use_is_one_line(dstore_: Shell, free_global: dstore.Global) -> None:
    ran = dstore_("global", "--address", free_global.address)
    assert ran.code != DONE
    assert "in use" in ran.err
    assert one_line(ran.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--address", "nonsense"],
        ["--address", "tcp://127.0.0.1:65536"],
        ["--address", "127.0.0.1:0", "--publisher", "udp://127.0.0.1:1"],
        ["--lease", "0"],
        ["--lease", "nan"],
        ["--lease", "1e9"],
        ["--log-length", "0"],
        ["--log-length", "-5"],
        ["--max-clients", "0"],
        ["--max-clients", "100001"],
        ["--memory-limit", "0"],
        ["--memory-limit", "4X"],
        ["--memory-limit", "lots"],
        ["--value-limit", "0"],
        ["--large-from", "1K-"],
        ["--large-from", "1023"],
        ["--large-from", "9M"],
        ["--shm", "/no/such/folder"],
    ],
)
def test_what_global_cannot_do_is_one_line(dstore_: Shell, arguments: list[str]) -> None:
    ran = dstore_("global", *arguments)
    assert (ran.code, ran.out) == (USAGE, b"")
    assert one_line(ran.err), ran.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("512M", 512 << 20), ("4G", 4 << 30), ("1.5k", 1536), ("2GiB", 2 << 30)],
)
def test_sizes(text: str, expected: int) -> None:
    from dstore.cli.arguments import size

    assert size(text) == expected


@pytest.mark.parametrize("command", ["global", "host"])
def test_a_service_that_cannot_begin_leaves_the_signals_as_they_were(
    command: str, free_global: dstore.Global, tmp_path: Path
) -> None:
    """It was called by a program, whose children would be deaf to SIGTERM."""
    script = """
import signal, sys
from dstore import cli
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert cli.main(sys.argv[1:]) != 0
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
"""
    options = ["--address", free_global.address, "--shm", str(tmp_path / "missing")]
    subprocess.run([sys.executable, "-c", script, command, *options], check=True, timeout=PATIENCE)
