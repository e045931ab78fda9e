"""Tables, bars and help fit windows of any width, and no number or name is truncated."""

from __future__ import annotations

import io
from array import array

import pytest
from rich.console import Console

from dstore.cli import progress as bar
from dstore.cli.arguments import parse
from dstore.cli.demo.screen import Screen
from dstore.cli.demo.verdict import Change, Fault, Write
from dstore.cli.demo.worker import Report
from dstore.cli.repl import text

WIDTHS = [60, 80, 100]
READS = 1_234_567
NAME = "lib/" + "long-name/" * 30 + "the-end"
ELLIPSIS = "…"


def report(worker: int) -> Report:
    times = array("q", [123_456_789])
    return Report(worker, READS, READS + 1, 654_321, times, times, 12_345, [])


def written(terminal: bool) -> list[str]:
    """The lines that the demo may show after a long run with many workers."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, highlight=False)
    screen = Screen(console)
    writes = [
        Write(f"k{number}", change, 0, 98_765_432_100, 1_234_567, 1_234)
        for number, change in enumerate([Change.DELETED, Change.REPLACED])
    ]
    screen.tables([report(worker) for worker in range(1, 65)], writes)
    screen.verdict([Fault(f"stale: worker 3 read {NAME!r} \x1b[2J\u202e")], [], [])
    return file.getvalue().splitlines()


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_the_tables_of_the_demo_fit_and_cut_nothing(
    monkeypatch: pytest.MonkeyPatch, columns: int, terminal: bool, term: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", term)
    lines = written(terminal)
    whole = "\n".join(lines)
    assert ELLIPSIS not in whole
    rows = [line for line in lines if line.split()[:1] and line.split()[0].isdecimal()]
    assert max(map(len, rows)) <= columns
    for worker in range(1, 65):
        shown = [cell for row in rows if row.split()[0] == str(worker) for cell in row.split()]
        for figure in ("2,469,135", "1,234,567", "1,234,568", "654,321", "123,456.8", "12,345"):
            assert figure in shown
    for figure in ("98,765.43", "1,234,567", "1,234"):
        assert figure in whole.split()
    assert "\x1b" not in whole
    assert "\u202e" not in whole
    if terminal:
        assert max(map(len, lines)) <= columns
    assert NAME in whole.replace("\n", "")


def test_a_pipe_without_columns_gets_the_tables_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", io.StringIO())  # whatever runs the tests
    assert [line.split()[:1] for line in written(terminal=False)].count(["worker"]) == 1


def test_a_window_narrower_than_two_columns_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "9")
    whole = "\n".join(written(terminal=True))
    assert ELLIPSIS not in whole
    assert "123,456.8" in whole.split()


@pytest.mark.parametrize("columns", [1, 20, 30, 40, 60, 80, 200])
def test_the_parts_of_a_bar_fit(columns: int) -> None:
    parts = bar.parts_that_fit(columns)
    assert next(iter(parts)) == "done"
    assert len(parts) == 1 or sum(parts.values()) + len(parts) - 1 <= columns
    assert (len(parts) == 5) == (columns >= 60)


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_a_bar_cuts_no_figure(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    drawn = bar._new_bar()
    drawn.console.file = file = io.StringIO()
    task = drawn.add_task("fetching", total=1_000_000_000)
    drawn.update(task, completed=999_900_000)
    drawn.console.print(drawn.get_renderable())
    (line,) = file.getvalue().splitlines()
    assert "fetching" in line
    assert "1.0/1.0 GB" in line
    assert ELLIPSIS not in line
    assert len(line) <= columns


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("command", [[], ["get"], ["keys"], ["set"], ["global"], ["demo"]])
def test_help_fits(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
    command: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse([*command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


@pytest.mark.parametrize("columns", [20, 60, 80])
@pytest.mark.parametrize("topic", ["", "set", "getfile"])
def test_help_of_the_repl_fits(columns: int, topic: str) -> None:
    for line in text.help_lines(topic):
        wrapped = text.wrapped(line, columns)
        assert max(map(len, wrapped.split("\n"))) <= columns
        assert wrapped.split() == line.split()
