"""``dstore repl``: a prompt in front of one Node, or a script for it on standard input.

``session`` is the REPL, ``text`` what it reads and writes (start there), ``editor`` its dealings
with cmd2 and the line editor, ``completion`` and ``key_finder`` what Tab offers, ``history`` the
lines typed before, ``own_deletions`` what needs no announcement. ``show`` puts values on one line,
``values`` moves them from and to files, and ``bar`` shows how far that is: the command line uses
these three as well.
"""

from __future__ import annotations

import sys


def main(address: str | None, timeout: float) -> int:
    """Prompt at a terminal, or obey the lines of a pipe or a file; returns the exit code.

    Both ways it reads and writes UTF-8, in any locale. What is not UTF-8 are the bytes that it is.

    0; 3 if there were questions for Global and it answered none of them; 130 if Ctrl-C ended a
    script. A malformed address raises ``AddressError``. Call it from the main thread.
    """
    from dstore.cli import console
    from dstore.cli.repl.session import Repl
    from dstore.runtime.signals import signals_blocked

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    console.in_utf8(sys.stdin, "surrogateescape", newline="\n")  # "\r" within a line is of a key
    console.in_utf8(sys.stdout, "backslashreplace")
    console.in_utf8(sys.stderr, "backslashreplace")
    with signals_blocked():
        repl = Repl(address, timeout=timeout, at_terminal=at_terminal)
    with repl.node:
        try:
            return repl.talk() if at_terminal else repl.obey(sys.stdin)
        except KeyboardInterrupt:
            return console.EXIT_INTERRUPTED
