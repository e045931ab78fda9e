"""The REPL itself: a prompt, or a script on standard input, in front of one Node."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import cmd2
from cmd2.parsing import Statement

from dstore.cli import console, values
from dstore.cli.progress import progress_bar
from dstore.cli.repl import text
from dstore.cli.repl.completion import Completed, KeyFinder, complete, find_paths
from dstore.cli.repl.editor import (
    CMD2_OPTIONS,
    END_OF_INPUT,
    PROMPT_TOOLKIT,
    PlainParser,
    ctrl_d_kept,
    editor_of,
)
from dstore.cli.repl.history import LineHistory, history_path
from dstore.cli.show import shown
from dstore.cli.tables import stats_lines
from dstore.client.node import Node
from dstore.errors import (
    DstoreError,
    GlobalUnavailable,
    KeyMissing,
    KeyOccupied,
    OutcomeUnknown,
    WrongServer,
)
from dstore.quoting import visible
from dstore.version import __version__

ECHO = 1.0
"""Seconds after a DEL within which the Node may still report it."""
COMPLETIONS_MAX = 200
COMPLETION_WAIT = 0.7
"""Seconds that Tab waits for Global, or for a file system."""


UNREACHED = (GlobalUnavailable, WrongServer, OutcomeUnknown)
"""Errors after which it is not known whether Global is there."""


class OwnDeletions:
    """Distinguishes the deletions of this REPL from those of other Nodes.

    The Node reports a deletion of this REPL once, if its Local held the key: mostly while DEL runs,
    and sometimes just after it, since another thread reports it.
    """

    def __init__(self, echo: float = ECHO) -> None:
        self._echo = echo
        self._until: dict[str | bytes, float] = {}  # the oldest first
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def deleting(self, key: str | bytes) -> Iterator[None]:
        """Mark a deletion as own while the block runs DEL. If that fails, the mark is removed."""
        with self._lock:
            self._forget_old()
            self._until[key] = math.inf
        try:
            yield
        except BaseException:
            self.take(key)
            raise
        with self._lock:
            if self._until.pop(key, None):
                self._until[key] = time.monotonic() + self._echo

    def take(self, key: str | bytes) -> bool:
        """Return whether a reported deletion is an own one, and remove its mark."""
        with self._lock:
            return self._until.pop(key, 0.0) > time.monotonic()

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._until and self._until[oldest := next(iter(self._until))] < now:
            del self._until[oldest]


class Repl(cmd2.Cmd):
    """A prompt (``talk``) or a script (``obey``) in front of one Node, which it owns.

    Replies go to standard output, one line for each command except for lists. Error messages are
    replies, too. What other Nodes delete is announced above the line that is being typed, or, in a
    script, on standard error.
    """

    def __init__(
        self, address: str | None, *, connect: str | None, timeout: float, at_terminal: bool
    ) -> None:
        super().__init__(allow_cli_args=False, **CMD2_OPTIONS)
        self.prompt = "db> "
        self.statement_parser = PlainParser()
        self._lines = LineHistory(history_path() if at_terminal else None)
        self._editor = editor_of(self, self._complete) if at_terminal else None
        self._own = OwnDeletions()
        self._answered = self._failed = False
        # Its replies say what this Local has, so it has a membership of its own.
        self.node = Node(
            address, connect=connect, timeout=timeout, host="off", on_deletion=self._announce
        )
        self._keys = KeyFinder(self.node.keys, limit=COMPLETIONS_MAX, wait=COMPLETION_WAIT)
        self._paths = KeyFinder(find_paths, limit=COMPLETIONS_MAX, wait=COMPLETION_WAIT)

    # The two ways to run

    def talk(self) -> int:
        """Prompt until the user leaves. Returns the exit code."""
        assert self._editor is not None
        for line in self._lines.read():
            self._editor.remember(line)
        self.greet()
        if self._lines.refusal:
            console.complain(self._lines.refusal)
        self.cmdloop()
        return self.exit_code

    def obey(self, lines: Iterable[str]) -> int:
        """Carry out the lines of a script. Returns the exit code.

        It is 1 if a command could not be read or ended with an error. A missing or an occupied key
        is an answer, and no error.
        """
        self.greet()
        for line in lines:
            if self.onecmd_plus_hooks(line.rstrip("\r\n"), raise_keyboard_interrupt=True):
                break
        return self.exit_code or (console.EXIT_REFUSED if self._failed else console.EXIT_OK)

    def greet(self) -> None:
        self.say(f"dstore v{__version__} (addr: {console.plain(self.node.address)})")
        self.say("Type .exit (or Ctrl-D) to leave, HELP for the commands.")

    # Commands

    def do_set(self, statement: Statement) -> None:  # type: ignore[override]
        key, value = text.split_key(statement.args)
        if not value:
            raise text.Misuse
        self.node.set(key, text.value_of(value))
        self.say(text.UPDATED)

    def do_get(self, statement: Statement) -> None:
        key = text.only_key(statement.args)
        found = self.node.lookup(key)
        reply = text.reply_found(key, found.value, from_local=found.from_local, cached=found.cached)
        self.say(reply)

    def do_del(self, statement: Statement) -> None:
        key = text.only_key(statement.args)
        with self._own.deleting(key):
            deletion = self.node.delete(key)
        self.say(text.reply_deleted(deletion.confirmed, deletion.expired))

    def do_expire(self, statement: Statement) -> None:
        key, seconds = text.key_and_seconds(statement.args)
        self.node.expire(key, seconds)
        self.say(text.UPDATED)

    def do_ttl(self, statement: Statement) -> None:
        self.say(text.reply_ttl(self.node.ttl(text.only_key(statement.args))))

    def do_persist(self, statement: Statement) -> None:
        self.node.persist(text.only_key(statement.args))
        self.say(text.UPDATED)

    def do_add(self, statement: Statement) -> None:
        if not statement.args:
            raise text.Misuse
        self.say(self.node.put(text.value_of(statement.args)))

    def do_setfile(self, statement: Statement) -> None:
        key, path = text.key_and_path(statement.args)
        self._store_file(path, partial(self.node.set_file, key), partial(self.node.set, key))
        self.say(text.UPDATED)

    def do_putfile(self, statement: Statement) -> None:
        path = text.only_path(statement.args)
        self.say(self._store_file(path, self.node.put_file, self.node.put))

    @staticmethod
    def _store_file(path: str, store_file: Callable[..., Any], store: Callable[..., Any]) -> Any:
        """Let the Node read a large file piece by piece; read a small one here."""
        if not values.is_large_file(path):
            return store(values.read_file(path))
        with progress_bar() as progress:
            return store_file(path, progress=progress)

    def do_getfile(self, statement: Statement) -> None:
        key, path = text.key_and_path(statement.args)
        with progress_bar() as progress:
            size = values.get_to_file(self.node, key, path, progress)
        self.say(text.reply_written(size, path))

    def do_keys(self, statement: Statement) -> None:
        prefix = text.only_key(statement.args) if statement.args else ""
        count = 0
        for key in self.node.keys(prefix):
            self.say(text.shown_key(key), flush=False)
            count += 1
        self.say("(1 key)" if count == 1 else f"({count:,} keys)")

    def do_stats(self, statement: Statement) -> None:
        if statement.args:
            raise text.Misuse
        for title, ask in (("This Local", self.node.stats), ("Global", self.node.global_stats)):
            self.say(title)
            for line in stats_lines(ask()):
                self.say(f"  {line}")

    def do_help(self, statement: Statement) -> None:  # type: ignore[override]
        for line in text.help_lines(statement.args):
            if self._editor is not None:
                line = text.wrapped(line, shutil.get_terminal_size().columns)
            self._print(line)

    def do_exit(self, statement: Statement) -> bool:
        if statement.args:
            raise text.Misuse
        if statement.raw == END_OF_INPUT and not PROMPT_TOOLKIT:
            self.say("")  # readline leaves the cursor behind the prompt
        return True

    def do_unknown(self, statement: Statement) -> None:
        self._failed = True
        word, _ = text.split_word(statement.args)
        self.say(f"Unknown command {shown(word)}. HELP lists the commands, .exit leaves.")

    def _complete(self, typed: str) -> Completed:
        return complete(typed, self._keys.find, self._paths.find)

    # What surrounds a command

    def precmd(self, statement: Statement | str) -> Statement:
        """Keep a line for the next run."""
        statement = super().precmd(statement)
        if statement.raw != END_OF_INPUT:
            self._lines.add(statement.raw)
        return statement

    def onecmd(self, statement: Statement | str, *, add_to_history: bool = True) -> bool:
        """Run one command, and turn what it raises into one line."""
        command = statement.command if isinstance(statement, Statement) else ""
        try:
            with ctrl_d_kept() if self._editor is not None else contextlib.nullcontext():
                stop = super().onecmd(statement, add_to_history=add_to_history)
        except text.Misuse as misuse:
            self._failed = True
            self.say(text.reply_misused(command, misuse))
        except KeyboardInterrupt:
            self.say(text.reply_interrupted(command))
            raise
        except (DstoreError, *console.BUILT_IN_ERRORS) as error:
            self._note_answer(error)
            self.say(text.reply_refused(error))
        else:
            if command in text.USAGES and text.USAGES[command].asks:
                self._note_answer(None)
            return stop
        return False

    def sigint_handler(self, signum: int, frame: FrameType | None) -> None:
        """Interrupt the running command, if there is one, at Ctrl-C while no line is edited."""
        if self.current_command is not None or not PROMPT_TOOLKIT:
            super().sigint_handler(signum, frame)

    def _note_answer(self, error: Exception | None) -> None:
        """Update the exit code after a command: 3 until Global has answered for the first time."""
        if error is None or isinstance(error, (KeyMissing, KeyOccupied)):
            self._answered, self.exit_code = True, console.EXIT_OK
            return
        self._failed = True
        if isinstance(error, UNREACHED) and not self._answered:
            self.exit_code = console.EXIT_UNREACHED

    def say(self, line: str, *, flush: bool = True) -> None:
        """Print one line of a reply as it is; cmd2 would look for styles in it.

        Characters that would break the line or steer the terminal are escaped.
        """
        self._print(visible(line), flush=flush)

    def _print(self, lines: str, *, flush: bool = True) -> None:
        try:
            print(lines, file=self.stdout, flush=flush)
        except BrokenPipeError:
            console.drop_stdout()
            raise SystemExit(console.EXIT_PIPE_CLOSED) from None

    def pexcept(self, exception: BaseException, **kwargs: Any) -> None:
        """Print one line for an unexpected error, where cmd2 would print a traceback."""
        self._failed = True
        self.say(f"Error: {type(exception).__name__}: {console.one_line(exception)}")

    def _announce(self, key: str | bytes) -> None:
        """Announce that a deletion has taken a key from this Local. The Node's thread calls it."""
        if self._own.take(key):
            return
        message = f"(deleted elsewhere) {text.shown_key(key)}"
        if self._editor is not None:
            self._editor.alert(message)
        else:
            with contextlib.suppress(OSError):
                print(message, file=sys.stderr, flush=True)
