"""Imports run one way. The tables say which room may know of which; the tests hold them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "dstore"
SOURCES = Path(__file__).resolve().parents[2] / PACKAGE

GROUND = {"errors", "clock", "config", "background"}
INSIDE = GROUND | {"messages", "content", "wire", "codecs", "core", "engines", "transport", "shm"}
PUBLIC = {"", "errors", "config", "version", "node", "global_server"}

# A room is a module or a folder of dstore; it may import itself and the rooms on the right.
# "" is dstore/__init__.py, the public names.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "background": set(),
    "config": set(),
    "version": set(),
    "reentrancy": set(),
    "messages": {"errors", "config"},
    "content": {"errors", "config", "messages"},
    "frames": {"errors", "messages"},
    "wire": {"errors", "config", "messages", "frames"},
    "codecs": {"errors", "config", "messages"},
    "engines": {"errors", "config", "messages", "background"},
    "core": {"errors", "config", "messages", "content", "engines.base"},
    "transport": {"errors", "config", "messages", "wire", "background"},
    "limited_log": {"clock"},
    "shm": {"errors", "config", "messages", "background", "limited_log", "engines"},
    "files": {"codecs", "content", "messages"},
    "large": INSIDE | {"limited_log", "files"},
    "watch": INSIDE | {"background", "translate"},
    "local": INSIDE | {"limited_log", "files", "large", "reentrancy", "watch"},
    "translate": INSIDE,
    "verbs": INSIDE | {"files", "large", "translate"},
    "node": INSIDE | {"files", "local", "translate", "verbs", "watch"},
    "helpers": INSIDE,
    "driver": INSIDE | {"files", "helpers", "large", "local", "reentrancy"},
    "loops": {"background"},
    "async_node": INSIDE | {"driver", "files", "loops", "node", "translate", "verbs", "watch"},
    "global_server": INSIDE | {"limited_log", "reentrancy"},
    "": PUBLIC - {""} | {"async_node", "codecs", "translate", "verbs", "watch"},
    "testing": {"errors", "config", "messages", "content", "core", "engines"},
    "console": set(),
    "repl": PUBLIC | {"background", "console"},
    "demo": PUBLIC | {"console"},
    "cli": PUBLIC | {"console", "repl", "demo", "transport.addresses"},
    "__main__": {"cli"},
}

# What is not part of Python has few doors.
DOORS: dict[str, set[str]] = {
    "blake3": {"content", "demo"},
    "cmd2": {"repl"},
    "msgpack": {"frames", "wire", "codecs"},
    "numpy": {"codecs"},
    "rich": {"repl", "demo", "cli"},
    "sortedcontainers": {"engines"},
    "zmq": {"transport"},
}

# These rooms compute and do nothing else: no socket, thread, file, randomness, clock or log.
PURE = {"errors", "messages", "core"}
PURE_MODULES = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "enum", "functools", "heapq",
    "itertools", "math", "operator", "types", "typing",
}  # fmt: skip


def room_of(module: str) -> str:
    """``dstore.core.cache`` is in the room ``core``; ``dstore`` itself is the room ``""``."""
    return module.removeprefix(PACKAGE).removeprefix(".").split(".")[0]


def imported(tree: ast.Module, package: str, known: set[str]) -> Iterator[str]:
    """The full name of each module that ``tree`` imports, at the top or inside a function."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            source = statement.module or ""
            if statement.level:
                parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
                source = ".".join([*parents, *filter(None, [source])])
            for alias in statement.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known else source


def refusal(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target``; None if it may."""
    room = room_of(module)
    top = target.split(".")[0]
    if top != PACKAGE:
        if room in PURE and top not in PURE_MODULES:
            return f"{module} imports {target}, but {room} is to stay pure"
        if top in DOORS and room not in DOORS[top]:
            return f"{module} imports {target}, which is for {sorted(DOORS[top])} alone"
        return None
    inside = target.removeprefix(PACKAGE).removeprefix(".")
    if room_of(target) == room or {inside, room_of(target)} & ROOMS[room]:
        return None
    return f"{module} imports {target}, and may import only {sorted(ROOMS[room])} of dstore"


def refusals(sources: dict[str, str], packages: Iterable[str] = ()) -> list[str]:
    """Every forbidden import in ``sources``, which maps a module's full name to its text."""
    found = []
    for module, text in sources.items():
        if room_of(module) not in ROOMS:
            found.append(f"{module} has no row in ROOMS")
            continue
        package = module if module in packages else module.rpartition(".")[0]
        targets = imported(ast.parse(text), package, set(sources))
        found += [reason for target in targets if (reason := refusal(module, target))]
    return found


def own_sources() -> tuple[dict[str, str], set[str]]:
    """All modules of dstore with their text, and the names of those that are packages."""
    sources, packages = {}, set()
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
            packages.add(".".join(parts))
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources, packages


def test_dstore_keeps_to_the_tables() -> None:
    assert refusals(*own_sources()) == []


def test_every_row_is_of_a_room_that_exists() -> None:
    sources, _ = own_sources()
    assert sorted(set(ROOMS) - {room_of(module) for module in sources}) == []


def test_the_table_has_no_circle() -> None:
    graph = {room: {other.split(".")[0] for other in known} for room, known in ROOMS.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dstore.core.cache", "import time"),
        ("dstore.core.cache", "from threading import Lock"),
        ("dstore.core.cache", "import zmq"),
        ("dstore.core.cache", "def f():\n    from random import random"),
        ("dstore.core.cache", "from dstore.engines.memory import MemoryEngine"),
        ("dstore.core.cache", "from dstore import wire"),
        ("dstore.core.cache", "from .. import wire"),
        ("dstore.core.cache", "from ..wire import encode"),
        ("dstore.core.cache", "import dstore"),
        ("dstore.messages", "import msgpack"),
        ("dstore.engines.memory", "from dstore.core import cache"),
        ("dstore.transport.dealer", "from dstore.core.cache import Cache"),
        ("dstore.node", "import zmq"),
        ("dstore.node", "import zmq.utils.monitor"),
        ("dstore.node", "from dstore.cli import main"),
        ("dstore.repl", "from dstore.core.cache import Cache"),
        ("dstore.newcomer", ""),
    ],
)
def test_a_forbidden_import_is_refused(module: str, text: str) -> None:
    others = {"dstore.wire": "", "dstore.core": "", "dstore.core.cache": ""}
    assert len(refusals({**others, module: text}, packages=["dstore.core"])) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dstore.core.state", "from .cache import Cache\nfrom collections import deque"),
        ("dstore.core.state", "from dstore.engines.base import Engine"),
        ("dstore.transport.dealer", "import zmq\nfrom dstore.wire import encode"),
        ("dstore.wire", "from msgpack import packb"),
        ("dstore.repl", "import cmd2\nimport dstore\nfrom dstore import Node"),
    ],
)
def test_an_allowed_import_is_not_refused(module: str, text: str) -> None:
    assert refusals({"dstore.core.cache": "", module: text}) == []
