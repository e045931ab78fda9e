"""Without NumPy everything but arrays works, and an installed NumPy is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dstore

ROOT = Path(dstore.__file__).resolve().parents[1]

WITHOUT = """
import sys

tried = []

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "numpy":
            tried.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

from fractions import Fraction

import dstore.codecs
from dstore.codecs import Codec, Codecs
from dstore.errors import UnknownCodec
from dstore.protocol.messages import Stored

def through(codecs, value):
    encoded = codecs.encode(value)
    return codecs.decode(Stored(bytes(16), encoded.codec, encoded.joined()))

mine = Codec("fraction", Fraction, lambda f: str(f).encode(), lambda b: Fraction(str(b, "ascii")))
plain = Codecs([mine])
assert "dstore.codecs.pickled" not in sys.modules
for value in [b"a", "a", 1, None, [1, ("a", 2.5)], {"a": b"b"}, Fraction(1, 3)]:
    assert through(plain, value) == value
try:
    plain.encode(object())
except TypeError as error:
    print(error)
print("tried", tried)
try:
    plain.decode(Stored(bytes(16), "ndarray", BODY))
except UnknownCodec as error:
    print(error)
print("tried", tried[:1])
assert "dstore.codecs.pickled" not in sys.modules
assert through(Codecs(pickle=True), {1, 2}) == {1, 2}
"""

ARRAY = b"\x93NUMPY\x01\x00\x3a\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1,), } \n\x07"


def test_all_but_arrays_works_without_numpy() -> None:
    program = f"BODY = {ARRAY!r}\n{WITHOUT}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "a value of type builtins.object cannot be stored; convert it to bytes, str, None, bool, "
        "int, float, list, tuple or dict first, or give the Node a Codec for its type, or create "
        "the Node with pickle=True",
        "tried []",
        "the value needs the codec 'ndarray', which is not here; install numpy",
        "tried ['numpy']",
    ]
