"""Tables, bars and help fit windows of any width, and no number or name is truncated."""

from __future__ import annotations

import io

import pytest

from dstore.cli import progress as bar
from dstore.cli.arguments import parse
from dstore.cli.demo import story
from dstore.cli.demo.worker import WorkerReport
from dstore.cli.repl import text

WIDTHS = [60, 80, 100]
READS = 1_234_567
NAME = "lib/" + "long-name/" * 30 + "the-end"
ELLIPSIS = "…"


def at_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> io.StringIO:
    """Make standard output a terminal of this width that keeps what is written."""
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.setenv("COLUMNS", str(columns))
    return file


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_demo_fits_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = at_terminal(monkeypatch, columns)
    times = [123_456_789]
    story._show([WorkerReport(number, times, times, READS, READS + 1) for number in (1, 64)])
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    for number in ("1", "64"):
        row = next(line.split() for line in lines if line.split()[:1] == [number])
        assert row[1:] == ["1,234,567", "1,234,568", *["123,456.8", "µs"] * 2]


def test_a_line_of_the_demo_is_broken_and_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = at_terminal(monkeypatch, 60)
    story.say(f"verdict: BAD: worker 3 read {NAME!r} \x1b[2J\u202e")
    written = terminal.getvalue()
    assert max(map(len, written.splitlines())) <= 60
    assert NAME in written.replace("\n", "")
    assert "\x1b" not in written
    assert "\u202e" not in written


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
