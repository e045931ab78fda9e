"""Tables of the documents that are made from the code.

``python -m tests.doc_tables`` writes them again: the files in docs/architecture.md, from the first
sentences of the modules, and the mutants in docs/coherence.md. ``tests/unit/test_docs.py`` compares
both. What the simulation has noticed is kept, unless a file is named that has the output of
``scripts/simulate --mutants``: then that is written.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from tests.simulation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
COHERENCE = ROOT / "docs" / "coherence.md"
BEGIN, END = "<!-- files -->\n", "<!-- end of files -->\n"
PACKAGE_FOLDERS = (
    ("dstore", "the public ground, and the small modules that all may use"),
    ("dstore/protocol", "what travels between client and server"),
    ("dstore/core", "the protocol, pure: what both sides share"),
    ("dstore/core/local", "the client's half: a near cache"),
    ("dstore/core/local/operations", "GET, SET, DEL and scans, step by step"),
    ("dstore/core/authority", "the server's half: the authority"),
    ("dstore/core/cluster", "who owns which partition of several Globals"),
    ("dstore/client", "a Local in a program"),
    ("dstore/client/cluster", "one Node of several Globals"),
    ("dstore/client/hosts", "what runs the core in threads, event loops and greenlets"),
    ("dstore/server", "Global"),
    ("dstore/access", "who may use a Global: its key folder, and the connect files of clients"),
    ("dstore/server/engines", "where Global keeps keys and values"),
    ("dstore/server/data", "the data of a durable Global, on a disk"),
    ("dstore/server/cluster", "a Global as a member of a cluster"),
    ("dstore/server/postgres", "the database of a cluster"),
    ("dstore/transport", "the only user of ZeroMQ"),
    ("dstore/shm", "one copy of a large value per host"),
    ("dstore/codecs", "Python values to bytes and back"),
    ("dstore/runtime", "threads, clocks, event loops and greenlets as they are"),
    ("dstore/cli", "the command line"),
    ("dstore/cli/repl", "the prompt"),
    ("dstore/cli/demo", "the demo"),
    ("dstore/testing", "for tests of your own: a Global, and the contracts of engines"),
)
OTHER_FOLDERS = (
    ("tests/simulation", "the real core in a simulated world, and its mutants"),
    ("tests/simulation/cluster", "several Globals over a simulated PostgreSQL"),
    ("tests/history", "judges of what clients saw"),
    ("tests/faults", "real processes under faults and attacks"),
    ("benchmarks", "measured speed"),
    ("benchmarks/peers", "one adapter for each system that is measured"),
    ("benchmarks/workloads", "what is measured"),
    ("benchmarks/scale", "how far one Global goes"),
)
MUTANTS_BEGIN = "| rule that is taken out | noticed |\n|---|---|\n"
NOT_RUN = "not run yet"
NOTICED_MAX = 100
"""Characters of what the simulation says of a mutant."""
_ROW = re.compile(r"^\| (.+?) \| (.+) \|$", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, as Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[a-z)`])[.] (?=[A-Z])", paragraph)[0].rstrip(".:")
    return _ROLE.sub(r"`\1`", sentence).replace("``", "`").replace("|", "\\|")


def table(folder: str, subject: str) -> str:
    """Return the section of one folder."""
    rows = []
    for path in sorted((ROOT / folder).glob("*.py")):
        name = path.relative_to(ROOT / "dstore") if folder.startswith("dstore") else path.name
        sentence = first_sentence(path)
        if sentence:
            rows.append(f"| `{name}` | {sentence} |\n")
    heading = f"### `{folder}/`: {subject}\n\n"
    return f"{heading}| file | what it is |\n|---|---|\n{''.join(rows)}\n"


def tables() -> str:
    """Return the sections of all folders."""
    return "\n" + "".join(table(*each) for each in PACKAGE_FOLDERS + OTHER_FOLDERS)


def mutant_rows() -> list[tuple[str, str]]:
    """Return the rows of docs/coherence.md: the name of each mutant, and how it was noticed."""
    rest = COHERENCE.read_text("utf-8").partition(MUTANTS_BEGIN)[2]
    rows: list[tuple[str, str]] = _ROW.findall(rest.partition("\n\n")[0])
    return rows


def mutant_row(mutant: Mutant, noticed: str) -> str:
    """Return the row of a mutant; ``noticed`` is for those that the simulation catches."""
    if mutant.test:
        noticed = f"`{mutant.test.rpartition('::')[2]}`: {mutant.why}"
    return f"| {mutant.name} | {noticed} |\n"


def rows_of_run(path: Path) -> dict[str, str]:
    """Return how each mutant was noticed in a run of ``scripts/simulate --mutants``."""
    rows = _ROW.findall(path.read_text("utf-8"))
    return {name: f"after {noticed[:NOTICED_MAX]}" for name, noticed in rows}


def main() -> None:
    before, _, rest = ARCHITECTURE.read_text("utf-8").partition(BEGIN)
    ARCHITECTURE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2], "utf-8")

    before, _, rest = COHERENCE.read_text("utf-8").partition(MUTANTS_BEGIN)
    before = re.sub(r"(?<=table, of )\d+(?= mutants)", str(len(MUTANTS)), before)
    noticed = dict(mutant_rows())
    for path in sys.argv[1:]:
        noticed.update(rows_of_run(Path(path)))
    rows = [mutant_row(each, noticed.get(each.name, NOT_RUN)) for each in MUTANTS]
    after = rest.partition("\n\n")[2]
    COHERENCE.write_text(f"{before}{MUTANTS_BEGIN}{''.join(rows)}\n{after}", "utf-8")


if __name__ == "__main__":
    main()
