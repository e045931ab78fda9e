"""docs/limits.md agrees with the code: names, values, and the settings that change them."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dstore
from dstore import config
from dstore.cli import arguments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
ROW = re.compile(r"\| `([a-z_.]+)\.([A-Z_]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")
UNITS = {"": 1, "s": 1, "ms": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
NOT_A_LIMIT = {"ADDRESS_VARIABLE", "CONNECT_VARIABLE", "HOST_VARIABLE", "HOST_CHOICES"}
Default = tuple[str, Any]


class Row(NamedTuple):
    """A row of a table: a constant, its value as it is written, and what sets it."""

    module: str
    constant: str
    value: str
    set_with: str

    def in_code(self) -> Any:
        return getattr(import_module(f"dstore.{self.module}"), self.constant)


def read(page: str) -> list[Row]:
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = [ROW.fullmatch(line) for line in lines]
    assert None not in rows, "a row of another form"
    return [Row(row[1], row[2], row[3], row[5]) for row in rows if row is not None]


ROWS = read(PAGE.read_text("utf-8"))


def meant(written: str) -> Any:
    """The value that a cell names: a text in backquotes, or a number with a unit.

    ``2^62 - 1 bytes``, ``3/4`` and ``10,000 ms`` are numbers.
    """
    if written.startswith("`"):
        return written.strip("`")
    found = re.fullmatch(r"(2\^62 - 1|[\d.,/]+) ?([A-Za-z]*)", written)
    assert found, written
    number = (1 << 62) - 1 if "^" in found[1] else Fraction(found[1].replace(",", ""))
    return number * UNITS[found[2]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.module}.{row.constant}")
def test_a_value_is_that_of_the_code(row: Row) -> None:
    value = row.in_code()
    assert meant(row.value) == (value if isinstance(value, str) else Fraction(str(value)))
    assert not row.constant.endswith("_MS") or row.value.endswith(" ms")
    assert "BYTES" not in row.constant or re.search(r"bytes|iB|/", row.value)


def test_each_limit_of_config_is_there_once() -> None:
    listed = [row.constant for row in ROWS if row.module == "config"]
    assert len(set(ROWS)) == len(ROWS)
    assert sorted(listed) == sorted({name for name in vars(config) if name.isupper()} - NOT_A_LIMIT)


def defaults_of(name: str, function: Callable[..., object]) -> Iterator[Default]:
    for each in inspect.signature(function).parameters.values():
        if type(each.default) in (int, float):
            yield f"`{name}({each.name}=)`", each.default


def options(parser: argparse.ArgumentParser) -> Iterator[Default]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)
        elif type(action.default) in (int, float) and action.nargs != 0:
            yield f"`{action.option_strings[0]}`", action.default


def defaults() -> set[Default]:
    """Each numeric default: of a Node, of a Global, of a method, and of the command line."""
    methods = inspect.getmembers(dstore.Node, inspect.isfunction)
    return {
        *defaults_of("Node", dstore.Node),
        *defaults_of("Global", dstore.Global),
        *(each for name, method in methods for each in defaults_of(f"Node.{name}", method)
          if not name.startswith("_")),
        *options(arguments._parser()),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "value"), sorted(defaults()))
def test_what_can_be_set_is_there_with_its_default(name: str, value: Any) -> None:
    (row,) = (row for row in ROWS if name in row.set_with.split(", "))
    assert row.in_code() == value


def test_what_sets_a_limit_exists() -> None:
    known = {f"`Node({name}=)`" for name in inspect.signature(dstore.Node).parameters}
    known |= {f"`Global({name}=)`" for name in inspect.signature(dstore.Global).parameters}
    known |= {name for name, _ in defaults()} | {"`--address`", "`--shm`", "`--host-cache`"}
    known |= {"`--ownership-lease`"}  # None stands for the default: it needs --engine
    known |= {"`$DSTORE_SHM`", "-"}
    named = {name for row in ROWS for name in row.set_with.split(", ")}
    assert named - known == set()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("| `config.LEASE_DEFAULT` | 3 s | the lease | - |", "another value"),
        ("| `config.LEASE_DEFAULT` | 2 MiB | the lease | - |", "another unit"),
        ("| `config.SIZE_MAX` | 4 GiB | a size | - |", "another value"),
        ("| `config.CONTENT_PREFIX` | `b2:` | a beginning | - |", "another text"),
    ],
)
def test_what_is_wrong_is_found(line: str, problem: str) -> None:
    (row,) = read(line)
    with pytest.raises(AssertionError):
        test_a_value_is_that_of_the_code(row)
