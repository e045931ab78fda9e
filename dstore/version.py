"""The version of the dstore that is running. The number itself stands in ``setup.cfg`` alone.

A source checkout (also one installed with ``pip install -e``) is asked first: what some other
dstore on this machine left among the installed packages must not speak for it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

__version__: str

_UNKNOWN = "0+unknown"
_CHECKOUT = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def version() -> str:
    """The version as text, for example ``"1.2.3"``; ``"0+unknown"`` if nothing on disk tells."""
    return _from_checkout(_CHECKOUT) or _from_installation() or _UNKNOWN


def _from_checkout(folder: Path) -> str | None:
    import configparser

    metadata = configparser.ConfigParser(interpolation=None)
    try:
        metadata.read(folder / "setup.cfg", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None
    if metadata.get("metadata", "name", fallback=None) != "dstore":
        return None
    return metadata.get("metadata", "version", fallback=None)


def _from_installation() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("dstore")
    except metadata.PackageNotFoundError:
        return None


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
