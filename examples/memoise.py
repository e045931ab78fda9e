"""Remember the results of an expensive function across processes, each computed exactly once.

A result's key is made of the function's name and the content address of its input: equal content
has the same address in every process, so that results never become outdated. To compute a result, a
worker first sets a *claim*: SET is refused if the key is bound, so that one worker computes and the
others wait for the result. A claim expires, in case its worker dies.

    python examples/memoise.py [FOLDER] [--address tcp://HOST:PORT] [--workers 4] [--files 60]
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import sysconfig
import tokenize
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dstore

CLAIM_SECONDS = 60.0
"""After this time the claim of a worker that died is free again."""
ROUND_SECONDS = 1.0
"""After this time a worker that waits for a result looks whether the claim for it is free."""


def token_statistics(source: bytes) -> dict[str, int]:
    """Count the tokens of each kind in some Python source: the expensive function."""
    counts: Counter[str] = Counter()
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            counts[tokenize.tok_name[token.exact_type]] += 1
    except (SyntaxError, tokenize.TokenError):
        pass  # the count up to the error is a result, too
    return dict(counts)


class Memo:
    """Calls a function of stored content, unless another process has done so before."""

    def __init__(self, address: str, run: str) -> None:
        self.run = run
        self.calls = self.computed = 0
        self.node = dstore.Node(address, label="memoise")

    def call(self, function: Callable[[bytes], dict[str, int]], source: str) -> dict[str, int]:
        """Return ``function`` of the content that has the content address ``source``."""
        key = f"{self.run}/{function.__name__}/{source}"
        self.calls += 1
        while (result := self.node.get(key, None)) is None:
            try:
                self.node.set(f"{key}/claim", os.getpid(), ttl=CLAIM_SECONDS)
            except dstore.KeyOccupied:
                with suppress(dstore.WaitTimedOut):
                    self.node.wait(key, ROUND_SECONDS)
                continue
            try:
                if key not in self.node:  # else another worker finished just before our claim
                    self.node.set(key, function(self.node.get(source)))
                    self.computed += 1
            finally:
                self.node.delete(f"{key}/claim")
        return dict(result)


def work(address: str, run: str, number: int, sources: list[str]) -> None:
    """One worker: get the statistics of all sources, in an order of its own."""
    memo = Memo(address, run)
    with memo.node as node:
        random.Random(number).shuffle(sources)
        results = {source: memo.call(token_statistics, source) for source in sources}
        line = f"worker {number}: {memo.computed} computed, {memo.calls - memo.computed} reused\n"
        print(line, end="")  # one write, so that lines of workers do not mix
        node.set(f"{run}/worker/{number}", {"computed": memo.computed, "results": results})


@contextmanager
def some_global(address: str | None) -> Iterator[str]:
    """Yield the given address, or that of a Global that runs as long as the block."""
    if address:
        yield address
    else:
        with dstore.Global("tcp://127.0.0.1:0") as own:
            yield own.address


def main() -> None:
    parser = argparse.ArgumentParser(description="share the results of an expensive function")
    parser.add_argument("folder", nargs="?", type=Path, default=sysconfig.get_path("stdlib"))
    parser.add_argument("--address", default=os.environ.get("DSTORE_GLOBAL"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--files", type=int, default=60)
    args = parser.parse_args()

    paths = sorted(args.folder.glob("*.py"))[: args.files]
    run, context = f"memoise/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    with some_global(args.address) as address, dstore.Node(address, label="memoise") as node:
        contents = {node.put(content): content for content in map(Path.read_bytes, paths)}
        crew = [
            context.Process(target=work, args=(address, run, number, list(contents)))
            for number in range(args.workers)
        ]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        reports = node.get_many(list(node.keys(f"{run}/worker/"))).values()
        node.delete_many(list(node.keys(f"{run}/")))

    plain = {source: token_statistics(content) for source, content in contents.items()}
    if len(reports) < args.workers or any(report["results"] != plain for report in reports):
        raise SystemExit("a worker is missing, or has other results than a plain computation")
    computed = sum(report["computed"] for report in reports)
    print(
        f"{len(plain)} inputs, {computed} computed, {len(plain) * args.workers - computed} reused"
    )
    if computed != len(plain):
        raise SystemExit("some result was computed more than once")


if __name__ == "__main__":
    main()
