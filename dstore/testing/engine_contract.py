"""The contract tests of :class:`dstore.engines.Engine` and :class:`dstore.engines.LoadingEngine`.

Subclass :class:`EngineContract` in a pytest module and give it ``make``::

    class TestMyEngine(EngineContract):
        def make(self, limit: int) -> Engine:
            return MyEngine(limit=limit)

For an engine that has values away, subclass :class:`LoadingContract`, which has all these tests and
more.
"""

from __future__ import annotations

import itertools
import sys
import threading
from abc import ABC, abstractmethod

from dstore.core.engine import Away, Engine, Loaded, LoadingEngine
from dstore.errors import StoreFull
from dstore.protocol.keys import from_bytes, to_bytes
from dstore.protocol.messages import Key, Stored
from dstore.testing.bulk_contract import raises

LOAD_TIMEOUT = 30.0
"""Seconds within which a load has to end."""
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


def values_of(results: list[Loaded]) -> list[bytes]:
    """Return what was loaded as bytes. Raises AssertionError for anything else."""
    for each in results:
        assert isinstance(each, (bytes, memoryview)), f"a value was not loaded: {each!r}"
    return [bytes(each) for each in results if not isinstance(each, Exception)]


class Loads:
    """Loads of an engine, and their results, as Global has them."""

    _numbers = itertools.count(1)

    def __init__(self, engine: LoadingEngine) -> None:
        self._engine = engine
        self._woken = threading.Event()
        self._ended: dict[int, list[Loaded]] = {}
        engine.begin(self._woken.set)

    def begin(self, *wanted: tuple[Key, bytes]) -> int:
        """Begin a load. Returns its number."""
        number = next(self._numbers)
        self._engine.load(number, list(wanted))
        return number

    def end(self, number: int) -> list[Loaded]:
        """Wait until a load has ended. Returns its results."""
        while number not in self._ended:
            assert self._woken.wait(LOAD_TIMEOUT), f"load {number} does not end, or wakes nobody"
            self._woken.clear()
            for each, results in self._engine.loaded():
                assert each not in self._ended, f"load {each} ended twice"
                self._ended[each] = results
        return self._ended[number]

    def now(self, *wanted: tuple[Key, bytes]) -> list[bytes]:
        """Load values and return their bytes."""
        return values_of(self.end(self.begin(*wanted)))


class EngineContract(ABC):
    """The contract of :class:`dstore.engines.Engine`."""

    @abstractmethod
    def make(self, limit: int) -> Engine:
        """Make an empty engine that holds about ``limit`` bytes."""

    def read(self, engine: Engine, key: Key) -> Stored | None:
        """Read a value, and load its bytes if they are away."""
        bound = engine.read(key)
        if not isinstance(bound, Away):
            return bound
        (body,) = Loads(engine).now((key, bound.token))  # type: ignore[arg-type]
        assert len(body) == bound.size
        return Stored(bound.token, bound.codec, body)

    def test_what_was_bound_is_read(self) -> None:
        engine = self.make(ROOMY)
        values = {key: stored(number, to_bytes(key)) for number, key in enumerate(ODD_KEYS)}
        for key, value in values.items():
            assert self.read(engine, key) is None
            engine.bind(key, value)
        assert {key: self.read(engine, key) for key in ODD_KEYS} == values
        assert len(engine) == len(ODD_KEYS)
        engine.close()

    def test_an_empty_value_is_a_value(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1, b""))
        assert self.read(engine, "k") == stored(1, b"")
        engine.close()

    def test_remove_takes_only_the_token_it_names(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1))
        assert not engine.remove("k", stored(2).token)
        assert self.read(engine, "k") == stored(1)
        assert engine.remove("k", stored(1).token)
        assert self.read(engine, "k") is None
        assert not engine.remove("k", stored(1).token)
        assert len(engine) == 0
        engine.close()

    def test_replace_takes_only_the_token_it_names(self) -> None:
        engine = self.make(ROOMY)
        assert not engine.replace("k", stored(1).token, stored(2))
        engine.bind("k", stored(1))
        assert not engine.replace("k", stored(9).token, stored(2))
        assert self.read(engine, "k") == stored(1)
        assert engine.replace("k", stored(1).token, stored(2))
        assert self.read(engine, "k") == stored(2)
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
        assert self.read(engine, "l") is None
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
        other = long._replace(token=stored(11).token)
        assert engine.replace("short", stored(10).token, other)
        assert engine.size == full + 64 - len(stored(10).codec), "the new codec's name is counted"
        engine.remove("short", other.token)
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


class LoadingContract(EngineContract):
    """The contract of :class:`dstore.engines.LoadingEngine`."""

    @abstractmethod
    def make(self, limit: int) -> LoadingEngine:
        """Make an empty engine that holds about ``limit`` bytes, and has all values away."""

    def test_values_are_loaded_in_the_order_in_which_they_are_wanted(self) -> None:
        engine = self.make(ROOMY)
        for number, key in enumerate(ODD_KEYS):
            engine.bind(key, stored(number, to_bytes(key)))
        wanted = [(key, stored(number).token) for number, key in enumerate(ODD_KEYS)]
        for order in (wanted, wanted[::-1]):
            assert Loads(engine).now(*order) == [to_bytes(key) for key, _ in order]
        engine.close()

    def test_an_empty_value_is_loaded(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1, b""))
        assert Loads(engine).now(("k", stored(1).token)) == [b""]
        engine.close()

    def test_many_loads_are_under_way_and_each_ends_once(self) -> None:
        engine = self.make(ROOMY)
        for number in range(100):
            engine.bind(f"k{number}", stored(number, b"%d" % number))
        loads = Loads(engine)
        begun = [loads.begin((f"k{number}", stored(number).token)) for number in range(100)]
        for number, load in enumerate(begun):
            assert values_of(loads.end(load)) == [b"%d" % number]
        assert engine.loaded() == []
        engine.close()

    def test_what_is_removed_while_it_is_loaded_disturbs_no_other(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1))
        engine.bind("l", stored(2, b"l"))
        loads = Loads(engine)
        wanted = ("k", stored(1).token), ("l", stored(2).token)
        before = loads.begin(*wanted)
        assert engine.remove("k", stored(1).token)
        for number in (before, loads.begin(*wanted)):
            results = loads.end(number)
            assert len(results) == 2
            assert values_of(results[1:]) == [b"l"]
        engine.close()

    def test_what_is_loaded_for_a_token_is_of_that_token(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1, b"old"))
        loads = Loads(engine)
        for number in range(1, 50):
            former, latest = stored(number), stored(number + 1, b"%03d" % number)
            before = loads.begin(("k", former.token))
            assert engine.replace("k", former.token, latest)
            assert loads.now(("k", latest.token)) == [latest.body]
            assert len(loads.end(before)) == 1
        engine.close()

    def test_the_function_that_was_given_last_is_called(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1))
        engine.begin(lambda: None)
        assert Loads(engine).now(("k", stored(1).token)) == [b"v"]
        engine.close()

    def test_close_does_not_wait_for_a_reader(self) -> None:
        engine = self.make(ROOMY)
        engine.bind("k", stored(1))
        loads = Loads(engine)
        for _ in range(100):
            loads.begin(("k", stored(1).token))
        engine.close()
        engine.close()
