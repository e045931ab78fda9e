"""``dstore demo``: a Global and some workers, as real processes, over the files of a real folder.

Follow it in this order: ``story`` (what happens, phase by phase), ``worker`` (what one worker
does), ``verdict`` (what is held against the records afterwards). ``corpus`` finds the files,
``processes`` starts and ends the processes, ``screen`` is all that a person sees.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GOOD, BAD, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(folder: str | None = None, workers: int = 4) -> int:
    """Run the demo over ``folder`` (default: the sources of Python's standard library).

    Returns the exit code: 0 for a good verdict, 1 for a bad one, 2 for a folder that cannot be
    used, 130 when it was interrupted. Call it from the main thread: it handles signals.
    """
    from dstore.cli.console import complain
    from dstore.cli.demo.corpus import CorpusError
    from dstore.cli.demo.screen import Screen
    from dstore.cli.demo.story import tell

    screen = Screen()
    with _termination_interrupts():
        try:
            faults = tell(folder, workers, screen)
        except CorpusError as error:
            complain(str(error), "dstore demo")
            return USAGE
        except KeyboardInterrupt:
            complain("interrupted", "dstore demo")
            return INTERRUPTED
    return BAD if faults else GOOD


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does, so that they leave no process behind."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, interrupt) for signum in watched}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)
