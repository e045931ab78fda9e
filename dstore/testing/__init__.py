"""Tools for testing dstore and what is built on it, usable by others."""
