"""The version of dstore. The number is written here only; ``setup.cfg`` reads it from this file."""

__version__ = "0.1.0"
