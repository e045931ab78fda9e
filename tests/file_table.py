"""The tables of all files in docs/architecture.md, made from the first sentences of the modules.

``python -m tests.file_table`` writes them again; ``tests/unit/test_docs.py`` compares.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files -->\n", "<!-- end of files -->\n"
PACKAGE_FOLDERS = (
    ("dstore", "the public ground, and the small modules that all may use"),
    ("dstore/protocol", "what travels between client and server"),
    ("dstore/core", "the protocol, pure: what both sides share"),
    ("dstore/core/local", "the client's half: a near cache"),
    ("dstore/core/local/operations", "GET, SET, DEL and scans, step by step"),
    ("dstore/core/authority", "the server's half: the authority"),
    ("dstore/client", "a Local in a program"),
    ("dstore/client/hosts", "what runs the core in threads, event loops and greenlets"),
    ("dstore/server", "Global"),
    ("dstore/server/engines", "where Global keeps keys and values"),
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
    ("tests/history", "judges of what clients saw"),
    ("tests/faults", "real processes under faults and attacks"),
    ("benchmarks", "measured speed"),
    ("benchmarks/peers", "one adapter for each system that is measured"),
    ("benchmarks/workloads", "what is measured"),
    ("benchmarks/scale", "how far one Global goes"),
)
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


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + tables() + END + after, "utf-8")


if __name__ == "__main__":
    main()
