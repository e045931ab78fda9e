"""``dstore repl``: a prompt in front of one Node, or a script for it on standard input.

``session`` is the REPL; ``text`` has what it reads and writes (start there).
"""

from __future__ import annotations

import sys


def main(address: str | None, timeout: float, *, connect: str | None = None) -> int:
    """Prompt at a terminal, or carry out the lines of a pipe or a file. Returns the exit code.

    It reads and writes UTF-8 in any locale; input that is not UTF-8 counts as bytes.

    ``connect`` is the path of a connect file. The exit code is 0; 1 if a command of a script was
    wrong or failed; 3 if Global answered none of the commands; 130 if Ctrl-C ended a script. A
    malformed address raises ``AddressError``, and a connect file that cannot be used
    ``BadConnectFile``. Call it from the main thread.
    """
    from dstore.cli import console
    from dstore.cli.repl.session import Repl
    from dstore.runtime.native import signals_blocked

    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    # "\r" within a line belongs to a key
    console.in_utf8(sys.stdin, "surrogateescape", newline="\n")
    console.in_utf8(sys.stdout, "backslashreplace")
    console.in_utf8(sys.stderr, "backslashreplace")
    with signals_blocked():
        repl = Repl(address, connect=connect, timeout=timeout, at_terminal=at_terminal)
    with repl.node:
        try:
            return repl.talk() if at_terminal else repl.obey(sys.stdin)
        except KeyboardInterrupt:
            return console.EXIT_INTERRUPTED
