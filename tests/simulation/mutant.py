"""What a mutant is, and where the tests are that catch those out of reach of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

CORE = "tests/unit/core/"
VALIDITY = CORE + "test_validity.py::"
DIRECT = "tests/integration/test_direct.py::"


@dataclass(frozen=True)
class Mutant:
    """One broken variant.

    ``edits`` are (module below dstore, text, replacement). ``test`` is the test that catches it if
    the simulation cannot, and ``why`` says why it cannot.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    test: str = ""
    why: str = ""
