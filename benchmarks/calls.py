"""Count the Python calls that a GET miss and a DEL take in the calling thread, and their files.

``python -m benchmarks.calls`` starts a Global in another process, and prints for each command how
many Python functions are called in how many source files, and how often the next function is in
another file than the one before. ``--list`` also prints each call.

``PYTHONPATH`` decides which dstore is counted, so that two versions can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import dstore
from dstore.testing import global_process

PACKAGE = Path(dstore.__file__).parent
ROUNDS = 5
"""Each command is counted this often, after one that is not counted; the lowest count is shown."""


def count(call: Callable[[], object]) -> list[tuple[str, str]]:
    """Call a function. Returns the file and the name of each Python function called by it."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            calls.append((code.co_filename, getattr(code, "co_qualname", code.co_name)))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls[1:]  # without the function itself


def _name(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else path.name


def _report(title: str, calls: list[tuple[str, str]], full: bool) -> None:
    files = {file for file, _ in calls}
    moves = sum(one[0] != other[0] for one, other in itertools.pairwise(calls))
    print(f"{title}: {len(calls)} calls, {len(files)} files, {moves} moves between files")
    if full:
        for file, name in calls:
            print(f"    {_name(file):40} {name}")


def _measure(address: str, full: bool) -> None:
    keys = [f"key{number}" for number in range(ROUNDS + 1)]
    with dstore.Node(address) as writer, dstore.Node(address) as reader:
        for key in keys:
            writer.set(key, b"value")
        reader.join()
        misses = [count(lambda key=key: reader.get(key)) for key in keys]  # type: ignore[misc]
        _report("GET miss", min(misses[1:], key=len), full)
        deletions = [count(lambda key=key: reader.delete(key)) for key in keys]  # type: ignore[misc]
        _report("DEL", min(deletions[1:], key=len), full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.calls")
    parser.add_argument("--list", action="store_true", help="print each call")
    full = parser.parse_args().list
    with global_process() as server:
        _measure(server.address, full)


if __name__ == "__main__":
    main()
