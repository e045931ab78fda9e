"""What the documents name exists: links, headings, files, tests, mutants, words."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import doc_tables
from tests.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "dstore"
WRITE_AGAIN = "python -m tests.doc_tables writes it again"
GENERATED = DOCS / "benchmarks" / "README.md"
SOURCE_FOLDERS = ("dstore", "tests", "examples", "benchmarks")
OLD_WORDS = (
    *("anew", "bears", "dying", "obstacle", "patience", "publication", "publications"),
    *("twophase", "verb", "verbs", "whoever", "whomever"),
)
"""Words that docs/glossary.md has a term of the field for, or that plain English has lost."""

FOREIGN: set[str] = set()
"""Names in the architecture that look like classes and are none of the package."""

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FILE = re.compile(r"`([\w./-]+\.py)(?:::\w+)?`")
_TEST = re.compile(r"`(?:[\w/.]+::)?(test_\w+)`")
_MEMBER = re.compile(r"`([A-Z]\w*)\.(\w+)`")
_CLASS = re.compile(r"`(_?[A-Z][a-z]\w+)(?:\.\w+)?`")
_TERM = re.compile(r"^\| \*\*(.+?)\*\* \| .+ \|$", re.MULTILINE)


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").glob("*.md")]
    return sorted(found)


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return _FENCED.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text("utf-8")))
    kept = (re.sub(r"[^\w\- ]", "", _LINK.sub("", each).lower()) for each in headings)
    return {each.replace(" ", "-") for each in kept}


def sources() -> list[Path]:
    return [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")]


every_page = pytest.mark.parametrize(
    "page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix()
)


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@every_page
def test_every_python_file_that_is_named_exists(page: Path) -> None:
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for path in sources()]
    for name in _FILE.findall(page.read_text("utf-8")):
        assert any(path.endswith(f"/{name}") for path in paths), f"{page.name} names {name}"


@every_page
def test_every_test_that_is_named_exists(page: Path) -> None:
    defined = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for name in _TEST.findall(page.read_text("utf-8")):
        assert f"def {name}(" in defined or name in files, f"{page.name} names {name}"


def test_the_table_of_coherence_has_every_mutant_with_what_catches_it() -> None:
    rows = doc_tables.mutant_rows()
    assert [name for name, _ in rows] == [mutant.name for mutant in MUTANTS], WRITE_AGAIN
    for (name, noticed), mutant in zip(rows, MUTANTS):
        assert f"| {name} | {noticed} |\n" == doc_tables.mutant_row(mutant, noticed), WRITE_AGAIN
        assert mutant.test or noticed.startswith("after "), f"{name}: {noticed}"
    assert f"of {len(MUTANTS)} mutants" in (DOCS / "coherence.md").read_text("utf-8")


def test_each_run_in_coherence_is_that_of_a_mutant() -> None:
    section = (DOCS / "coherence.md").read_text("utf-8").partition("## The rules, each")[2]
    headings = re.findall(r"^### (.*)$", section.partition("\n## ")[0], re.MULTILINE)
    names = {mutant.name.lower() for mutant in MUTANTS}
    assert headings
    assert [each for each in headings if each.lower() not in names] == []


def test_the_architecture_describes_every_file_in_its_own_words() -> None:
    text = doc_tables.ARCHITECTURE.read_text("utf-8")
    written = text.partition(doc_tables.BEGIN)[2].partition(doc_tables.END)[0]
    assert written == doc_tables.tables(), WRITE_AGAIN
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        assert f"`{name}`" in written or path.name == "__init__.py", f"{name} is not described"


def test_the_architecture_names_classes_and_members_that_exist() -> None:
    members = members_of_classes()
    for owner, member in _MEMBER.findall(prose(doc_tables.ARCHITECTURE)):
        if owner in members:
            assert member in members[owner], f"there is no {owner}.{member}"
    for name in _CLASS.findall(prose(doc_tables.ARCHITECTURE)):
        assert name in members or name in FOREIGN, f"there is no {name}"


def members_of_classes() -> dict[str, set[str]]:
    """Return the names that each class of the package defines, by the name of the class."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = found.setdefault(node.name, set())
                for each in ast.walk(node):
                    if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        names.add(each.name)
                    elif isinstance(each, ast.Attribute):
                        names.add(each.attr)
                    elif isinstance(each, ast.Name):
                        names.add(each.id)
    return found


def test_the_glossary_is_in_alphabetical_order_and_names_each_word_once() -> None:
    terms = _TERM.findall((DOCS / "glossary.md").read_text("utf-8"))
    assert len(terms) > 60
    folded = [term.casefold() for term in terms]
    assert folded == sorted(folded)
    assert len(set(folded)) == len(folded)


@pytest.mark.parametrize(
    "page",
    [page for page in pages() if page.name != "CHANGELOG.md" and page != GENERATED],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_documents_use_the_words_of_the_glossary(page: Path) -> None:
    words = re.findall(r"\b[a-z]+\b", re.sub(r"`[^`]*`", "", prose(page)).lower())
    assert sorted({*words} & {*OLD_WORDS}) == []
