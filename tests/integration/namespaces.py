"""Programs that run where names and networks are what a test wants them to be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT = 60
_SET_UP = 'ip link set lo up && mount --bind "$0" /etc/hosts || exit 77; exec "$@"'

PRELUDE = """
import socket, sys
import dstore

def hosts(*lines):
    with open("/etc/hosts", "w") as file:
        file.write("".join(line + "\\n" for line in lines))

def works(node, key="k"):
    node.set(key, 1, replace=True)
    assert node.get(key) == 1
    return True
"""


def run(tmp_path: Path, script: str, *hosts: str) -> str:
    """What a script prints that runs in a network of its own, which is only ``lo``, and with these
    lines in ``/etc/hosts``. In the script ``hosts`` writes others. Skips the test where this
    cannot be had.
    """
    if not all(map(shutil.which, ("unshare", "ip", "mount"))):
        pytest.skip("there is no unshare, ip or mount here")
    file = tmp_path / "hosts"
    file.write_text("".join(f"{line}\n" for line in hosts))
    inside = ["sh", "-c", _SET_UP, str(file), sys.executable, "-W", "error", "-c"]
    done = subprocess.run(
        ["unshare", "--mount", "--net", *inside, PRELUDE + script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("no namespaces here: that takes root, and a kernel that permits it")
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}{done.stderr}"
    return done.stdout
