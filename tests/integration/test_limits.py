"""A system without free descriptors, threads or sockets: the error names it, nothing aborts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dstore
from dstore.transport import limits
from tests.integration.processes import free_port
from tests.leaks import open_descriptors

pytest.importorskip("resource")

DO: dict[str, str] = {
    "node": """
with dstore.Node(address, timeout=20) as node:
    node.set(key, bytes(10), replace=True)
    assert node.get(key) == bytes(10)
    node.set(key, bytes(300_000), replace=True)
    assert len(node.get(key)) == 300_000
""",
    "connect": """
node = dstore.connect(address, timeout=20)
node.set(key, 1, replace=True)
node.close()
""",
    "async": """
import asyncio
async def tasks():
    async with dstore.AsyncNode(address, timeout=20) as node:
        await node.set(key, bytes(10), replace=True)
        await node.set(key, bytes(300_000), replace=True)
        assert len(await node.get(key)) == 300_000
asyncio.run(tasks())
""",
    "global": """
with (
    dstore.Global(f"ipc://{address}.{key}") as server,
    dstore.Global("tcp://*:0", insecure=True),
):
    pass
""",
}

SCRIPT = """
import faulthandler, logging, resource, sys
import dstore
logging.disable()
faulthandler.dump_traceback_later(50, exit=True)
count, address = int(sys.argv[1]), sys.argv[2]
key = f"k{count}"
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
try:
    exec(compile(sys.argv[3], "<case>", "exec"))
except (dstore.GlobalUnavailable, dstore.AddressError) as error:
    print(type(error).__name__, error)
else:
    print("done")
"""

LIMITS = {"node": (8, 44), "connect": (8, 44), "async": (8, 48), "global": (8, 84)}


def ended(*command: str) -> str:
    """Run a program that must end without an error. Returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("what", DO)
def test_any_limit_of_descriptors_is_met_with_an_error_or_suffices(
    what: str, free_global: dstore.Global, tmp_path: Path
) -> None:
    address = str(tmp_path / "s") if what == "global" else free_global.address
    least, most = LIMITS[what]

    def at(count: int) -> str:
        return ended(sys.executable, "-W", "error", "-c", SCRIPT, str(count), address, DO[what])

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(at, range(least, most, 2)))
    error = "AddressError" if what == "global" else "GlobalUnavailable"
    refusals = [each for each in told if each != "done\n"]
    assert all(each.startswith(error) for each in refusals)
    assert "of 8 left; close files and connections, or raise its limit (ulimit -n)" in told[0]
    assert told[-1] == "done\n"


def test_the_descriptors_that_are_counted_are_those_that_are_needed(tmp_path: Path) -> None:
    before = len(open_descriptors())
    with dstore.Global(f"ipc://{tmp_path}/g") as server:
        of_global = len(open_descriptors()) - before
        assert of_global <= limits.GLOBAL_DESCRIPTORS
        script = f"""
import os
import dstore
from dstore.transport import limits
from tests.integration.processes import free_port
def count():
    return len(os.listdir("/proc/self/fd"))
before = count()
with dstore.Node({server.address!r}) as node:
    node.set("a", bytes(300_000))
    node.get("a")
    assert limits.LINK_DESCRIPTORS - 4 <= count() - before <= limits.LINK_DESCRIPTORS
"""
        if os.path.isdir("/proc/self/fd"):
            ended(sys.executable, "-W", "error", "-c", script)


# Over TCP: libzmq 4.3.5 ends a process that accepts an ipc connection when no descriptor is left.
LATER = """
import faulthandler, logging, os, re, resource, sys, threading
import dstore
logging.disable()
faulthandler.dump_traceback_later(100, exit=True)
path = sys.argv[1]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))

def take():
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        return taken

def give(taken):
    for each in taken:
        os.close(each)

def in_threads(count):
    gate, said = threading.Barrier(count), []
    def call():
        gate.wait()
        try:
            node.set("k", bytes(10), replace=True)
            said.append("done")
        except dstore.GlobalUnavailable as error:
            said.append(str(error))
    threads = [threading.Thread(target=call) for _ in range(count)]
    for each in threads: each.start()
    for each in threads: each.join()
    return said

node = dstore.Node(path, timeout=1)
server = dstore.Global(path)
server.start()
node.join(20)
taken = take()
# How many are free at a time depends on what the other threads take for a moment.
print({re.sub("more than [0-9]+ of", "more than N of", each) for each in in_threads(8)} - {"done"})
try:
    dstore.Node(path)
except dstore.GlobalUnavailable as error:
    print(error)
server.close()
node.close()
give(taken)
with dstore.Global(path), dstore.Node(path) as node:
    node.join(20)
    print(set(in_threads(8)))
"""


def test_descriptors_run_out_when_a_node_and_a_global_are_at_work() -> None:
    said = ended(sys.executable, "-c", LATER, f"tcp://127.0.0.1:{free_port()}").splitlines()
    assert said[0].count("descriptors are needed") == 1
    assert said[1].startswith(f"{limits.LINK_DESCRIPTORS + limits.SPARE_DESCRIPTORS} descriptors")
    assert said[2] == "{'done'}"


def test_the_first_large_reply_needs_no_descriptor() -> None:
    """It is sent without a copy, for which pyzmq has a context of its own."""
    script = (
        LATER.partition("node = ")[0]
        + """
import multiprocessing
def read(path, gate):
    gate.wait()
    with dstore.Node(path, shm="") as node:
        assert len(node.get("large")) == 3_000_000

context = multiprocessing.get_context("fork")
gate, done = context.Event(), context.Event()
reader = context.Process(target=read, args=(path, gate))
reader.start()
server = dstore.Global(path, shm="")
server.start()
with dstore.Node(path, shm="") as node:
    node.set("large", bytes(3_000_000))
taken = take()
give([taken.pop() for _ in range(3)])  # for the connections of the reader
gate.set()
reader.join()
give(taken)
server.close()
print(reader.exitcode)
"""
    )
    assert ended(sys.executable, "-c", script, f"tcp://127.0.0.1:{free_port()}") == "0\n"


# ---- threads ----------------------------------------------------------------------------------

NO_THREADS = """
import sys, threading
import dstore
allowed = int(sys.argv[1])
start = threading.Thread.start
def refuse(thread):
    global allowed
    allowed -= 1
    if allowed < 0:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
try:
    exec(compile(sys.argv[2], "<case>", "exec"))
except (dstore.GlobalUnavailable, dstore.AddressError) as error:
    print(type(error).__name__, error)
else:
    print("done")
"""

WITHOUT_CALLS: dict[str, tuple[str, str]] = {
    "node": ("GlobalUnavailable", "with dstore.Node('tcp://127.0.0.1:9'): pass"),
    "name": ("GlobalUnavailable", "with dstore.Node('tcp://localhost:9'): pass"),
    "async": ("GlobalUnavailable", "dstore.AsyncNode('tcp://127.0.0.1:9').node.close()"),
    "connect": ("GlobalUnavailable", "dstore.connect('tcp://127.0.0.1:9').close()"),
    "global": ("AddressError", "dstore.Global('tcp://127.0.0.1:0').bind()"),
}


@pytest.mark.long
@pytest.mark.parametrize("what", WITHOUT_CALLS)
@pytest.mark.parametrize("allowed", range(4))
def test_no_thread_can_be_started(what: str, allowed: int) -> None:
    error, script = WITHOUT_CALLS[what]
    told = ended(sys.executable, "-W", "error", "-c", NO_THREADS, str(allowed), script)
    assert told.startswith(f"{error} the system gives no")
    assert "thread" in told


WITHOUT_LATER = """
import threading
with dstore.Global("tcp://127.0.0.1:0") as server:
    async def tasks():
        node = dstore.AsyncNode(server.address)
        await node.join()
        allowed = 0
        globals()["allowed"] = 0
        await node.set("small", 1)
        for call in (node.set("large", bytes(300_000)), node.join()):
            try:
                await call
            except dstore.GlobalUnavailable as error:
                print(error)
        try:
            node.watch(callback=print)
        except dstore.GlobalUnavailable as error:
            print(error)
        await node.close()
    import asyncio
    asyncio.run(tasks())
    globals()["allowed"] = 100
"""


def test_no_thread_can_be_started_later() -> None:
    told = ended(sys.executable, "-W", "error", "-c", NO_THREADS, "100", WITHOUT_LATER)
    said = "the system gives no more threads (can't start new thread); end some, or raise the limit"
    assert [each.startswith(said) for each in told.splitlines()] == [True, True, False]
    assert told.splitlines()[2] == "done"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root can become a user with a limit"
)
def test_the_system_gives_no_threads() -> None:
    """With the limit of a user that has no other process, where ZeroMQ would end the process."""
    script = """
import os, resource, sys
import dstore, threading
os.setgroups([]); os.setgid(64_321); os.setuid(64_321)
_, hard = resource.getrlimit(resource.RLIMIT_NPROC)
for count in range(1, 12):
    resource.setrlimit(resource.RLIMIT_NPROC, (count, hard))
    try:
        dstore.Node("tcp://127.0.0.1:9", shm="").close()
        print("done")
    except dstore.GlobalUnavailable as error:
        print("refused" if "gives no more threads" in str(error) else error)
"""
    told = ended(sys.executable, "-c", script).split()
    if "refused" not in told:
        pytest.skip("this system does not count the threads of a user")
    assert told[0] == "refused"
    assert set(told) <= {"refused", "done"}


# ---- sockets of ZeroMQ ------------------------------------------------------------------------


@pytest.mark.long
def test_more_threads_wait_than_zeromq_has_sockets_for_by_itself() -> None:
    script = """
import resource, threading
import dstore
COUNT = 1100
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
wanted = 8 * COUNT
if hard != resource.RLIM_INFINITY and hard < wanted:
    print("skip"); raise SystemExit
resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
threading.stack_size(256 << 10)
failed = []
with dstore.Global("tcp://127.0.0.1:0") as server, dstore.Node(server.address, timeout=60) as node:
    def wait():
        try:
            assert node.wait("key", timeout=100) == 1
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=wait) for _ in range(COUNT)]
    for each in threads: each.start()
    while len(node._local.host.link.channels._open) < COUNT and not failed:
        threading.Event().wait(0.05)
    node.set("key", 1)
    for each in threads: each.join()
print(failed[:1])
"""
    told = ended(sys.executable, "-c", script)
    if told == "skip\n":
        pytest.skip("the hard limit of descriptors is too low")
    assert told == "[]\n"


def test_the_true_limit_is_named(
    node: Callable[..., dstore.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "sockets_max", lambda: 12)
    few = node()
    few.set("a", 1)
    link = few._local.host.link  # type: ignore[union-attr]
    taken = []
    told = ""
    while not told:
        try:
            taken.append(link.channels.take())
        except dstore.GlobalUnavailable as error:
            told = str(error)
    assert "let fewer threads call it at a time" in told
    for each in taken:
        link.channels.give_back(each)


def test_commands_say_it_in_one_line(free_global: dstore.Global) -> None:
    for command, code in ((["get", "k", "--address", free_global.address], 3), (["global"], 2)):
        shell = f"ulimit -n 20; exec {sys.executable} -m dstore {' '.join(command)}"
        done = subprocess.run(
            ["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code
        assert done.stdout == ""
        assert done.stderr.startswith("dstore: ") and done.stderr.count("\n") == 1
        assert "raise its limit (ulimit -n)" in done.stderr
