"""Imports run one way. The tables say which room may import which; the tests hold them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "dstore"

GROUND = {"errors", "config", "checks", "compiled", "quoting", "runtime"}
PUBLIC = {"", "errors", "config", "version", "client.node", "server.server"}
SHARED_BY_PROGRAMS = {"cli.console", "cli.progress", "cli.show", "cli.tables", "cli.values"}

# A room is a folder of dstore, or a file that has a row of its own; the longest name that fits
# counts. It may import itself and the rooms on the right. "" is dstore/__init__.py.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "checks": set(),
    "quoting": set(),
    "version": set(),
    "runtime": {"errors", "quoting"},
    "protocol": {"errors", "config"},
    "_native": {"protocol.messages", "runtime.clock"},
    "compiled": {"_native"},
    "core": set(),
    "core.engine": {"errors", "protocol"},
    "core.local": {"errors", "config", "protocol", "compiled"},
    "core.authority.identity": {"protocol"},
    "core.authority": {"errors", "config", "protocol", "core.engine", "core.authority.identity"},
    "core.cluster": {"protocol"},
    "codecs": {"errors", "config", "checks", "protocol"},
    "transport": GROUND | {"protocol", "core.authority.identity"},
    "access": {"errors"},
    "access.connect": {"errors", "transport.addresses", "transport.curve"},
    "access.files": GROUND | {"shm.directory"},
    "access.keys": GROUND
    | {"access.connect", "access.files", "core.authority.identity", "protocol", "shm.directory"}
    | {"transport.curve"},
    "access.running": GROUND | {"access.files", "access.keys"},
    "shm": GROUND | {"protocol", "core.engine", "core.local"},
    "client": GROUND | {"protocol", "core.local", "codecs", "transport", "shm", "access.connect"},
    "server.engines": GROUND | {"protocol", "core.engine"},
    "server": GROUND
    | {"protocol", "core.authority", "core.cluster", "core.engine", "transport", "shm"}
    | {"access", "core.authority.identity", "server.engines", "server.postgres"},
    "server.postgres": GROUND | {"protocol", "core.cluster", "core.engine", "server.engines"},
    "engines": {"core.engine", "protocol", "server.engines", "shm"},
    "": {"errors", "config", "version", "client", "server", "codecs"},
    "testing": PUBLIC | {"protocol", "core.engine", "shm.root"},
    "cli.console": {"config", "checks", "quoting"},
    "cli.progress": {"cli.console", "client.files"},
    "cli.show": PUBLIC | {"quoting"},
    "cli.tables": {"cli.console", "quoting"},
    "cli.values": PUBLIC | {"cli.console", "cli.progress", "cli.show", "client.files", "quoting"},
    "cli.repl": PUBLIC | SHARED_BY_PROGRAMS | {"quoting", "runtime", "client.files"},
    "cli.demo": PUBLIC | {"cli.console", "quoting", "testing", "protocol.content", "protocol.keys"},
    "cli": PUBLIC
    | SHARED_BY_PROGRAMS
    | {"cli.demo", "cli.repl", "checks", "quoting", "runtime", "transport", "shm.root"}
    | {"client.owners", "protocol.keys", "server.data", "access"}
    | {"core.cluster", "server.parameters", "server.postgres"},
    "__main__": {"cli"},
}

# What is not part of Python has few doors, and so has what gevent and eventlet replace: a thread,
# a lock or a queue of these modules may be a greenlet's. (dstore's own programs are not patched.)
NATIVE = {"runtime.native"}
PROGRAMS = {"cli", "testing"}
DOORS: dict[str, set[str]] = {
    "_thread": NATIVE,
    "threading": NATIVE | PROGRAMS,
    "queue": PROGRAMS,
    "_queue": NATIVE,
    "socket": NATIVE,
    "_socket": NATIVE,
    "select": set(),
    "selectors": set(),
    "time.sleep": PROGRAMS,
    "concurrent": set(),
    "logging": {"runtime.logs"} | PROGRAMS,
    "multiprocessing": PROGRAMS,
    "subprocess": PROGRAMS,
    "blake3": {"protocol.content", "server.data", "cli.demo"},
    "cmd2": {"cli.repl"},
    "msgpack": {"protocol", "codecs"},
    "numpy": {"codecs"},
    "psycopg": {"server.postgres"},
    "pytest": {"testing"},
    "rich": {"cli"},
    "sqlite3": {"server.data"},
    "sortedcontainers": {"server.engines", "server.postgres", "core.authority.deadlines"},
    "zmq": {"transport"},
}

# These rooms compute and do nothing else: no socket, thread, file, randomness, clock or log.
PURE = {"errors", "core", "protocol.messages", "protocol.keys"}
PURE_MODULES = {
    "__future__", "abc", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools",
    "hashlib", "heapq", "itertools", "math", "operator", "sortedcontainers", "struct", "types",
    "typing",
}  # fmt: skip


def inside(module: str) -> str:
    """``dstore.core.engine`` is ``core.engine``, and ``dstore`` itself is the empty name."""
    return module.removeprefix(PACKAGE).removeprefix(".")


def within(name: str, rooms: Iterable[str]) -> str | None:
    """The longest of ``rooms`` that ``name`` is or is a part of, or None if it is in none."""
    found = [room for room in rooms if name == room or (room and name.startswith(f"{room}."))]
    return max(found, key=len, default=None)


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
    """Why ``module`` may not import ``target``, or None if it may."""
    name, top = inside(module), target.split(".")[0]
    if top != PACKAGE:
        if within(name, PURE) is not None and top not in PURE_MODULES:
            return f"{module} imports {target}, but {within(name, PURE)} is pure"
        for door in dict.fromkeys((target, top)):
            if door in DOORS and within(name, DOORS[door]) is None:
                return f"{module} imports {target}, which is for {sorted(DOORS[door])} alone"
        return None
    room = within(name, ROOMS)
    assert room is not None
    aim = inside(target)
    if within(aim, ROOMS) == room or within(aim, ROOMS[room]) is not None:
        return None
    return f"{module} imports {target}, and may import only {sorted(ROOMS[room])} of dstore"


def refusals(sources: dict[str, str], packages: Iterable[str] = ()) -> list[str]:
    """Every forbidden import in ``sources``, which maps a module's full name to its text."""
    found = []
    for module, text in sources.items():
        if within(inside(module), ROOMS) is None:
            found.append(f"{module} has no row in ROOMS")
            continue
        targets = imported(ast.parse(text), package_of(module, packages), set(sources))
        found += [reason for target in targets if (reason := refusal(module, target))]
    return found


def circle(sources: dict[str, str], packages: Iterable[str] = ()) -> list[str]:
    """Modules that import each other in a circle, or nothing if there is no circle.

    Imports for a type checker count as well: a reader of one file needs the others.
    """
    graph: dict[str, set[str]] = {}
    for module, text in sources.items():
        targets = imported(ast.parse(text), package_of(module, packages), set(sources))
        graph[module] = {target for target in targets if target in sources} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def package_of(module: str, packages: Iterable[str]) -> str:
    return module if module in packages else module.rpartition(".")[0]


def sources_of(folder: str) -> tuple[dict[str, str], set[str]]:
    """All modules below a folder of the project with their text; and which are packages.

    Of a module in Cython the text has the imports alone: the rest is not Python.
    """
    sources, packages = {}, set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
            packages.add(".".join(parts))
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    for path in sorted((ROOT / folder).rglob("*.pyx")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imports = re.findall(r"^(?:from \S+ )?import .+", path.read_text("utf-8"), re.MULTILINE)
        sources[module] = "\n".join(imports)
    return sources, packages


def test_dstore_keeps_to_the_tables() -> None:
    assert refusals(*sources_of(PACKAGE)) == []


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "benchmarks"])
def test_no_files_import_each_other_in_a_circle(folder: str) -> None:
    assert circle(*sources_of(folder)) == []


def test_every_row_is_of_a_room_that_exists() -> None:
    sources, _ = sources_of(PACKAGE)
    names = {inside(module) for module in sources}
    rows = set(ROOMS) | PURE | set().union(*ROOMS.values(), *DOORS.values())
    assert sorted(rows - names) == []


def test_the_table_has_no_circle() -> None:
    graph = {
        room: {within(other, ROOMS) for other in known} - {room} for room, known in ROOMS.items()
    }
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dstore.core.local.cache", "import time"),
        ("dstore.core.local.cache", "from threading import Lock"),
        ("dstore.core.local.cache", "import zmq"),
        ("dstore.core.local.cache", "def f():\n    from random import random"),
        ("dstore.core.local.cache", "from dstore.core.authority.state import GlobalState"),
        ("dstore.core.local.cache", "from dstore.core.engine import Engine"),
        ("dstore.core.local.cache", "from dstore.client import node"),
        ("dstore.core.local.cache", "from ..authority import state"),
        ("dstore.core.local.cache", "from ..authority.state import GlobalState"),
        ("dstore.core.local.cache", "import dstore"),
        ("dstore.core.authority.state", "from dstore.core.local.cache import Cache"),
        ("dstore.core.authority.state", "from dstore.server.engines.memory import MemoryEngine"),
        ("dstore.core.local.membership", "from dstore import _native"),
        ("dstore.client.hits", "from dstore._native import Hits"),
        ("dstore._native", "from dstore.core.local.membership import LAPSED"),
        ("dstore.core.engine", "from dstore.core.authority.state import GlobalState"),
        ("dstore.protocol.messages", "import msgpack"),
        ("dstore.protocol.wire", "from dstore.core.local.cache import Cache"),
        ("dstore.server.engines.memory", "from dstore.core.local import cache"),
        ("dstore.server.server", "from dstore.client.node import Node"),
        ("dstore.server.server", "from dstore.codecs import table"),
        ("dstore.client.node", "from dstore.server.server import Global"),
        ("dstore.client.node", "from dstore.core.authority.invalidations import InvalidationLog"),
        ("dstore.client.node", "import zmq"),
        ("dstore.client.node", "import zmq.utils.monitor"),
        ("dstore.client.node", "from dstore.cli import main"),
        ("dstore.client.watch", "from queue import SimpleQueue"),
        ("dstore.client.large", "import time\ntime.sleep(1)"),
        ("dstore.client.large", "from time import monotonic, sleep"),
        ("dstore.client.hosts.loop", "import logging"),
        ("dstore.client.hosts.loop", "import threading"),
        ("dstore.client.hosts.helpers", "from concurrent.futures import ThreadPoolExecutor"),
        ("dstore.runtime.logs", "import socket"),
        ("dstore.runtime.logs", "from dstore.transport.addresses import check"),
        ("dstore.transport.channel", "from dstore.core.local.cache import Cache"),
        ("dstore.cli.repl", "from dstore.core.local.cache import Cache"),
        ("dstore.cli.console", "import cmd2"),
        ("dstore.cli.console", "from dstore.cli.repl.session import Session"),
        ("dstore.testing.engine_contract", "from dstore.cli import main"),
        ("dstore.newcomer", ""),
    ],
)
def test_a_forbidden_import_is_refused(module: str, text: str) -> None:
    others, packages = sources_of(PACKAGE)
    others = dict.fromkeys(others, "")
    assert len(refusals({**others, module: text}, packages)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dstore.core.local.state", "from .cache import Cache\nfrom collections import deque"),
        ("dstore.core.local.membership", "from dstore.compiled import native"),
        ("dstore.compiled", "import os\nfrom dstore import _native"),
        ("dstore.core.authority.state", "from dstore.core.engine import Engine"),
        ("dstore.transport.channel", "import zmq\nfrom dstore.protocol.wire import encode"),
        ("dstore.protocol.wire", "from msgpack import packb"),
        ("dstore.runtime.native", "import threading"),
        ("dstore.cli.repl.session", "import cmd2\nimport dstore\nfrom dstore import Node"),
    ],
)
def test_an_allowed_import_is_not_refused(module: str, text: str) -> None:
    others, packages = sources_of(PACKAGE)
    assert refusals({**dict.fromkeys(others, ""), module: text}, packages) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"p.a": "from p import b", "p.b": "import p.a"},
        {"p.a": "from p.b import x", "p.b": "def f():\n    from p.c import y", "p.c": "import p.a"},
        {
            "p.a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import x",
            "p.b": "from .a import y",
        },
    ],
)
def test_a_circle_is_found(sources: dict[str, str]) -> None:
    assert set(circle({"p": "", **sources}, ["p"])) == set(sources)


def test_a_diamond_is_no_circle() -> None:
    sources = {"p.a": "import p.b, p.c", "p.b": "import p.d", "p.c": "import p.d", "p.d": ""}
    assert circle(sources) == []
