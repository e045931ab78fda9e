"""REPLs as processes: with pipes for standard streams, and at a (pseudo-)terminal."""

from __future__ import annotations

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
from pathlib import Path

from tests.ending import kill

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds; only a test that fails takes them."""
PROMPT = "db> "
TAB, ENTER, CTRL_C, CTRL_D, CTRL_U, UP = "\t", "\r", "\x03", "\x04", "\x15", "\x1b[A"

NOT_INK = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[ -/]*[0-~])|\s")
"""Escape sequences, and blanks: a line editor may move over a blank instead of drawing it."""
OWN_THE_TERMINAL = """
import os, runpy, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the first one to open it gets its Ctrl-C
sys.argv[0] = "dstore"
runpy.run_module("dstore", run_name="__main__")
"""


def inked(text: str) -> str:
    """What of a text is to be seen on a terminal, whichever way it was drawn."""
    return NOT_INK.sub("", text)


class Terminal:
    """A REPL at a terminal. ``expect`` reads on until it has seen a text."""

    def __init__(self, address: str, state: Path, *options: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_THE_TERMINAL, "repl", "--address", address, *options],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env={
                **os.environ,
                "XDG_STATE_HOME": str(state),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
            },
        )
        os.close(slave)
        self._unseen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Read until ``text``, and return what was drawn before it, without blanks."""
        before = self.read_until(text, PATIENCE)
        assert before is not None, f"{text!r} did not come, but {self._unseen!r}"
        return before

    def read_until(self, text: str, stall_timeout: float) -> str | None:
        deadline = time.monotonic() + stall_timeout
        while inked(text) not in inked(self._unseen):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                return None
            try:
                self._unseen += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the other side has gone
                return None
        before, _, self._unseen = inked(self._unseen).partition(inked(text))
        return before

    def ask(self, line: str, reply: str) -> None:
        """Type a line and read on to the prompt that follows the reply."""
        self.type(line + ENTER)
        self.expect(reply)
        self.expect(PROMPT)

    def wait_until_it_works(self) -> None:
        """Wait until a command runs.

        The line editor has restored the terminal's mode, and the REPL keeps Ctrl-D for the editor.
        """
        while True:
            mode = termios.tcgetattr(self._master)
            if mode[3] & termios.ICANON and mode[6][termios.VEOF] == b"\0":
                return
            select.select([], [], [], 0.005)

    def close(self) -> None:
        kill(self.process)
        os.close(self._master)


class Piped:
    """A REPL whose standard streams are pipes."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dstore", "repl", "--address", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self._in, self._out, self._err = (
            self.process.stdin,
            self.process.stdout,
            self.process.stderr,
        )
        self.greeting = [self.reply(), self.reply()]

    def reply(self) -> str:
        return self._out.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        self._in.write(f"{line}\n")
        self._in.flush()
        return self.reply()

    def alert(self) -> str:
        return self._err.readline().rstrip("\n")

    def leave(self) -> tuple[int, str, str]:
        """The exit code, and what was still to be read."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err
