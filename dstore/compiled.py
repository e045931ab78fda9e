"""The compiled part of dstore, if it is there and wanted.

``dstore._native`` holds what a hit needs, compiled. It is built when dstore is installed where
there is a compiler for C. Without it everything works the same, in Python. ``DSTORE_PURE=1`` in the
environment, read when dstore is imported, has it left out.
"""

from __future__ import annotations

import os
from types import ModuleType

PURE = "DSTORE_PURE"
"""The environment variable that has the compiled part left out, unless it is empty or 0."""


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get(PURE, "0") not in ("", "0"):
        return None, f"${PURE} is set"
    try:
        import dstore._native as found  # type: ignore[import-not-found]
    except ImportError as error:
        return None, f"it is not built: {error}"
    return found, ""


native, missing = _load()
"""The module :mod:`dstore._native`, or None, and then why it is missing."""
