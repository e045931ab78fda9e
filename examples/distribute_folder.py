"""Distribute a folder of files by content address, without sending twice what Global has.

Each file is bound to the hash of its bytes with ``put_file``. A *manifest*, under one key, has the
address of every path. A new state of the folder is published in two steps: its files are put, most
of which Global has already, and the manifest is replaced. Another process restores the folder: it
fetches the files that it does not have, checks each of them, and both folders are compared. Neither
process ever holds a large file in its own memory.

    python examples/distribute_folder.py [FOLDER] [--address tcp://HOST:PORT] [--mebibytes 8]

The example works on a copy of the folder. File modes and empty folders are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import dstore

Manifest = dict[bytes, str]
"""The content address of each file by its path in the folder. Paths are bytes, as on disk."""


def files_of(folder: Path) -> dict[bytes, Path]:
    """Return the files below a folder, by their paths relative to it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {os.fsencode(path.relative_to(folder)): path for path in paths}


def publish(node: dstore.Node, key: str, folder: Path) -> int:
    """Make this the state that others restore. Return by how many bytes Global grew.

    A file in memory that is shared with Global is not sent. Others travel in chunks if large.
    """
    before, known = node.global_stats(), set(node.get(key, {}).values())
    manifest: Manifest = {name: node.put_file(path) for name, path in files_of(folder).items()}
    node.set(key, manifest, replace=True)
    after = node.global_stats()
    skipped = sum(address in known for address in manifest.values())
    grown, in_chunks = (after[metric] - before[metric] for metric in ("bytes", "bytes_in"))
    print(
        f"published {len(manifest)} files, {skipped} of them skipped: Global has {grown:,} bytes "
        f"more, of which {in_chunks:,} were sent in chunks",
        flush=True,
    )
    return int(grown)


def restore(node: dstore.Node, key: str, folder: Path, here: Manifest) -> Manifest:
    """Bring a folder that contains ``here`` to the published state. Return its new manifest."""
    manifest: Manifest = node.get(key)
    for name in here.keys() - manifest.keys():
        (folder / os.fsdecode(name)).unlink()
    for name, address in manifest.items():
        path = Path(os.fsdecode(name))
        if path.is_absolute() or ".." in path.parts:  # any client can write the manifest
            raise SystemExit(f"{path} is not within the folder")
        if here.get(name) != address:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            node.get_file(address, folder / path)
    return manifest


def follow(address: str, key: str, folder: Path, pipe: Connection) -> None:
    """The other process: restore the folder at each request, until the pipe ends."""
    here: Manifest = {}
    with dstore.Node(address, label="receiver") as node:
        while pipe.recv() == "restore":
            was, here = here, restore(node, key, folder, here)
            fetched = sum(was.get(name) != address for name, address in here.items())
            print(f"restored {len(here)} files, {fetched} of them fetched", flush=True)
            pipe.send(len(here))


def check(original: Path, restored: Path) -> None:
    """Compare two folders, file by file."""
    ours, theirs = files_of(original), files_of(restored)
    if ours.keys() != theirs.keys():
        raise SystemExit("the restored folder has other files")
    for name, path in ours.items():
        if path.read_bytes() != theirs[name].read_bytes():
            raise SystemExit(f"{path} was restored with other content")


def add_some(folder: Path, mebibytes: int) -> None:
    """Add a large file, and some files that will change."""
    (folder / "large").write_bytes(os.urandom(mebibytes << 20))
    for name in ("deleted", "changed", "renamed"):
        (folder / name).write_text(f"This file will be {name}.\n")


def change(folder: Path) -> None:
    """Make the changes that separate two states of the folder."""
    (folder / "deleted").unlink()
    (folder / "changed").write_text("It has other content now.\n")
    (folder / "renamed").rename(folder / "with another name")
    (folder / "new").mkdir(exist_ok=True)
    (folder / "new" / "file").write_text("It was not there before.\n")


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    default = Path(sysconfig.get_path("stdlib")) / "email"
    parser = argparse.ArgumentParser(description="distribute a folder by content address")
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--mebibytes", type=int, default=8, help="size of one file that is added")
    args = parser.parse_args()

    key, context = f"distribute-folder/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with (
        tempfile.TemporaryDirectory() as place,
        some_global(args.address) as address,
        dstore.Node(address, label="publisher") as node,
    ):
        original, restored = Path(place, "original"), Path(place, "restored")
        shutil.copytree(args.folder, original, ignore=shutil.ignore_patterns("__pycache__"))
        add_some(original, args.mebibytes)
        restored.mkdir()
        arguments = (address, key, restored, theirs)
        receiver = context.Process(target=follow, args=arguments, daemon=True)
        receiver.start()
        theirs.close()  # so that a receiver that dies ends its pipe
        for state in ("new", "unchanged", "changed"):
            if state == "changed":
                change(original)
            grown = publish(node, key, original)
            if state == "unchanged" and grown and not args.address:
                raise SystemExit("something was sent although nothing had changed")
            ours.send("restore")
            ours.recv()
            check(original, restored)
        ours.send("end")
        receiver.join()
        node.delete(key)
    print("all states of the folder were restored, and what was there already was not sent again")


if __name__ == "__main__":
    main()
