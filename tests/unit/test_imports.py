"""Imports run one way. The tables say which room may know of which; the tests hold them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "dstore"
SOURCES = Path(__file__).resolve().parents[2] / PACKAGE

GROUND = {"errors", "clock", "config", "native", "logs", "background", "checks", "quoting"}
NOUNS = {"messages", "keys", "content"}
INSIDE = GROUND | NOUNS | {"wire", "codecs", "core", "engines", "transport", "shm"}
PUBLIC = {"", "errors", "config", "version", "node", "global_server"}

# A room is a module or a folder of dstore; it may import itself and the rooms on the right.
# "" is dstore/__init__.py, the public names.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "checks": set(),
    "quoting": set(),
    "native": {"clock"},
    "logs": {"native"},
    "background": {"native", "logs"},
    "config": set(),
    "version": set(),
    "reentrancy": {"native"},
    "messages": {"errors", "config"},
    "keys": {"messages"},
    "content": {"errors", "config", "messages"},
    "frames": {"errors", "messages"},
    "wire": {"errors", "config", "messages", "frames"},
    "codecs": {"errors", "config", "messages", "checks"},
    "engines": {"errors", "config", "messages", "keys", "background"},
    "core": {"errors", "config", "messages", "keys", "content", "engines.base"},
    "transport": {"errors", "config", "messages", "wire", "native", "logs", "background"},
    "rate_limited_log": {"clock", "logs", "quoting"},
    "shm": GROUND - {"clock"} | {"messages", "rate_limited_log", "engines"},
    "files": {"codecs", "content", "messages"},
    "large": INSIDE | {"rate_limited_log", "files"},
    "loops": {"native", "background"},
    "green": {"errors", "native", "logs", "loops", "transport.waker"},
    "watch": INSIDE | {"green"},
    "local": INSIDE | {"green", "rate_limited_log", "files", "large", "reentrancy", "watch"},
    "translate": INSIDE,
    "commands": INSIDE | {"files", "large", "translate"},
    "helpers": INSIDE,
    "driver": INSIDE | {"files", "helpers", "large", "local", "reentrancy"},
    "conduct": {"driver", "local", "loops", "commands"},
    "node": INSIDE | {"conduct", "files", "green", "local", "translate", "commands", "watch"},
    "async_node": INSIDE | {"conduct", "files", "loops", "node", "translate", "commands", "watch"},
    "global_server": INSIDE | {"green", "rate_limited_log", "reentrancy"},
    "": PUBLIC - {""} | {"async_node", "codecs", "translate", "commands", "watch"},
    "testing": {"errors", "config", "messages", "keys", "content", "core", "engines"},
    "console": {"quoting"},
    "repl": PUBLIC | {"background", "console", "files", "quoting"},
    "demo": PUBLIC | {"console", "quoting"},
    "cli": PUBLIC | {"console", "quoting", "repl", "demo", "transport.addresses"},
    "__main__": {"cli"},
}

# What is not part of Python has few doors, and so has what gevent and eventlet replace: a thread,
# a lock or a queue of these modules may be a greenlet's. (Nobody patches dstore's own programs.)
NATIVE = {"native"}
OWN_PROGRAMS = {"cli", "console", "demo", "repl", "testing"}
DOORS: dict[str, set[str]] = {
    "_thread": NATIVE,
    "threading": NATIVE | OWN_PROGRAMS,
    "queue": OWN_PROGRAMS,
    "_queue": NATIVE,
    "socket": NATIVE,
    "_socket": NATIVE,
    "select": set(),
    "selectors": set(),
    "time.sleep": OWN_PROGRAMS,
    "concurrent": set(),
    "logging": {"logs"} | OWN_PROGRAMS,
    "multiprocessing": OWN_PROGRAMS,
    "subprocess": OWN_PROGRAMS,
    "blake3": {"content", "demo"},
    "cmd2": {"repl"},
    "msgpack": {"frames", "wire", "codecs"},
    "numpy": {"codecs"},
    "rich": {"repl", "demo", "cli"},
    "sortedcontainers": {"engines"},
    "zmq": {"transport"},
}

# These rooms compute and do nothing else: no socket, thread, file, randomness, clock or log.
PURE = {"errors", "messages", "keys", "core"}
PURE_MODULES = {
    "__future__", "abc", "bisect", "collections", "dataclasses", "enum", "functools", "heapq",
    "itertools", "math", "operator", "struct", "types", "typing",
}  # fmt: skip


def room_of(module: str) -> str:
    """``dstore.core.local.cache`` is in the room ``core``; ``dstore`` itself is the room ``""``."""
    return module.removeprefix(PACKAGE).removeprefix(".").split(".")[0]


def imported(tree: ast.Module, package: str, known: set[str]) -> Iterator[str]:
    """The full name of each module that ``tree`` imports, at the top or inside a function."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Attribute) and ast.unparse(statement) == "time.sleep":
            yield "time.sleep"
        elif isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            source = statement.module or ""
            if statement.level:
                parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
                source = ".".join([*parents, *filter(None, [source])])
            for alias in statement.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known or inner in DOORS else source


def refusal(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target``; None if it may."""
    room = room_of(module)
    top = target.split(".")[0]
    if top != PACKAGE:
        if room in PURE and top not in PURE_MODULES:
            return f"{module} imports {target}, but {room} is to stay pure"
        for door in (target, top):
            if room not in DOORS.get(door, {room}):
                return f"{module} imports {target}, which is for {sorted(DOORS[door])} alone"
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
        ("dstore.core.local.cache", "import time"),
        ("dstore.core.local.cache", "from threading import Lock"),
        ("dstore.core.local.cache", "import zmq"),
        ("dstore.core.local.cache", "def f():\n    from random import random"),
        ("dstore.core.local.cache", "from dstore.server.engines.memory import MemoryEngine"),
        ("dstore.core.local.cache", "from dstore import wire"),
        ("dstore.core.local.cache", "from .. import wire"),
        ("dstore.core.local.cache", "from ..wire import encode"),
        ("dstore.core.local.cache", "import dstore"),
        ("dstore.messages", "import msgpack"),
        ("dstore.server.engines.memory", "from dstore.core import cache"),
        ("dstore.transport.dealer", "from dstore.core.local.cache import Cache"),
        ("dstore.node", "import zmq"),
        ("dstore.node", "import zmq.utils.monitor"),
        ("dstore.node", "from dstore.cli import main"),
        ("dstore.repl", "from dstore.core.local.cache import Cache"),
        ("dstore.newcomer", ""),
        ("dstore.local", "import threading"),
        ("dstore.watch", "from queue import SimpleQueue"),
        ("dstore.runtime.waker", "import socket"),
        ("dstore.large", "import time\ntime.sleep(1)"),
        ("dstore.large", "from time import monotonic, sleep"),
        ("dstore.client.hosts.loop", "import logging"),
        ("dstore.client.hosts.helpers", "from concurrent.futures import ThreadPoolExecutor"),
    ],
)
def test_a_forbidden_import_is_refused(module: str, text: str) -> None:
    others = {"dstore.protocol.wire": "", "dstore.core": "", "dstore.core.local.cache": ""}
    assert len(refusals({**others, module: text}, packages=["dstore.core"])) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dstore.core.state", "from .cache import Cache\nfrom collections import deque"),
        ("dstore.core.state", "from dstore.core.engine import Engine"),
        ("dstore.transport.dealer", "import zmq\nfrom dstore.protocol.wire import encode"),
        ("dstore.protocol.wire", "from msgpack import packb"),
        ("dstore.repl", "import cmd2\nimport dstore\nfrom dstore import Node"),
    ],
)
def test_an_allowed_import_is_not_refused(module: str, text: str) -> None:
    assert refusals({"dstore.core.local.cache": "", module: text}) == []
