"""A program that uses a key folder as a Global does, without sockets.

``python -m tests.integration.access_globals FOLDER`` applies each change and reports it, until it
is killed. It writes a line for each report: the generation and the names that it would admit.
"""

from __future__ import annotations

import sys
import time

from dstore.access.keys import KeyFolder
from dstore.access.running import Running, Seen

PAUSE = 0.01


def main(path: str) -> None:
    folder, running = KeyFolder(path), Running.open(path)
    while True:
        if folder.changed():
            ring = folder.load()
            seen = {each.name: Seen(1_900_000_000.0, 2) for each in ring.identities}
            running.report(ring.generation, seen)
            print(ring.generation, *seen, flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(sys.argv[1])
