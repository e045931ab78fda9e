"""What a function reads, wrapped so that each read is a step, before which others can act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dstore.core.local.membership import Entry, Membership, lease_word

PLAIN = (int, float, str, bytes, bool, type(None), tuple, Entry)
"""What is not wrapped: it does not change, or it is what a hit returns."""


class Stepped:
    """An object whose attributes and items are read in steps."""

    def __init__(self, real: Any, steps: Steps) -> None:
        self._real = real
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        real = self._real
        if name == "lease" and not hasattr(real, name):
            real = _Lease(real)
        return self._steps.read(lambda: getattr(real, name))

    def __getitem__(self, index: Any) -> Any:
        return self._steps.read(lambda: self._real[index])

    def __len__(self) -> int:
        return len(self._real)

    def __call__(self, *arguments: Any) -> Any:
        return self._steps.read(lambda: self._real(*arguments))


class _Lease:
    """The lease word of a compiled membership, which names only its value."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    @property
    def lease(self) -> _Lease:
        return self

    def __getitem__(self, index: int) -> int:
        return lease_word(self._membership.lease_end)


class Steps:
    """The steps of one hit. ``between`` is called before each; the same object looks the same."""

    def __init__(self, between: Callable[[], None]) -> None:
        self._between = between
        self._wrapped: dict[int, Stepped] = {}
        self.membership: Membership | None = None

    def read(self, what: Callable[[], Any]) -> Any:
        self._between()
        return self.wrap(what())

    def wrap(self, value: Any) -> Any:
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, Membership):
            self.membership = value
        return self._wrapped.setdefault(id(value), Stepped(value, self))
