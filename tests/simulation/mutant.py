"""What a mutant is, and where the tests are that catch those out of reach of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

CORE = "tests/unit/core/"
VALIDITY = CORE + "test_validity.py::"
DIRECT = "tests/integration/test_direct.py::"


@dataclass(frozen=True)
class Mutant:
    """One broken variant.

    ``edits`` are (module below dstore, text, replacement). A module whose name begins with
    ``tests`` is one of the simulation itself, which has rules of its own where it stands for SQL or
    for a host. ``test`` is the test that catches it if the simulation cannot, and ``why`` says why
    it cannot. ``cluster``: it is the simulation of several Globals that is to catch it.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    test: str = ""
    why: str = ""
    cluster: bool = False


def module_of(name: str) -> str:
    """Return the full name of a module that an edit names."""
    return name if name.startswith("tests.") else f"dstore.{name}"
