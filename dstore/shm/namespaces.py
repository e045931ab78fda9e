"""Where this process runs, as far as shared memory depends on it: boot, namespaces, file systems.

Processes that see the same file may still differ. Containers can share a folder and have clocks of
their own (a time namespace shifts ``CLOCK_BOOTTIME``), networks of their own, where 127.0.0.1 is
another machine, and file trees of their own, where a path is another socket. A file can also
outlive the machine's boot, after which the clock starts again at zero.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import NamedTuple

from dstore.shm.directory import Unusable

BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAMESPACES = "/proc/self/ns"
MOUNTS = "/proc/self/mountinfo"
TMPFS = "tmpfs"


class Surroundings(NamedTuple):
    """What a process shares with another one, as texts that are equal if it is the same."""

    boot: str
    time: str
    network: str
    mount: str


def surroundings() -> Surroundings:
    """Return those of this process. Raises Unusable if the system does not tell."""
    try:
        boot = _boot_id()
        root = os.stat("/")  # after a chroot a path is another file, in the same namespace
        mount = f"{_namespace('mnt')} {root.st_dev}:{root.st_ino}"
        return Surroundings(boot, time_namespace(), _namespace("net"), mount)
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be read: {error.strerror}; mount /proc") from None


@functools.cache
def _boot_id() -> str:
    with open(BOOT_ID, "rb", buffering=0) as file:
        return str(file.read(), "latin-1").strip()


def time_namespace() -> str:
    """Return the name of the time namespace. Raises OSError."""
    return _namespace("time")


def _namespace(kind: str) -> str:
    """The name of a namespace; empty if the system has no namespaces of this kind."""
    try:
        return os.readlink(f"{NAMESPACES}/{kind}")
    except FileNotFoundError:
        os.stat(NAMESPACES)  # it is there, or there is no /proc at all
        return ""


def users_of(device: int, inode: int) -> int:
    """Return how many processes of this user have mapped a file. Looks at each process."""
    place = f" {os.major(device):02x}:{os.minor(device):02x} {inode} "
    count = 0
    for process in os.scandir("/proc"):
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if process.stat().st_uid == os.geteuid():
                    with open(f"/proc/{process.name}/maps", errors="replace") as maps:
                        count += any(place in line for line in maps)
    return count


def file_system(device: int) -> str:
    """Return the kind of the file system with this ``st_dev``; empty if it is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                # The third field is the device; the kind comes after a dash.
                mount, _, rest = line.partition(" - ")
                if mount.split()[2] == number:
                    return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""
