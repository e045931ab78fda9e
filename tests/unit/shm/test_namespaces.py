"""Where a process runs: which others have a file mapped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from dstore.shm.namespaces import users_of


def test_the_processes_that_have_a_file_mapped_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(bytes(4096))
    status = path.stat()
    assert users_of(status.st_dev, status.st_ino) == 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert users_of(status.st_dev, status.st_ino) == 1
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(ready[1], b".")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        assert users_of(status.st_dev, status.st_ino) == 2
        os.write(done[1], b".")
        assert os.waitpid(child, 0)[1] == 0
        for end in (*ready, *done):
            os.close(end)
    assert users_of(status.st_dev, status.st_ino) == 0
