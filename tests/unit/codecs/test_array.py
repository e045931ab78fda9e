"""Arrays are decoded as they were encoded, and are not copied unless they have to be."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.codecs import Buffer, array
from tests.unit.codecs.bodies import (
    KINDS,
    PICKLING,
    PLAIN,
    checked,
    private,
    shared,
    stored,
    through,
)

np: Any = pytest.importorskip("numpy")
hnp: Any = pytest.importorskip("hypothesis.extra.numpy")

FIELDS = [("a", "<i4"), ("b", ">f8", (2, 3)), ("c", [("x", "U3"), ("y", "M8[ms]")])]
TITLED = np.dtype([(("The title", "t"), "<i2"), ("u", "u1")])
GAPS = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [3, 16], "itemsize": 40})
BASE = np.arange(24, dtype="<i4").reshape(2, 3, 4)

ARRAYS: dict[str, Any] = {
    "bool": np.array([True, False, True]),
    **{f"int of {kind}": np.arange(-3, 3).astype(kind) for kind in ("i1", "<i2", ">i4", "=i8")},
    **{f"uint of {kind}": np.arange(6).astype(kind) for kind in ("u1", ">u2", "<u4", "<u8")},
    **{f"float of {kind}": np.linspace(-1, 1, 5).astype(kind) for kind in ("<f2", ">f4", "f8")},
    "long double": np.linspace(-1, 1, 5).astype(np.longdouble),
    "not a number": np.array([np.nan, np.inf, -0.0]),
    "complex": np.array([1j, 2 - 3j], "<c8"),
    "complex, big-endian": np.array([1j, 2 - 3j], ">c16"),
    "bytes": np.array([b"a", b"abc", b""]),
    "text": np.array(["a", "naïve", "\N{SNOWMAN}"]),
    "text, big-endian": np.array(["a", "abc"], ">U3"),
    "void": np.array([b"ab\0", b"\0cd"], "V3"),
    "time": np.array(["2026-01-02T03:04:05.678", "NaT"], "M8[ms]"),
    "time, big-endian": np.array(["2026-01-02"], ">M8[D]"),
    "span of time": np.array([1, -2, 3], "m8[25us]"),
    "structure": np.zeros(3, FIELDS),
    "simple structure": np.ones(3, "<i4, >f8"),
    "structure with titles": np.ones(2, TITLED),
    "structure with gaps": np.ones(2, GAPS),
    "aligned structure": np.ones(2, np.dtype([("a", "u1"), ("b", "<f8")], align=True)),
    "structure without fields": np.zeros(3, []),
    "names that are not latin-1": np.ones(2, [("größe", "<i4"), ("\N{SNOWMAN}", "U2")]),
    "names that are strange": np.ones(2, [("it's", "u1"), ('"a" \\ \n', "u1"), ("(", "u1")]),
    "a column of a structure": np.zeros(3, FIELDS)["b"],
    "no bytes each": np.zeros(3, [("f", "S0")])["f"],
    "no letters each": np.zeros((2, 2), [("f", "U0")])["f"],
    "no dimension": np.array(1.5),
    "no dimension, structure": np.zeros((), FIELDS),
    "empty": np.zeros(0),
    "empty of some shape": np.zeros((3, 0, 2), ">i2"),
    "empty, Fortran": np.zeros((0, 3, 2), order="F"),
    "empty structure": np.zeros(0, FIELDS),
    "one": np.ones((1, 1, 1)),
    "C": BASE,
    "Fortran": np.asfortranarray(BASE),
    "Fortran, two dimensions": np.arange(6.0).reshape(2, 3).T,
    "every other": np.arange(10)[::2],
    "inner axis cut": BASE[:, :, 1:3],
    "axes turned": BASE.transpose(1, 0, 2),
    "backwards": np.arange(10)[::-1],
    "backwards, Fortran": np.asfortranarray(BASE)[::-1],
    "repeated": np.broadcast_to(np.arange(3), (4, 3)),
    "many dimensions": np.arange(2).reshape((1,) * 20 + (2,)),
    "unaligned": np.frombuffer(b"x" + BASE.tobytes(), "<i4", offset=1),
}


def assert_same(back: Any, original: Any) -> None:
    """Fail unless both have the same type, shape, order and bytes, and ``back`` is read-only."""
    assert type(back) is np.ndarray
    assert back.shape == original.shape
    assert back.dtype == original.dtype
    assert back.dtype.descr == original.dtype.descr
    fortran = original.flags.f_contiguous and not original.flags.c_contiguous
    assert back.flags.f_contiguous if fortran else back.flags.c_contiguous
    assert back.tobytes() == original.tobytes()
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        back.flags.writeable = True


# ---- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_out_as_it_went_in(name: str) -> None:
    for kind in (private, shared):
        back = through(ARRAYS[name], kind=kind)
        assert_same(back, ARRAYS[name])


@given(
    hnp.arrays(
        hnp.scalar_dtypes() | hnp.array_dtypes() | hnp.nested_dtypes(),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.sampled_from(["C", "F", "turned", "backwards", "cut"]),
    st.sampled_from([private, shared]),
)
def test_any_array_comes_out_as_it_went_in(
    given_array: Any, arrangement: str, kind: Callable[[bytes], Buffer]
) -> None:
    value = arranged(given_array, arrangement)
    back = through(value, kind=kind)
    assert_same(back, value)


def arranged(value: Any, arrangement: str) -> Any:
    if arrangement in "CF":
        return value.copy(order=arrangement)
    if arrangement == "turned":
        return value.T
    cut = slice(None, None, -1 if arrangement == "backwards" else 2)
    return value[(cut,) * value.ndim] if value.ndim else value


def test_the_body_is_what_numpy_saves_and_loads() -> None:
    for value in ARRAYS.values():
        file = io.BytesIO()
        np.lib.format.write_array(file, value, version=version_of(value), allow_pickle=False)
        assert PLAIN.encode(value).joined() == file.getvalue()
        loaded = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
        assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape)
        assert repr(loaded.tolist()) == repr(value.tolist())


def version_of(value: Any) -> tuple[int, int]:
    names = "".join(value.dtype.names or ())
    return (1, 0) if all(ord(letter) < 256 for letter in names) else (3, 0)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_all_versions_are_read(
    version: tuple[int, int], kind: Callable[[bytes], Buffer]
) -> None:
    value = np.ones(2, [("größe", "<i4")])
    file = io.BytesIO()
    np.lib.format.write_array(file, value, version=version, allow_pickle=False)
    assert_same(PLAIN.decode(stored("ndarray", kind(file.getvalue()))), value)


def test_the_data_begins_at_a_multiple_of_64_bytes() -> None:
    for value in ARRAYS.values():
        assert len(PLAIN.encode(value).parts[0]) % 64 == 0


def test_a_view_of_an_array_is_bytes() -> None:
    arrays = "C", "Fortran", "every other", "empty of some shape", "uint of >u2", "simple structure"
    for name in arrays:
        value = memoryview(ARRAYS[name])
        assert PLAIN.encode(value).codec == "bytes"
        assert through(value) == value.tobytes()


def test_the_user_s_array_may_be_read_only() -> None:
    value = np.arange(5)
    value.flags.writeable = False
    assert_same(through(value), value)


def test_metadata_of_a_dtype_is_lost_as_in_numpy() -> None:
    value = np.zeros(3, np.dtype("<i4", metadata={"unit": "m"}))
    with pytest.warns(UserWarning, match="metadata"):
        back = through(value)
    assert_same(back, value)
    assert back.dtype.metadata is None


# ---- without copies ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["C", "Fortran", "time", "structure", "text, big-endian", "one"])
def test_a_contiguous_array_is_not_copied_when_encoded(name: str) -> None:
    _, data = checked(PLAIN.encode(ARRAYS[name])).parts
    assert np.shares_memory(np.frombuffer(data, "u1"), ARRAYS[name])


def test_an_array_that_is_not_contiguous_is_copied_once() -> None:
    _, data = checked(PLAIN.encode(ARRAYS["axes turned"])).parts
    assert not np.shares_memory(np.frombuffer(data, "u1"), BASE)
    assert len(data) == BASE.nbytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["C", "Fortran", "time", "structure", "no dimension", "bool"])
def test_a_decoded_array_reads_the_body(name: str, kind: Callable[[bytes], Buffer]) -> None:
    body = kind(PLAIN.encode(ARRAYS[name]).joined())
    back: Any = PLAIN.decode(stored("ndarray", body))
    whole = np.frombuffer(body, "u1")
    assert np.shares_memory(back, whole)
    assert back.ctypes.data == whole.ctypes.data + len(body) - back.nbytes


@pytest.mark.parametrize("name", ["C", "Fortran", "bool", "no dimension"])
def test_an_array_keeps_its_memory_mapped(name: str) -> None:
    body = shared(PLAIN.encode(ARRAYS[name]).joined())
    memory: Any = body.obj
    back = PLAIN.decode(stored("ndarray", body))
    body.release()
    with pytest.raises(BufferError):
        memory.close()
    assert_same(back, ARRAYS[name])
    del back
    memory.close()


def test_an_array_over_memory_that_can_be_written_is_read_only() -> None:
    body = memoryview(bytearray(PLAIN.encode(BASE).joined()))
    assert_same(PLAIN.decode(stored("ndarray", body)), BASE)


# ---- each reader for itself -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_changes_to_a_decoded_array_do_not_reach_other_readers(
    kind: Callable[[bytes], Buffer],
) -> None:
    body = stored("ndarray", kind(PLAIN.encode(BASE).joined()))
    mine: Any = PLAIN.decode(body)
    theirs: Any = PLAIN.decode(body)
    assert mine is not theirs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy would rather not have this done
        mine.shape = (24,)
        mine.dtype = "u1"
    assert_same(theirs, BASE)


def test_fields_that_a_reader_renames_keep_their_names_for_others() -> None:
    value = np.zeros(3, [("a", "u1"), ("b", [("x", "<i4"), ("y", "<i4")]), ("c", [("z", "u1")], 2)])
    body = stored("ndarray", PLAIN.encode(value).joined())
    mine: Any = PLAIN.decode(body)
    theirs: Any = PLAIN.decode(body)
    mine.dtype["b"].names = ("left", "right")
    mine.dtype["c"].base.names = ("up",)
    mine.dtype.names = ("A", "B", "C")
    for back in (theirs, PLAIN.decode(body)):
        assert_same(back, value)


def test_a_header_is_parsed_once() -> None:
    value = np.zeros((5, 7, 3), "<u2")
    body = stored("ndarray", PLAIN.encode(value).joined())
    read = array._layout.cache_info()
    for _ in range(3):
        PLAIN.decode(body)
    now = array._layout.cache_info()
    assert (now.misses, now.hits) == (read.misses, read.hits + 3)
    assert now.maxsize == array.HEADERS_CACHED


# ---- what is refused --------------------------------------------------------------------------

OVERLAPPING = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]})
MANY_FIELDS = np.dtype([(f"field {number}", "u1") for number in range(1000)])


def deep(levels: int) -> Any:
    inner: Any = "u1"
    for _ in range(levels):
        inner = [("a", inner)]
    return np.dtype(inner)


REFUSED: dict[str, tuple[Any, str]] = {
    "objects": (np.array([None, "a"]), "Python objects cannot be stored as it is.*pickle=True"),
    "objects in fields": (np.array([(1, "a")], "i4, O"), "Python objects"),
    "overlapping fields": (np.zeros(2, OVERLAPPING), "cannot be stored as a .npy.*pickle=True"),
    "many fields": (np.zeros(2, MANY_FIELDS), "more than 10,000 bytes"),
    "deep fields": (np.zeros(2, deep(40)), "more than 32 brackets"),
    "scalar": (np.float64(1.5), r"numpy.float64 cannot be stored; convert it with .item\(\)"),
    "text": (np.str_("a"), r"numpy.str_ .* convert it with .item\(\)"),
    "record": (np.zeros(1, FIELDS)[0], r"convert it with .item\(\)"),
    "masked": (np.ma.masked_less(np.arange(3), 1), r"convert it with numpy.asarray\(\)"),
    "records": (np.zeros(2, FIELDS).view(np.recarray), r"convert it with numpy.asarray\(\)"),
    "inside": ([np.arange(3)], "inside another value only by a Node with pickle=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_array_that_a_file_cannot_hold_is_refused_or_pickled(name: str) -> None:
    value, reason = REFUSED[name]
    with pytest.raises(TypeError, match=reason):
        PLAIN.encode(value)
    assert PICKLING.encode(value).codec == "pickle"
    back = through(value, PICKLING)
    assert type(back) is type(value)
    assert np.asarray(back).dtype == np.asarray(value).dtype
    assert repr(np.asarray(back).tolist()) == repr(np.asarray(value).tolist())


def test_a_dtype_that_another_package_has_registered_is_refused() -> None:
    rational = pytest.importorskip("numpy._core._rational_tests").rational
    with pytest.raises(TypeError, match=r"cannot be stored as a \.npy file"):
        PLAIN.encode(np.zeros(3, rational))


def test_fields_may_lie_within_fields() -> None:
    value = np.zeros(2, deep(15))
    assert_same(through(value), value)
