"""The reader of pickles: data come as from Python's own unpickler, and nothing is executed, whatever the file holds."""

import builtins
import collections
import gzip
import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robustbench_meta.data import safe_pickle
from robustbench_meta.data.safe_pickle import load_pickle, read_pickle
from robustbench_meta.errors import DataError

PROTOCOLS = range(6)


def parsed(content):
    return load_pickle(io.BytesIO(content), "x.pkl")


def refused(content, *words):
    """The message for a pickle."""
    with pytest.raises(DataError) as error:
        parsed(content)
    message = str(error.value)
    assert message.startswith("x.pkl")
    assert all(word in message for word in words), message
    return message


def dtypes():
    kinds = "b1", "i1", "u1", "<i2", ">i4", "<u8", "<f2", ">f4", "f8", "S3", "<U2", ">U2"
    return st.sampled_from([np.dtype(kind) for kind in kinds])


def filled(dtype):
    elements = st.text("aé€", max_size=2) if dtype.kind == "U" else None
    return arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3), elements=elements)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXTS | st.binary()
) | dtypes().flatmap(filled)
KEYS = TEXTS | st.binary() | st.integers(-(2**59), 2**59)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5)
    | st.tuples(inner) | st.tuples(inner, inner, inner, inner)
    | st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(VALUES, st.sampled_from(PROTOCOLS))
def test_data_come_as_pythons_own_unpickler_gives_them(value, protocol):
    content = pickle.dumps(value, protocol)
    ours, theirs = parsed(content), pickle.loads(content)
    np.testing.assert_equal(ours, theirs)
    assert kinds(ours) == kinds(theirs)


def kinds(value):
    """The types in a value; ordered dicts are dicts, and byte orders of arrays are all the same."""
    if isinstance(value, dict):
        return [(type(key), key, kinds(each)) for key, each in value.items()]
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.kind, value.dtype.itemsize
    return (type(value), [kinds(each) for each in value]) if isinstance(value, list | tuple) else type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_every_order_and_numbers_of_numpy_are_read(protocol):
    base = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    value = [base, np.asfortranarray(base), base.transpose(2, 0, 1), base[:, ::2], np.float32(1.5), np.int64(-3), base]
    found = parsed(pickle.dumps(value, protocol))
    np.testing.assert_equal(found, value)
    assert [type(each) for each in found[4:6]] == [float, int]
    assert found[0] is found[6], "what is shared stays shared"
    assert not found[0].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS[:4])
def test_numpy_before_2_is_read(protocol):
    new = pickle.dumps({"data": np.arange(5), "one": np.float64(2)}, protocol)
    old = new.replace(b"numpy._core", b"numpy.core")
    assert old != new
    np.testing.assert_equal(parsed(old), {"data": np.arange(5), "one": 2.0})


PYTHON_2 = {
    0: b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\n"
    b"Rp7\n(I1\n(I1\nI3\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
    b"I00\nS'\\x81\\'\\n'\np15\ntp16\nbsS'labels'\np17\n(lp18\nI1\naL2L\nas.",
    2: b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
    b"\x87Rq\x05(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
    b"\xff\xff\xff\xffK\x00tb\x89T\x03\x00\x00\x00\x81'\ntbU\x06labelsq\x08]q\x09(K\x01\x8a\x01\x02eu.",
}
"""As Python 2 writes {"data": uint8 [[0x81, 0x27, 0x0a]], "labels": [1, 2]}."""


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_python_2_is_read(protocol):
    content = PYTHON_2[protocol]
    found, theirs = parsed(content), pickle.loads(content, encoding="latin1")
    np.testing.assert_equal(found, theirs)
    assert found["data"].ravel().tolist() == [0x81, 0x27, 0x0A]
    assert found["labels"] == [1, 2]


def test_long_byte_strings_of_python_2_are_left_in_place():
    pixels = np.random.default_rng(0).integers(0, 256, 70_000, dtype=np.uint8)
    content = PYTHON_2[2].replace(b"(K\x01K\x01K\x03\x86", b"(K\x01J" + (70_000).to_bytes(4, "little") + b"\x85")
    content = content.replace(b"T\x03\x00\x00\x00\x81'\n", b"T" + (70_000).to_bytes(4, "little") + pixels.tobytes())
    np.testing.assert_equal(parsed(content)["data"], pixels)


# -- what is refused ---------------------------------------------------------------------------------


class Evil:
    """Unpickled, it calls something."""

    def __init__(self, call, *arguments):
        self.told = call, arguments

    def __reduce__(self):
        return self.told


class Held:
    """An object of a class."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "word"),
    [(os.system, "posix.system"), (builtins.open, "open"), (builtins.eval, "eval"), (getattr, "getattr")],
    ids=["system", "open", "eval", "getattr"],
)
@pytest.mark.skipif(os.name == "nt", reason="os.system has another name there")
def test_nothing_is_called(tmp_path, call, word, protocol):
    canary = tmp_path / "canary"
    arguments = {
        "open": (str(canary), "w"), "system": (f"touch {canary}",), "eval": (f"open({str(canary)!r}, 'w')",),
        "getattr": (1, "real"),
    }[call.__name__]  # fmt: skip
    content = pickle.dumps({"data": np.zeros(3), "labels": Evil(call, *arguments)}, protocol)
    message = refused(content, word, "numpy arrays", "a pickle can run programs")
    assert not canary.exists()
    assert message.count("\n") == 0
    if word != "getattr":
        pickle.loads(content)
        assert canary.exists(), "the canary does not sing: Python's own unpickler calls it"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [Held(), Held, complex(1, 2), np.array([None, 1]), np.array([(1, 2)], "i1,i2"), range(10**8),
     np.array("2020", "M8[D]"),
     np.ma.masked_array([1]), np.zeros(2, complex), slice(3), collections.Counter("ab"), np.random.default_rng(0),
     np.uint8],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_but_plain_data_is_refused(value, protocol):
    refused(pickle.dumps([value], protocol))


DTYPE = b"cnumpy\ndtype\n(S'u1'\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["truncated"]),
        (b"<!DOCTYPE html><html>", ["web page", "download it again"]),
        (gzip.compress(b"N.", mtime=0), ["gzip", "unpack it"]),
        (b"PK\x03\x04 torch", ["zip"]),
        (b"hello", ["not a pickle"]),
        (b"\xffhello", ["not a pickle"]),
        (b"\x80\x06N.", ["protocol: 6"]),
        (b"Pabc\n.", ["outside of it"]),
        (b"NQ.", ["outside of it"]),
        (b"\x82\x01.", ["extension code"]),
        (b"\x97.", ["not a pickle"]),
        (b"(i__main__\nHeld\n.", ["'__main__.Held'"]),
        (b"cos.path\njoin\n.", ["'os.path.join'"]),
        (b"cnumpy\x1b[31m\nx\n.", [r"'numpy\x1b[31m.x'"]),
        (ARRAY + b"(I1\n(I5\nt" + DTYPE + b"I00\nS'abc'\ntb.", ["3 bytes for an array uint8 [5]"]),
        (ARRAY + b"(I1\n(I-1\nt" + DTYPE + b"I00\nS''\ntb.", ["[-1]"]),
        (ARRAY + b"(I1\n(I-1\nI-3\nt" + DTYPE + b"I00\nS'abc'\ntb.", ["[-1, -3]"]),
        (ARRAY + b"(I1\n(I1000000000000\nt" + DTYPE + b"I00\nS''\ntb.", ["0 bytes"]),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE + b"I00\n(lNatb.", ["Python objects"]),
        (ARRAY + b"(I1\n(I1\ntNI00\nS'abc'\ntb.", ["without content or dtype"]),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE.replace(b"u1", b"U1") + b"I00\nS'zzzz'\ntb.", ["damaged"]),
        (DTYPE.replace(b"'u1'", b"'O'") + b".", ["dtype 'O'"]),
        (DTYPE.replace(b"'u1'", b"'V8'") + b".", ["dtype 'V8'"]),
        (DTYPE.replace(b"NNN", b"N(S'a'\ntN") + b".", ["fields"]),
        (b"(lb.", ["damaged"]),
        (b"L" + b"9" * 5000 + b"L\n.", ["damaged"]),
        (b"X\xff\xff\xff\xffabc.", ["truncated"]),
        (b"\x8e" + b"\xff" * 8 + b"abc.", ["get it again"]),
        (b"\x95" + b"\xff" * 8 + b"N.", ["get it again"]),
        (b"Nr\xff\xff\xff\xff0h\x07.", ["damaged", "index 7"]),
        (b"c_codecs\nencode\n(dS'__doc__'\nS''\nsb0cos\nsystem\n.", ["'os.system'"]),
        (b"c_codecs\nencode\n)\x81.", ["damaged"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else ascii(value[:24]),
)  # fmt: skip
def test_what_is_wrong_is_said(content, words):
    message = refused(content, *words)
    assert message.isprintable()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_is_cut_anywhere_is_refused(protocol):
    content = pickle.dumps(
        {"data": np.arange(3), "labels": [1, 300, "é"], "od": collections.OrderedDict(a=b"")}, protocol
    )
    for length in range(len(content)):
        refused(content[:length])


def test_what_a_pickle_does_to_the_names_it_gets_is_forgotten_with_it():
    """BUILD may set attributes of any object; here of the function that stands for a name."""
    parsed(b"c_codecs\nencode\n(N(dS'__defaults__'\n(I1\ntstb.")
    np.testing.assert_equal(
        parsed(pickle.dumps({"x": np.arange(3), "y": b"\xff"}, 2)), {"x": np.arange(3), "y": b"\xff"}
    )


def test_files_are_read_and_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([1], 2))
    assert read_pickle(path) == [1]
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 3)
    with pytest.raises(DataError, match=r"x\.pkl has 9 bytes; .* at most 3"):
        read_pickle(path)
    with pytest.raises(DataError, match=r"cannot read .*y\.pkl: No such file"):
        read_pickle(tmp_path / "y.pkl")
