"""The contract tests of :class:`dstore.core.engine.Engine`.

Subclass :class:`EngineContract` in a pytest module and give it ``make``::

    class TestMyEngine(EngineContract):
        def make(self, limit: int) -> Engine:
            return MyEngine(limit=limit)
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from dstore.core.engine import Engine
from dstore.errors import StoreFull
from dstore.protocol.keys import from_bytes, to_bytes
from dstore.protocol.messages import Stored
from dstore.testing.bulk_contract import raises

ROOMY = 1 << 20
ODD_KEYS = ("a", "ä", "漢", "\udcff", "b3:0", " ", "a/b", "A" * 511)
NEIGHBOURS = (
    b"\x7f", b"\x80", b"\xc3", b"\xc3(", b"\xc3\xa9", b"\xc3\xa9x", b"\xc3\xbf", b"\xc3\xff",
    b"\xc4\x80", b"\xe6\xbc", b"\xe6\xbc\xa2", b"\xed\xb3\xbf", b"\xef\xbf\xbf",
    b"\xf0\x9f\x98\x80", b"\xf4\x8f\xbf\xbf", b"\xff", b"\xff\xff",
)  # fmt: skip
"""Keys in the order of their bytes, some of them UTF-8 and some not."""
WIDE = (
    "\U0001f600" * 127, "\u6f22" * 170, "\xe9" * 255, "\U0001f600" + "k" * 507, "\udcff" * 511,
)  # fmt: skip
"""Long keys whose characters take more in memory than bytes on the wire."""


def stored(number: int, body: bytes = b"v") -> Stored:
    """A value whose token is ``number``."""
    return Stored(number.to_bytes(16, "big"), "bytes", body)


class EngineContract(ABC):
    """The contract of :class:`dstore.core.engine.Engine`."""

    @abstractmethod
    def make(self, limit: int) -> Engine:
        """Make an empty engine that holds about ``limit`` bytes."""

    def test_what_was_bound_is_read(self) -> None:
        engine = self.make(ROOMY)
        values = {key: stored(number, to_bytes(key)) for number, key in enumerate(ODD_KEYS)}
        for key, value in values.items():
            assert engine.read(key) is None
            engine.bind(key, value)
        assert {key: engine.read(key) for key in ODD_KEYS} == values
        assert len(engine) == len(ODD_KEYS)
        engine.close()

    def test_an_empty_value_is_a_value(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1, b""))
        assert engine.read("k") == stored(1, b"")
        engine.close()

    def test_remove_takes_only_the_token_it_names(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1))
        assert not engine.remove("k", stored(2).token)
        assert engine.read("k") == stored(1)
        assert engine.remove("k", stored(1).token)
        assert engine.read("k") is None
        assert not engine.remove("k", stored(1).token)
        assert len(engine) == 0
        engine.close()

    def test_replace_takes_only_the_token_it_names(self) -> None:
        engine = self.make(ROOMY)
        assert not engine.replace("k", stored(1).token, stored(2))
        engine.bind("k", stored(1))
        assert not engine.replace("k", stored(9).token, stored(2))
        assert engine.read("k") == stored(1)
        assert engine.replace("k", stored(1).token, stored(2))
        assert engine.read("k") == stored(2)
        assert len(engine) == 1
        engine.close()

    def test_size_goes_back_to_where_it_was(self) -> None:
        engine = self.make(ROOMY)
        empty = engine.size
        engine.bind("k", stored(1, b"x" * 1000))
        full = engine.size
        assert full >= empty + 1000
        engine.replace("k", stored(1).token, stored(2, b"x" * 100))
        assert engine.size <= full - 900
        engine.remove("k", stored(2).token)
        assert engine.size == empty
        engine.close()

    def test_what_does_not_fit_is_refused_and_changes_nothing(self) -> None:
        engine = self.make(10_000)
        assert engine.limit == 10_000
        engine.bind("k", stored(1, b"x" * 5_000))
        too_much = stored(2, b"x" * 6_000)
        assert not engine.fits("l", too_much)
        before = engine.size
        assert raises(StoreFull, lambda: engine.bind("l", too_much))
        assert engine.read("l") is None
        assert engine.size == before
        assert engine.fits("k", too_much), "in place of what is there it fits"
        engine.close()

    def test_a_scan_finds_each_key_once_page_by_page(self) -> None:
        engine = self.make(ROOMY)
        keys = {f"k/{number}" for number in range(250)} | set(ODD_KEYS)
        for number, key in enumerate(sorted(keys)):
            engine.bind(key, stored(number))
        for limit in (1, 7, 1000):
            assert sorted(self._scan(engine, "", limit)) == sorted(keys)
        engine.close()

    def test_a_scan_of_a_prefix_finds_what_begins_with_it(self) -> None:
        engine = self.make(ROOMY)
        for number, key in enumerate(["a", "ab", "abc", "b", "ab\U0010ffff", "ac", "ab\udcff"]):
            engine.bind(key, stored(number))
        found = self._scan(engine, "ab", 2)
        assert sorted(found) == sorted(["ab", "abc", "ab\U0010ffff", "ab\udcff"])
        assert engine.scan("zz", "", 10) == []
        engine.close()

    def test_a_scan_is_in_the_order_of_bytes(self) -> None:
        engine = self.make(ROOMY)
        for number, raw in enumerate(reversed(NEIGHBOURS)):
            engine.bind(from_bytes(raw), stored(number))
        for limit in (1, 2, 1000):
            found = [to_bytes(key) for key in self._scan(engine, "", limit)]
            assert found == list(NEIGHBOURS)
        engine.close()

    def test_a_prefix_may_end_within_a_character(self) -> None:
        engine = self.make(ROOMY)
        for number, raw in enumerate(NEIGHBOURS):
            engine.bind(from_bytes(raw), stored(number))
        for raw in NEIGHBOURS:
            for end in range(len(raw) + 1):
                prefix = raw[:end]
                found = [to_bytes(key) for key in self._scan(engine, from_bytes(prefix), 2)]
                assert found == [each for each in NEIGHBOURS if each.startswith(prefix)]
        engine.close()

    def test_a_scan_goes_on_after_any_key_bound_or_not(self) -> None:
        engine = self.make(ROOMY)
        bound = NEIGHBOURS[::2]
        for number, raw in enumerate(bound):
            engine.bind(from_bytes(raw), stored(number))
        for prefix in (b"", b"\xc3", b"\xff", b"nothing"):
            for after in (b"", *NEIGHBOURS):
                found = engine.scan(from_bytes(prefix), from_bytes(after), 1000)
                assert [to_bytes(key) for key in found] == [
                    each for each in bound if each.startswith(prefix) and each > after
                ]
        engine.close()

    def test_size_counts_keys_and_codec_names_as_python_keeps_them(self) -> None:
        engine = self.make(ROOMY)
        empty = engine.size
        for number, key in enumerate(WIDE):
            before = engine.size
            engine.bind(key, stored(number))
            assert engine.size - before >= sys.getsizeof(key)
        before = engine.size
        long = Stored(stored(9).token, "c" * 64, b"")
        engine.bind("long", long)
        engine.bind("short", stored(10, b""))
        assert engine.size - before >= 2 * (sys.getsizeof(stored(10)) + sys.getsizeof(b"")) + 64
        full = engine.size
        assert engine.replace("short", stored(10).token, long)
        assert engine.size == full + 64 - len(stored(10).codec), "the new codec's name is counted"
        engine.remove("short", long.token)
        engine.remove("long", long.token)
        for number, key in enumerate(WIDE):
            assert engine.remove(key, stored(number).token)
        assert engine.size == empty
        engine.close()

    def test_fits_says_what_bind_does(self) -> None:
        for key in ("k", WIDE[0]):
            for codec in ("bytes", "c" * 64):
                value = Stored(stored(1).token, codec, b"v" * 100)
                measure = self.make(ROOMY)
                measure.bind(key, value)
                for room in (measure.size, measure.size - 1):
                    engine = self.make(room)
                    fits = engine.fits(key, value)
                    try:
                        engine.bind(key, value)
                    except StoreFull:
                        assert not fits
                        assert engine.size == 0
                    else:
                        assert fits
                        assert engine.fits(key, value), "in place of itself"
                    assert fits == (room == measure.size)
                    engine.close()
                measure.close()

    def test_a_scan_finds_what_stays_whatever_comes_and_goes(self) -> None:
        engine = self.make(ROOMY)
        stay = [f"stay/{number:03}" for number in range(50)]
        for number, key in enumerate(stay):
            engine.bind(key, stored(number))
        found: list[str] = []
        after, number = "", 1000
        while page := engine.scan("", after, 3):
            found += page
            after = page[-1]
            engine.bind(f"come/{number}", stored(number))
            engine.bind(f"stay/{number}x", stored(number))
            engine.remove(f"stay/{number}x", stored(number).token)
            number += 1
        assert [key for key in found if key in stay] == stay
        engine.close()

    def test_close_is_idempotent(self) -> None:
        engine = self.make(ROOMY)
        engine.close()
        engine.close()

    @staticmethod
    def _scan(engine: Engine, prefix: str, limit: int) -> list[str]:
        found: list[str] = []
        while page := engine.scan(prefix, found[-1] if found else "", limit):
            assert len(page) <= limit
            found += page
        return found
