"""Count the words of real files with several processes that share one dictionary.

The parent stores each file once, and a list of words to ignore. Each worker reads its share of the
files and, for each of them, the list: only the first read of the list asks Global. The partial
counts come back through dstore as well. A count by one process checks the sum.

    python examples/word_count.py [FOLDER] [--address tcp://HOST:PORT] [--workers 4]
"""

from __future__ import annotations

import argparse
import keyword
import multiprocessing
import os
import re
import sysconfig
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dstore


def words(content: bytes, ignored: list[str]) -> Counter[str]:
    found = re.findall(r"[^\W\d_]{2,}", content.decode(errors="replace").lower())
    counts = Counter(found)
    for word in ignored:
        del counts[word]
    return counts


def work(address: str, run: str, number: int, keys: list[str]) -> None:
    """Count the words of the files stored under ``keys``: one worker."""
    counts: Counter[str] = Counter()
    with dstore.Node(address, label=f"word count {number}") as node:
        for key in keys:
            counts += words(node.get(key), node.get(f"{run}/ignored"))
        node.set(f"{run}/counts/{number}", dict(counts))
        stats = node.stats()
        line = f"worker {number}: {len(keys)} files, {stats['hits']} reads from its own memory\n"
        print(line, end="")  # one write, so that lines of workers do not mix


def count_together(
    node: dstore.Node, files: dict[str, bytes], ignored: list[str], workers: int
) -> Counter[str]:
    """Store the files, let the workers count, and merge their counts."""
    run = f"word-count/{uuid.uuid4().hex}"  # so that two runs can use one Global
    contents = {f"{run}/files/{name}": content for name, content in files.items()}
    node.set(f"{run}/ignored", ignored)
    node.set_many(contents)
    keys, context = list(contents), multiprocessing.get_context("spawn")
    crew = [
        context.Process(target=work, args=(node.address, run, number, keys[number::workers]))
        for number in range(workers)
    ]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    partial = node.get_many(list(node.keys(f"{run}/counts/")))
    node.delete_many(list(node.keys(f"{run}/")))
    if len(partial) < workers:
        raise SystemExit(f"only {len(partial)} of {workers} workers have counted")
    return sum((Counter(counts) for counts in partial.values()), Counter())


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    parser = argparse.ArgumentParser(description="count the words of a folder's Python files")
    parser.add_argument("folder", nargs="?", type=Path, default=sysconfig.get_path("stdlib"))
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    files = {path.name: path.read_bytes() for path in sorted(args.folder.glob("*.py"))}
    ignored = sorted({word.lower() for word in keyword.kwlist})
    with some_global(args.address) as address, dstore.Node(address, label="word count") as node:
        counts = count_together(node, files, ignored, args.workers)
    for word, count in counts.most_common(10):
        print(f"{count:8,}  {word}")

    plain = sum((words(content, ignored) for content in files.values()), Counter[str]())
    if counts != plain:
        raise SystemExit("the count of the workers differs from that of one process")
    print(f"{counts.total():,} words in {len(files)} files: the same as counted by one process")


if __name__ == "__main__":
    main()
