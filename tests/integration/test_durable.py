"""A durable Global as a process: it is killed, its disk fills up or fails, its data are damaged."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import dstore
from dstore import config
from dstore.server.data.folder import DATABASE
from dstore.testing import start_global
from tests.disks import mounted_disk
from tests.integration.owners import until
from tests.integration.processes import PATIENCE, ROOT, GlobalProcess, Worker, free_port
from tests.unit.server.data_files import edit, run_python

LEASE = 1.0
ENDLESS = config.LEASE_MAX
"""A lease that does not end during a test. A quiet period of this length does not either."""
SHORT = 0.3
"""Seconds after which a call that cannot be answered is given up."""
LARGE = bytes(range(256)) * 1024
OK, FAILED, USAGE = 0, 1, 2

Make = Callable[..., dstore.Node]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Durable(GlobalProcess):
    """``dstore global --data``, which can be started again with another lease or folder."""

    def __init__(self, place: Path, lease: float = LEASE) -> None:
        self._place = place
        self.began = 0.0
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.start(lease)

    def start(self, lease: float = LEASE, place: Path | None = None) -> None:
        self.began = time.monotonic()
        options = ["--data", str(place or self._place), "--lease", str(lease)]
        self.process = start_global(*options, address=self.address).process

    def start_again(self, lease: float = LEASE) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start(lease)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.began


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[..., Durable]]:
    """A function that starts a durable Global, which ends with the test."""
    with ExitStack() as stack:

        def start(place: Path = place, **options: Any) -> Durable:
            served = Durable(place, **options)
            stack.enter_context(served)
            return served

        yield start


@pytest.fixture
def join() -> Iterator[Make]:
    """A function that makes Nodes, which are closed with the test."""
    with ExitStack() as stack:

        def make(served: Durable, **options: Any) -> dstore.Node:
            return stack.enter_context(dstore.Node(served.address, **options))

        yield make


@contextmanager
def embedded(place: Path) -> Iterator[dstore.Node]:
    """A Node of a Global in this process that has the data of a folder."""
    server = dstore.Global("tcp://127.0.0.1:0", data=place)
    with server, dstore.Node(server.address) as node:
        yield node


@contextmanager
def waiting(call: Callable[[], object]) -> Iterator[None]:
    """Run a write that does not end within the block, in which Global is killed."""
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(call)
        yield
        with pytest.raises(dstore.OutcomeUnknown):
            ended.result(PATIENCE)


def refused(*options: str) -> str:
    """Run a ``dstore global`` that cannot start. Returns the one line that it says."""
    ended = subprocess.run(
        [sys.executable, "-m", "dstore", "global", "--address", "tcp://127.0.0.1:0", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("dstore: ")
    return line


# ---- killed and started again -----------------------------------------------------------------


def test_values_of_all_sizes_survive_a_kill(serve: Callable[..., Durable], join: Make) -> None:
    served = serve()
    values = {"text": "word", "bytes": b"\0\xff", "empty": b"", "large": LARGE, "list": [1, "two"]}
    with dstore.Node(served.address) as node:
        node.set_many({"gone": 1, "old": 1, "old large": LARGE[1:], **values})
        node.delete("gone")
        node.set("old", "new", replace=True)
        node.set("old large", LARGE[2:], replace=True)
    served.start_again()
    node = join(served)
    expected = {**values, "old": "new", "old large": LARGE[2:]}
    assert node.get_many(expected) == expected
    assert sorted(node.keys()) == sorted(expected)
    with pytest.raises(dstore.KeyOccupied):
        node.set("text", "other")


def test_a_node_goes_on_over_a_kill(serve: Callable[..., Durable], join: Make) -> None:
    served = serve()
    node = join(served)
    node.set("k", "value")
    for number in range(3):
        served.start_again()
        node.set(f"k{number}", number)
    assert node.get_many(["k", "k0", "k1", "k2"]) == {"k": "value", "k0": 0, "k1": 1, "k2": 2}


def test_a_deletion_that_is_not_waited_for_survives_a_kill(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve()
    with Worker(served.address) as holder:
        holder.call("set", "k", "value")
        holder.signal(signal.SIGSTOP)  # it holds the value and cannot acknowledge
        with dstore.Node(served.address) as node:
            assert node.delete("k", wait=False).pending == 1
        served.start_again()
        node = join(served)
        with pytest.raises(dstore.KeyMissing):  # it joins the deletion that goes on, and waits
            node.delete("k")
        assert node.get("k", None) is None


# ---- the quiet period -------------------------------------------------------------------------


def test_in_the_quiet_period_only_removals_wait(serve: Callable[..., Durable], join: Make) -> None:
    served = serve(lease=ENDLESS)
    join(served).set("k", "value")
    served.start_again()
    hasty, node = join(served, timeout=SHORT), join(served)
    assert node.get("k") == "value"
    node.set("new", "other")
    with waiting(lambda: hasty.delete("k")), waiting(lambda: hasty.set("new", 3, replace=True)):
        until(lambda: node.global_stats()["pending"] == 2, "a deletion and a replacement")
        assert node.get_many(["k", "new"]) == {"k": "value", "new": "other"}
        node.set("newer", LARGE)
        assert node.get("newer") == LARGE
        served.kill()


def test_removals_go_on_when_the_quiet_period_is_over(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve()
    with dstore.Node(served.address) as node:
        node.set("k", "value")
        node.set("r", "value")
    served.start_again()
    node, done = join(served), []

    def replace() -> None:
        join(served).set("r", "new", replace=True)
        done.append(served.age)

    replacing = threading.Thread(target=replace)
    replacing.start()
    node.delete("k")
    done.append(served.age)
    replacing.join()
    assert min(done) >= LEASE
    assert node.get("r") == "new"


def test_a_second_restart_waits_for_what_the_first_has_not_waited_for(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve(lease=LEASE)
    with dstore.Node(served.address) as node:
        node.set("k", "value")
    served.start_again(lease=0.1)
    served.start_again(lease=0.1)
    join(served).delete("k")
    assert served.age >= LEASE


@pytest.mark.long
def test_once_waited_out_a_lease_is_not_waited_for_again(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve(lease=LEASE)
    with dstore.Node(served.address) as node:
        node.set("k", "value")
    served.start_again(lease=0.1)
    with dstore.Node(served.address) as node:
        node.delete("k")  # after the quiet period
        node.set("k", "new")  # after it was recorded that it is over
    served.kill()
    with dstore.Global("tcp://127.0.0.1:0", data=served._place, lease=0.1) as again:
        assert again._loop is not None
        assert again._loop._durable is not None
        assert again._loop._durable._data.lease == 0.1


def test_after_a_clean_stop_without_nodes_nothing_is_waited_for(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve(lease=ENDLESS)
    with dstore.Node(served.address) as node:
        node.set("k", "value")
    assert served.stop() == OK
    served.start()
    join(served).delete("k")


@pytest.mark.long
def test_after_a_clean_stop_the_leases_of_nodes_are_waited_for(
    serve: Callable[..., Durable], join: Make
) -> None:
    served = serve(lease=ENDLESS)
    join(served).set("k", "value")
    assert served.stop() == OK
    served.start()
    node = join(served)
    with waiting(lambda: node.delete("k")):
        until(lambda: node.global_stats()["pending"] == 1, "a deletion that waits")
        assert node.get("k") == "value"
        served.kill()


# ---- the folder -------------------------------------------------------------------------------


def test_two_globals_cannot_use_one_folder(
    serve: Callable[..., Durable], join: Make, place: Path
) -> None:
    served = serve()
    join(served).set("k", "value")
    assert "is in use by another Global" in refused("--data", str(place))
    with pytest.raises(dstore.DataError, match="in use"):
        dstore.Global("tcp://127.0.0.1:0", data=place).bind()
    assert join(served).get("k") == "value"


def test_an_embedded_global_keeps_its_folder_from_others(place: Path) -> None:
    with dstore.Global("tcp://127.0.0.1:0", data=place) as first:
        with pytest.raises(dstore.DataError, match="in use"):
            dstore.Global("tcp://127.0.0.1:0", data=place).bind()
        assert "is in use by another Global" in refused("--data", str(place))
        with dstore.Node(first.address) as node:
            node.set("k", "value")
    with embedded(place) as node:
        assert node.get("k") == "value"


@pytest.mark.long
def test_a_copied_folder_is_silent_for_a_lease(
    serve: Callable[..., Durable], join: Make, place: Path, tmp_path: Path
) -> None:
    served = serve()
    with dstore.Node(served.address) as node:
        node.set_many({"k": "value", "large": LARGE})
    served.kill()
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    served.start(0.1, copy)
    assert join(served).get_many(["k", "large"]) == {"k": "value", "large": LARGE}
    assert served.age >= LEASE


def _newer(place: Path) -> None:
    with dstore.Global("tcp://127.0.0.1:0", data=place):
        pass
    edit(place, "PRAGMA user_version = 99")


def _not_empty(place: Path) -> None:
    place.mkdir()
    (place / "letter").write_text("dear reader")


def _unreadable(place: Path) -> None:
    with dstore.Global("tcp://127.0.0.1:0", data=place):
        pass
    (place / DATABASE).write_bytes(b"not a database" * 1000)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (_newer, "was written by a newer dstore"),
        (Path.touch, "is not a folder; choose another path"),
        (_not_empty, "is not empty and is no data folder"),
        (_unreadable, "is damaged"),
        (lambda place: place.symlink_to("/no/such/folder"), "cannot be used"),
    ],
    ids=["newer", "file", "not empty", "unreadable", "dangling"],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    place: Path, prepare: Callable[[Path], None], says: str
) -> None:
    prepare(place)
    assert says in refused("--data", str(place))


FORK = """
import os, subprocess, sys
import dstore

place = sys.argv[1]

def another():
    command = [sys.executable, "-m", "dstore", "global", "--address", "tcp://127.0.0.1:0"]
    ended = subprocess.run([*command, "--data", place], capture_output=True, text=True, timeout=20)
    return ended.returncode, "in use" in ended.stderr

server = dstore.Global("tcp://127.0.0.1:0", data=place)
server.start()
node = dstore.Node(server.address)
node.set_many({"before": 1, "large": bytes(100_000)})
child = os.fork()
if not child:
    try:
        server.start()
    except dstore.GlobalClosed:
        try:
            dstore.Global("tcp://127.0.0.1:0", data=place).bind()
        except dstore.DataError as error:
            assert "forked" in str(error)
            server.close()
            sys.exit(0)  # through the end of Python, which collects everything
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert another() == (2, True)
node.set("after", 2)
os._exit(0)  # as if it was killed
"""


def test_a_forked_child_that_ends_takes_nothing_with_it(place: Path) -> None:
    run_python(FORK, str(place))
    with embedded(place) as node:
        found = {"before": 1, "after": 2, "large": bytes(100_000)}
        assert node.get_many(found) == found


# ---- a disk that is full or fails -------------------------------------------------------------


@pytest.mark.parametrize("size", [40_000, 400_000], ids=["small", "large"])
def test_on_a_full_disk_deletions_go_on_and_then_values_fit_again(
    serve: Callable[..., Durable], join: Make, tmp_path: Path, size: int
) -> None:
    with mounted_disk(tmp_path, "42m") as disk:
        served = serve(disk / "data")
        node = join(served)
        count = fill(node, size)
        assert count > 3
        assert node.get("k0") == bytes(size)
        with pytest.raises(dstore.StoreFull, match="free space on that disk"):
            node.set("k0", bytes(size + 1), replace=True)
        node.delete_many([f"k{number}" for number in range(count - 1)])
        set_when_there_is_room(node, "new", bytes(size))
        served.start_again()
        assert sorted(join(served).keys()) == [f"k{count - 1}", "new"]
        assert join(served).get("new") == bytes(size)
        served.kill()


def fill(node: dstore.Node, size: int) -> int:
    """Set values until there is no room. Returns how many were set."""
    for number in range(10_000):
        try:
            node.set(f"k{number}", bytes(size))
        except dstore.StoreFull:
            return number
    raise AssertionError("the disk is not full")


def set_when_there_is_room(node: dstore.Node, key: str, value: bytes) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return node.set(key, value)
        except dstore.StoreFull:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no prlimit")
def test_a_disk_that_fails_ends_global_and_nothing_acknowledged_is_lost(
    place: Path, join: Make
) -> None:
    address, process = start_global("--data", str(place), "--lease", "0.1", stderr=subprocess.PIPE)
    with dstore.Node(address, timeout=SHORT) as node:
        node.set_many({"k": "value", "large": LARGE})
        node.delete("k")
        # From now on each write to a file fails. (A file system with open files cannot be made
        # read-only.)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, 1))
        with pytest.raises((dstore.OutcomeUnknown, dstore.GlobalUnavailable)):
            node.set("lost", "value")
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == FAILED
    (line,) = (line for line in said.splitlines() if line.startswith("dstore: "))
    assert "cannot be written" in line and "start Global again" in line
    assert "Traceback" not in said
    with embedded(place) as node:
        assert set(node.keys()) - {"lost"} == {"large"}
        assert node.get("large") == LARGE


# ---- damage -----------------------------------------------------------------------------------


def _flip_in_row(place: Path) -> None:
    edit(place, "UPDATE kept SET body = x'00' || substr(body, 2)")


def _flip_in_files(place: Path) -> None:
    for file in (place / "large").iterdir():
        file.write_bytes(bytes(len(LARGE)))


def _remove_files(place: Path) -> None:
    for file in (place / "large").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "value", "says"),
    [
        (_flip_in_row, "value", "was damaged on Global's disk; delete the key, or replace"),
        (_flip_in_row, LARGE, "was damaged on Global's disk; delete the key, or replace"),
        (_remove_files, LARGE, "was damaged on Global's disk; delete the key, or replace"),
        (_flip_in_files, LARGE, "was damaged on its way, or at Global"),
    ],
    ids=["row", "row of a large value", "lost file", "file"],
)
def test_a_damaged_value_is_not_missing_and_can_be_freed(
    serve: Callable[..., Durable],
    join: Make,
    place: Path,
    damage: Callable[[Path], None],
    value: object,
    says: str,
) -> None:
    served = serve()
    with dstore.Node(served.address) as node:
        node.set_many({"one": value, "two": value})
    served.kill()
    damage(place)
    served.start(0.1)
    node = join(served)
    for key in ("one", "two"):
        with pytest.raises(dstore.ValueCorrupt, match=says):
            node.get(key)
        with pytest.raises(dstore.KeyOccupied):
            node.set(key, "other")
    node.delete("one")
    node.set("two", "sound", replace=True)
    node.set("one", LARGE)
    served.start_again(0.1)
    assert join(served).get_many(["one", "two"]) == {"one": LARGE, "two": "sound"}


# ---- the command line -------------------------------------------------------------------------


def test_stats_show_the_disk(serve: Callable[..., Durable], join: Make) -> None:
    served = serve()
    node = join(served)
    node.set_many({"a": 1, "b": 2})
    node.set("c", 3)
    figures = node.global_stats()
    assert figures["disk_changes"] == 3
    assert figures["disk_commits"] >= 2
    assert figures["disk_database_bytes"] + figures["disk_log_bytes"] > 0
    shown = subprocess.run(
        [sys.executable, "-m", "dstore", "stats", "--address", served.address],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        check=True,
    )
    assert "disk_commit_ms_max" in shown.stdout
