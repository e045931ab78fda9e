"""The contract tests of :class:`dstore.engines.Bulk`, the place for large values.

Subclass :class:`BulkContract` in a pytest module and give it ``make``::

    class TestMyBulk(BulkContract):
        def make(self) -> Bulk:
            return MyBulk()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from dstore.core.engine import Bulk
from dstore.errors import StoreFull

PIECE = 64 << 10
VALUE = bytes(range(256)) * (3 * PIECE // 256) + b"and a bit more"
BEYOND_ALL_MEMORY = 1 << 60


def token(number: int) -> bytes:
    """The token of write ``number``."""
    return number.to_bytes(16, "big")


def got(bulk: Bulk, value: bytes, offset: int, count: int) -> bytes | None:
    """Call :meth:`Bulk.read`. Returns a copy of what it returns."""
    view = bulk.read(value, offset, count)
    return None if view is None else bytes(view)


def raises(kind: type[Exception], call: Callable[[], object]) -> bool:
    """Whether a call raises this kind of error."""
    try:
        call()
    except kind:
        return True
    return False


class BulkContract(ABC):
    """The contract of :class:`dstore.engines.Bulk`."""

    @abstractmethod
    def make(self) -> Bulk:
        """Make an empty Bulk with room for a few megabytes."""

    def sealed(self, bulk: Bulk, number: int, value: bytes = VALUE) -> bytes:
        """Write a value in pieces and seal it. Returns its token."""
        bulk.reserve(token(number), len(value))
        for start in range(0, len(value), PIECE):
            bulk.write(token(number), start, value[start : start + PIECE])
        bulk.seal(token(number))
        return token(number)

    def test_what_was_written_is_read(self) -> None:
        bulk = self.make()
        first = self.sealed(bulk, 1)
        second = self.sealed(bulk, 2, b"another")
        assert got(bulk, first, 0, len(VALUE)) == VALUE
        assert got(bulk, second, 0, 100) == b"another"
        bulk.close()

    def test_pieces_may_come_in_any_order_and_again(self) -> None:
        bulk = self.make()
        bulk.reserve(token(1), 9)
        for offset, piece in ((6, b"ghi"), (0, b"xxx"), (3, memoryview(b"def")), (0, b"abc")):
            bulk.write(token(1), offset, piece)
        bulk.write(token(1), 9, b"")
        bulk.seal(token(1))
        assert got(bulk, token(1), 0, 9) == b"abcdefghi"
        bulk.close()

    def test_a_piece_is_at_most_what_was_asked_for_and_fewer_at_the_end(self) -> None:
        bulk = self.make()
        value = self.sealed(bulk, 1, b"0123456789")
        assert got(bulk, value, 3, 4) == b"3456"
        assert got(bulk, value, 8, 4) == b"89"
        assert got(bulk, value, 10, 4) == b""
        assert got(bulk, value, 11, 4) == b""
        assert got(bulk, value, 3, 0) == b""
        bulk.close()

    def test_nothing_is_read_before_it_is_sealed(self) -> None:
        bulk = self.make()
        assert got(bulk, token(1), 0, 1) is None
        bulk.reserve(token(1), 3)
        assert got(bulk, token(1), 0, 1) is None
        bulk.write(token(1), 0, b"abc")
        assert got(bulk, token(1), 0, 1) is None
        bulk.seal(token(1))
        assert got(bulk, token(1), 0, 1) == b"a"
        bulk.close()

    def test_a_sealed_value_is_written_no_more(self) -> None:
        bulk = self.make()
        value = self.sealed(bulk, 1, b"abc")
        assert raises(KeyError, lambda: bulk.write(value, 0, b"x"))
        assert raises(KeyError, lambda: bulk.seal(value))
        view = bulk.read(value, 0, 3)
        assert view is not None and view.readonly
        bulk.close()

    def test_what_is_not_reserved_is_not_written(self) -> None:
        bulk = self.make()
        assert raises(KeyError, lambda: bulk.write(token(1), 0, b"x"))
        assert raises(KeyError, lambda: bulk.seal(token(1)))
        bulk.close()

    def test_a_piece_has_to_be_within_the_value(self) -> None:
        bulk = self.make()
        bulk.reserve(token(1), 4)
        assert raises(ValueError, lambda: bulk.write(token(1), 2, b"abc"))
        assert raises(ValueError, lambda: bulk.write(token(1), 5, b""))
        assert raises(ValueError, lambda: bulk.write(token(1), -1, b"a"))
        bulk.write(token(1), 0, b"abcd")
        bulk.seal(token(1))
        assert got(bulk, token(1), 0, 9) == b"abcd"
        bulk.close()

    def test_what_does_not_fit_is_refused_and_changes_nothing(self) -> None:
        bulk = self.make()
        value = self.sealed(bulk, 1)
        assert raises(StoreFull, lambda: bulk.reserve(token(2), BEYOND_ALL_MEMORY))
        assert raises(KeyError, lambda: bulk.write(token(2), 0, b"x"))
        assert got(bulk, value, 0, len(VALUE)) == VALUE
        self.sealed(bulk, 2)
        bulk.close()

    def test_nothing_is_adopted_where_no_node_has_written(self) -> None:
        bulk = self.make()
        assert not bulk.adopt(token(1), 3)
        assert got(bulk, token(1), 0, 3) is None
        bulk.reserve(token(1), 3)
        assert not bulk.adopt(token(1), 3)
        bulk.write(token(1), 0, b"abc")
        bulk.seal(token(1))
        assert not bulk.adopt(token(1), 3)
        assert got(bulk, token(1), 0, 3) == b"abc"
        bulk.close()

    def test_what_was_dropped_is_gone_and_may_be_begun_afresh(self) -> None:
        bulk = self.make()
        value = self.sealed(bulk, 1)
        bulk.drop(value)
        assert got(bulk, value, 0, 1) is None
        bulk.reserve(value, 3)
        bulk.write(value, 0, b"ab")
        bulk.drop(value)
        assert raises(KeyError, lambda: bulk.seal(value))
        self.sealed(bulk, 1, b"afresh")
        assert got(bulk, value, 0, 9) == b"afresh"
        bulk.close()

    def test_dropping_what_is_not_there_is_fine(self) -> None:
        bulk = self.make()
        bulk.drop(token(1))
        bulk.drop(self.sealed(bulk, 2))
        bulk.drop(token(2))
        bulk.close()

    def test_a_view_outlives_its_value(self) -> None:
        bulk = self.make()
        first, second = self.sealed(bulk, 1), self.sealed(bulk, 2, VALUE[::-1])
        part, whole = bulk.read(first, 7, PIECE), bulk.read(second, 0, len(VALUE))
        assert part is not None and whole is not None
        bulk.drop(first)
        self.sealed(bulk, 3, b"x" * len(VALUE))
        assert bytes(part) == VALUE[7 : 7 + PIECE]
        bulk.close()
        assert bytes(part) == VALUE[7 : 7 + PIECE]
        assert bytes(whole) == VALUE[::-1]

    def test_close_is_idempotent(self) -> None:
        bulk = self.make()
        self.sealed(bulk, 1)
        bulk.reserve(token(2), 3)
        bulk.close()
        bulk.close()
        assert got(bulk, token(1), 0, 1) is None
