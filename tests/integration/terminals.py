"""Commands whose standard error, and if wanted standard output too, is a (pseudo-)terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

from tests.ending import Closing, kill
from tests.integration.repl_processes import PATIENCE, ROOT

AT_ONCE = "from dstore.cli import progress as p; p.SHOW_AFTER = p.DRAW_EVERY = 0.0; "
"""Makes a bar appear however quick the command is."""
MAIN = "import sys; from dstore.cli import main; sys.exit(main(sys.argv[1:]))"
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"


class AtTerminal(Closing):
    """``python -c SCRIPT ARGUMENTS`` at a terminal of 80 columns; a context manager.

    With ``variables`` in its environment, COLUMNS among them if the window is to be wider or
    narrower.
    """

    def __init__(
        self, *arguments: str, script: str = MAIN, stdout: bool = False, **variables: str
    ) -> None:
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **variables}
        self._master, slave = pty.openpty()
        window = struct.pack("HHHH", 24, int(env["COLUMNS"]), 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, window)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=slave if stdout else subprocess.PIPE,
            stderr=slave,
            cwd=ROOT,
            env=env,
        )
        os.close(slave)
        self.screen = ""

    def expect(self, text: str) -> None:
        """Read what is written to the terminal until this has come."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.screen:
            assert self._read(deadline), f"{text!r} did not come, but {self.screen!r}"

    def end(self, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Wait for the end: exit code, standard output, all that was written to the terminal.

        What goes to standard output is to fit into a pipe.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(stdin)
            self.process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        out = self.process.stdout.read() if self.process.stdout is not None else b""
        return self.process.wait(PATIENCE), out, self.screen.replace("\r\n", "\n")

    def _read(self, deadline: float) -> bool:
        """Read a little; False when the other side has gone, or the time is over."""
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._master], [], [], left)[0]:
            return False
        try:
            read = os.read(self._master, 65536)
        except OSError:
            return False
        self.screen += read.decode(errors="replace")
        return bool(read)

    def close(self) -> None:
        kill(self.process)
        os.close(self._master)


def inked(screen: str) -> str:
    """What is to be seen of it."""
    return ESCAPES.sub("", screen)
