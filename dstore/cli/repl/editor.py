"""Adapters to cmd2 and its line editor.

cmd2 4 edits lines with prompt_toolkit. cmd2 3, the last one for Python 3.10, edits them with
readline. ``PromptToolkitEditor`` and ``ReadlineEditor`` hide the difference from the rest of the
REPL: ``remember`` adds a line to those that the arrow keys recall, and ``alert`` shows a message
above the line that is typed, or after the command that is running.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import cmd2
from cmd2.parsing import Statement, StatementParser

from dstore.cli.repl.completion import Completed
from dstore.cli.repl.text import split_command

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

PROMPT_TOOLKIT = hasattr(cmd2.Cmd, "add_alert")
"""Whether this is cmd2 4."""

CMD2_OPTIONS: dict[str, Any] = {"auto_suggest": False} if PROMPT_TOOLKIT else {}
END_OF_INPUT = "_eof" if PROMPT_TOOLKIT else "eof"
"""The line that cmd2 inserts when Ctrl-D ends the input."""

Complete = Callable[[str], Completed]


class PlainParser(StatementParser):
    """A parser that takes a line as it is: no redirection, pipes, shortcuts, comments or macros."""

    def __init__(self) -> None:
        super().__init__(terminators=(), multiline_commands=(), shortcuts={})

    def parse(self, line: str) -> Statement:
        """Return the command of a line, and all that follows it as one text."""
        if line == END_OF_INPUT:
            return Statement("", raw=line, command="exit")
        command, rest = split_command(line)
        return Statement(rest, raw=line, command=command)


@contextlib.contextmanager
def ctrl_d_kept() -> Iterator[None]:
    """Let Ctrl-D be an ordinary character in this block, for the time in which a command runs.

    The line editor reads it afterwards. Otherwise the terminal takes it for the end of the input,
    and forgets it when the line editor changes the terminal's mode.
    """
    try:
        usual = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError):  # the terminal has gone
        yield
        return
    disabled = [*usual[:6], [*usual[6]]]
    disabled[6][termios.VEOF] = b"\0"
    termios.tcsetattr(sys.stdin, termios.TCSANOW, disabled)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, usual)


class PromptToolkitEditor:
    """The line editor of cmd2 4."""

    def __init__(self, repl: cmd2.Cmd, complete: Complete) -> None:
        self._repl = repl
        self._session = repl.main_session
        self._session.lexer = None
        self._session.completer = _prompt_toolkit_completer(complete)

    def remember(self, line: str) -> None:
        self._session.history.append_string(line)

    def alert(self, message: str) -> None:
        self._repl.add_alert(msg=message)


def _prompt_toolkit_completer(complete: Complete) -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class LineCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            typed = document.text_before_cursor
            start, texts = complete(typed)
            for text in texts:
                yield Completion(text, start_position=start - len(typed), display=text.strip())

    return LineCompleter()


class ReadlineEditor:
    """The line editor of cmd2 3. A thread shows its alerts once the prompt is on screen."""

    def __init__(self, repl: Any, complete: Complete) -> None:
        self._repl = repl
        self._complete = complete
        self._found: list[str] = []
        self._alerts: queue.SimpleQueue[str] = queue.SimpleQueue()
        repl.complete = self._next_completion
        threading.Thread(target=self._show_alerts, name="dstore-alerts", daemon=True).start()

    def remember(self, line: str) -> None:
        import readline

        readline.add_history(line)

    def alert(self, message: str) -> None:
        self._alerts.put(message)

    def _show_alerts(self) -> None:
        while True:
            message = self._alerts.get()
            with self._repl.terminal_lock:  # cmd2 holds it except at the prompt
                self._repl.async_alert(message)

    def _next_completion(self, text: str, state: int, custom_settings: object = None) -> str | None:
        import readline

        if state == 0:
            typed = readline.get_line_buffer()[: readline.get_endidx()]
            start, found = self._complete(typed)
            # readline replaces `text` alone, which may begin in the middle of a key
            kept = typed[start : len(typed) - len(text)]
            self._found = [each[len(kept) :] for each in found if each.startswith(kept)]
        return self._found[state] if state < len(self._found) else None


def editor_of(repl: cmd2.Cmd, complete: Complete) -> PromptToolkitEditor | ReadlineEditor:
    """Return the line editor of the installed cmd2, with completion."""
    return (PromptToolkitEditor if PROMPT_TOOLKIT else ReadlineEditor)(repl, complete)
