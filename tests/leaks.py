"""Finds what a test leaves behind: threads, file descriptors, child processes, shared memory.

A :class:`Footprint` lists what this process holds at one moment. What ends by itself a moment later
is waited for, within a bound. An unclosed zmq socket appears as a descriptor, and also causes a
warning when it is collected.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import zmq

from dstore import testing
from dstore.shm import clean, is_whole

GRACE = 5.0
"""Seconds for threads and children to end after the test."""
PAUSE = 0.02
"""Seconds between two looks."""

ROOT_VARIABLE = "DSTORE_SHM"
DESCRIPTORS = Path("/proc/self/fd")
TASKS = Path("/proc/self/task")


class Footprint:
    """What this process holds now. ``since(earlier)`` lists what is new since then."""

    def __init__(self) -> None:
        self.threads = {thread for thread in threading.enumerate() if thread.is_alive()}
        self.children = child_processes()
        self.descriptors = open_descriptors()
        self.shared = shared_files()

    def since(self, earlier: Footprint) -> list[str]:
        """One line for each thing that exists now and did not exist at ``earlier``."""
        return sorted(
            [f"thread {thread.name}" for thread in self.threads - earlier.threads]
            + [f"child process {pid}: {_command(pid)}" for pid in self.children - earlier.children]
            + [f"descriptor {fd}: {what}" for fd, what in self.descriptors - earlier.descriptors]
            + [f"shared-memory file {path}" for path in self.shared - earlier.shared]
        )


def left_behind(earlier: Footprint, grace: float = GRACE) -> list[str]:
    """What is new since ``earlier`` and still exists after at most ``grace`` seconds.

    Garbage is collected only if something is new, which it may hold: that takes longer than most
    tests.
    """
    deadline = time.monotonic() + grace
    while leaks := Footprint().since(earlier):
        gc.collect()
        leaks = Footprint().since(earlier)
        if not leaks or time.monotonic() >= deadline:
            break
        time.sleep(PAUSE)
    return leaks


def shared_files() -> set[str]:
    """What would remain in shared memory even after the next Node has cleaned up."""
    root = os.environ.get(ROOT_VARIABLE)
    if root is None:
        return set()
    clean(root)
    # Unlike rglob, this ignores files that other processes remove meanwhile.
    return {os.path.join(place, name) for place, _, names in os.walk(root) for name in names}


@contextlib.contextmanager
def private_shared_memory() -> Iterator[None]:
    """A folder in shared memory for these tests alone, so that other runs do not disturb them."""
    os.umask(0o022)  # a folder that a group may write is refused
    with testing.private_shared_memory() as folder:
        os.chmod(folder, 0o711)  # other users of these tests have a folder of their own in it
        yield


def start_what_stays() -> None:
    """Start what stays until the process ends, so that no test is reported for it."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    # The thread of pyzmq, and its sockets, that release what was sent without a copy.
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://warm")
        two.connect("inproc://warm")
        one.send(bytes(1 << 20), copy=False)
        two.recv()
    is_whole(memoryview(b"1"))  # a pipe


def child_processes() -> set[int]:
    """Ids of the direct children of this process, of all its threads."""
    started = {child.pid for child in multiprocessing.active_children() if child.pid}
    for listing in TASKS.glob("*/children"):
        try:
            started.update(int(pid) for pid in listing.read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return started


def open_descriptors() -> set[tuple[int, str]]:
    """Each open descriptor with its target; empty where the system has no list of them."""
    if not DESCRIPTORS.is_dir():
        return set()
    found = set()
    for name in os.listdir(DESCRIPTORS):
        try:
            found.add((int(name), os.readlink(DESCRIPTORS / name)))
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "(ended)"
