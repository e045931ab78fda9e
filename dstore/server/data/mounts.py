"""Which kind of file system a path is on, as Linux lists it in ``/proc/self/mountinfo``.

A data folder must be on a disk of this machine. On a network file system two machines may both hold
the lock of a folder, and a sync may return before the server has written anything.
"""

from __future__ import annotations

import os
import re

MOUNTINFO = "/proc/self/mountinfo"

NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs", "gpfs",
    "lustre", "mfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb2", "smb3",
    "smbfs", "vboxsf", "virtiofs", "vmhgfs",
    "fuse.ceph", "fuse.ceph-fuse", "fuse.curlftpfs", "fuse.davfs", "fuse.davfs2", "fuse.gcsfuse",
    "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.lizardfs", "fuse.moosefs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "fuse.vmhgfs-fuse",
})  # fmt: skip
"""File systems whose files are on other machines. A plain local ``fuse`` is none of them."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


def network_kind(path: str) -> str:
    """Return the network file system that ``path`` is on, such as ``"nfs4"``, else ``""``.

    ``path`` is absolute and has no symbolic links. Where there is no list of mounts, as on macOS,
    the result is ``""``. Safe from any thread.
    """
    try:
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            kind = kind_of(path, file.read())
    except OSError:
        return ""
    return kind if kind in NETWORK else ""


def kind_of(path: str, mountinfo: str) -> str:
    """Return the kind of file system of ``path`` in a text like that of ``/proc/self/mountinfo``.

    The longest mount point above the path counts; of two mounts at one place, the later. Returns
    ``""`` if there is none. See proc_pid_mountinfo(5) for the format.
    """
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        before, found, after = line.partition(" - ")
        fields = before.split(" ")
        if not found or len(fields) < 6:
            continue
        point = _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip(os.sep) + os.sep)
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind
