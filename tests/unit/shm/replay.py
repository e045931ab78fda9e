"""Steps a reader of the host cache against writers: each load may come at each later moment.

A writer runs on a :class:`Traced` memory, which notes its stores in their order. So the memory at
each moment is known: a :class:`History`. A reader runs on a :class:`Replayed` memory, where each of
its loads takes place at some moment, not before that of the load before. :func:`outcomes` tries all
of them: of the moments at which a load gives the same value, the first allows all that later ones
do, so it is enough. The copy of a record is one load for each word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

WORD = 8
Store = tuple[int, bytes]
"""An offset, and the bytes that were stored there in one step."""


class Traced:
    """The memory of a writer; a slice is stored word by word, in the order of ``ascending``."""

    def __init__(self, memory: bytes, *, ascending: bool = True) -> None:
        self.now = bytearray(memory)
        self.stores: list[Store] = []
        self._ascending = ascending

    def cast(self, kind: str) -> Any:
        assert kind == "Q"
        return _TracedWords(self)

    def __getitem__(self, place: Any) -> Any:
        return memoryview(self.now)[place]

    def __setitem__(self, place: int | slice, data: Any) -> None:
        if isinstance(place, int):
            self.store(place, bytes([data]))
            return
        parts = [(place.start + at, data[at : at + WORD]) for at in range(0, len(data), WORD)]
        for offset, part in parts if self._ascending else reversed(parts):
            self.store(offset, part)

    def store(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        self.stores.append((offset, data))


class _TracedWords:
    def __init__(self, memory: Traced) -> None:
        self._memory = memory

    def __getitem__(self, place: int) -> int:
        found: int = memoryview(self._memory.now).cast("Q")[place]
        return found

    def __setitem__(self, place: int, word: int) -> None:
        self._memory.store(WORD * place, word.to_bytes(WORD, "little"))


class History:
    """What memory was at each moment: moment n is that after n stores."""

    def __init__(self, memory: bytes, stores: list[Store]) -> None:
        self._first = memory
        self._changes: dict[int, list[tuple[int, bytes]]] = {}
        now = bytearray(memory)
        for moment, (offset, data) in enumerate(stores, 1):
            now[offset : offset + len(data)] = data
            word = offset // WORD * WORD
            self._changes.setdefault(word, []).append((moment, bytes(now[word : word + WORD])))

    def values(self, word: int, since: int) -> list[tuple[int, bytes]]:
        """Return the values of a word from a moment on, each with its first moment since then."""
        value, later = self._first[word : word + WORD], []
        for moment, data in self._changes.get(word, ()):
            if moment <= since:
                value = data
            else:
                later.append((moment, data))
        found = {value: since}
        for moment, data in later:
            found.setdefault(data, moment)
        return [(moment, data) for data, moment in found.items()]


class Replayed:
    """The memory of a reader, whose loads take the moments that ``choices`` say, then the first.

    ``options`` counts the values from which each load could choose. ``frozen`` words have for ever
    the value that was loaded first: that is a reader that does not look again.
    """

    def __init__(self, history: History, choices: list[int], frozen: frozenset[int]) -> None:
        self._history = history
        self._choices = choices
        self._frozen = frozen
        self._kept: dict[int, bytes] = {}
        self._moment = 0
        self.options: list[int] = []

    def cast(self, kind: str) -> Any:
        assert kind == "Q"
        return _ReplayedWords(self)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int):
            return self.load(place // WORD * WORD)[place % WORD]
        return _Slice([self.load(at) for at in range(place.start, place.stop, WORD)])

    def __setitem__(self, place: int, byte: int) -> None:
        """A reader marks a record as read; no load of a reader depends on it."""

    def load(self, word: int) -> bytes:
        if word in self._kept:
            return self._kept[word]
        values = self._history.values(word, self._moment)
        step = len(self.options)
        self.options.append(len(values))
        chosen = self._choices[step] if step < len(self._choices) else 0
        self._moment, value = values[chosen]
        if word in self._frozen:
            self._kept[word] = value
        return value


class _ReplayedWords:
    def __init__(self, memory: Replayed) -> None:
        self._memory = memory

    def __getitem__(self, place: int) -> int:
        return int.from_bytes(self._memory.load(WORD * place), "little")


class _Slice:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def tobytes(self) -> bytes:
        return b"".join(self._parts)


def outcomes(
    history: History, read: Callable[[Replayed], Any], frozen: frozenset[int] = frozenset()
) -> Iterator[Any]:
    """What ``read`` returns, for each choice of the moments of its loads."""
    left: list[list[int]] = [[]]
    while left:
        choices = left.pop()
        memory = Replayed(history, choices, frozen)
        yield read(memory)
        for step in range(len(choices), len(memory.options)):
            taken = choices + [0] * (step - len(choices))
            left += [[*taken, other] for other in range(1, memory.options[step])]
