"""Stand-in: what a Global that uses a key folder tells the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping


class Running:
    """The file of one Global in the key folder."""

    @classmethod
    def open(cls, path: str) -> Running:
        return cls(path)

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.join(path, "running"), 0o700, exist_ok=True)
        self._path = os.path.join(path, "running", str(os.getpid()))
        self._file = open(self._path, "w", encoding="ascii")  # noqa: SIM115

    def report(self, generation: int, identities: Mapping[str, Mapping[str, object]]) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump({"generation": generation, "identities": identities}, self._file)
        self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            os.unlink(self._path)

    def forked(self) -> None:
        self._file.close()
