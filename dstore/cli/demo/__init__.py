"""``dstore demo``: one Global and several worker processes that share the files of a folder.

``story`` is what the parent process does, phase by phase; ``worker`` is what each worker does and
how it checks each answer; ``files`` reads the folder.
"""

from __future__ import annotations

GOOD, BAD, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(folder: str | None = None, workers: int = 4) -> int:
    """Run the demo over ``folder`` (default: the sources of Python's standard library).

    Returns the exit code: 0 for a good verdict, 1 for a bad one, 2 for a folder that cannot be
    used, 130 after an interrupt. Call it from the main thread, since it handles signals.
    """
    from dstore.cli.console import complain
    from dstore.cli.demo.files import FolderError
    from dstore.cli.demo.story import run

    try:
        return GOOD if run(folder, workers) else BAD
    except FolderError as error:
        complain(str(error), "dstore demo")
        return USAGE
    except KeyboardInterrupt:
        complain("interrupted", "dstore demo")
        return INTERRUPTED
