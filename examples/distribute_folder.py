"""A folder of files distributed by content address: what is there already is not sent again.

Each file is bound to the hash of its bytes with ``put_file``; a *manifest*, under one key, has the
address of every path. To publish a new state of the folder is to put its files, most of which are
there already, and to replace the manifest. Another process restores the folder: it fetches the
addresses that it has not got, each of which is checked, and both folders are compared. Neither of
them ever holds a large file in its own memory.

    python examples/distribute_folder.py [FOLDER] [--address tcp://HOST:PORT] [--mebibytes 8]

The folder is copied first, and the copy changed. File modes and empty folders are left out.
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
    """The files below a folder by their paths in it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {os.fsencode(path.relative_to(folder)): path for path in paths}


def publish(node: dstore.Node, key: str, folder: Path) -> int:
    """Make this state of the folder the one that others restore. How many bytes Global has more.

    What lies in memory that we share with Global is not sent; else large files travel in chunks.
    """
    before, known = node.global_stats(), set(node.get(key, {}).values())
    manifest: Manifest = {name: node.put_file(path) for name, path in files_of(folder).items()}
    node.set(key, manifest, replace=True)
    after = node.global_stats()
    skipped = sum(address in known for address in manifest.values())
    grown, in_chunks = (after[figure] - before[figure] for figure in ("bytes", "bytes_in"))
    print(
        f"published {len(manifest)} files, {skipped} of them skipped: Global has {grown:,} bytes "
        f"more, of which {in_chunks:,} were sent in chunks",
        flush=True,
    )
    return int(grown)


def restore(node: dstore.Node, key: str, folder: Path, here: Manifest) -> Manifest:
    """Bring a folder, in which ``here`` is, to the published state; what is there then."""
    manifest: Manifest = node.get(key)
    for name in here.keys() - manifest.keys():
        (folder / os.fsdecode(name)).unlink()
    for name, address in manifest.items():
        path = Path(os.fsdecode(name))
        if path.is_absolute() or ".." in path.parts:  # whoever can write the manifest chose it
            raise SystemExit(f"{path} is not within the folder")
        if here.get(name) != address:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            node.get_file(address, folder / path)
    return manifest


def follow(address: str, key: str, folder: Path, pipe: Connection) -> None:
    """The other process: restore the folder whenever it is told to, until the pipe ends."""
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
    """A large file, and some that will change."""
    (folder / "large").write_bytes(os.urandom(mebibytes << 20))
    for name in ("deleted", "changed", "renamed"):
        (folder / name).write_text(f"This file will be {name}.\n")


def change(folder: Path) -> None:
    """What happens to a folder between two states of it."""
    (folder / "deleted").unlink()
    (folder / "changed").write_text("It has other content now.\n")
    (folder / "renamed").rename(folder / "with another name")
    (folder / "new").mkdir(exist_ok=True)
    (folder / "new" / "file").write_text("It was not there before.\n")


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """The Global that was asked for, or one of our own for as long as this runs."""
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
