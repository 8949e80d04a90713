"""The reader of pickles: data come as from Python's own unpickler, and nothing is executed, whatever the file holds."""

import builtins
import collections
import gzip
import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robustbench_meta.data.pickles import Limits, parse_pickle, read_pickle
from robustbench_meta.errors import DataError

PROTOCOLS = range(6)


def refused(content, *words, limits=None):
    """The message for a pickle."""
    with pytest.raises(DataError) as error:
        parse_pickle(content, "x.pkl", limits)
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
    ours, theirs = parse_pickle(content, "x"), pickle.loads(content)
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
    found = parse_pickle(pickle.dumps(value, protocol), "x")
    np.testing.assert_equal(found, value)
    assert [type(each) for each in found[4:6]] == [float, int]
    assert found[0] is found[6], "what is shared stays shared"
    assert not found[0].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS[:4])
def test_numpy_before_2_is_read(protocol):
    new = pickle.dumps({"data": np.arange(5), "one": np.float64(2)}, protocol)
    old = new.replace(b"numpy._core", b"numpy.core")
    assert old != new
    np.testing.assert_equal(parse_pickle(old, "x"), {"data": np.arange(5), "one": 2.0})


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
    found, theirs = parse_pickle(content, "x"), pickle.loads(content, encoding="latin1")
    np.testing.assert_equal(found, theirs)
    assert found["data"].ravel().tolist() == [0x81, 0x27, 0x0A]
    assert found["labels"] == [1, 2]


def test_long_byte_strings_of_python_2_are_left_in_place():
    pixels = np.random.default_rng(0).integers(0, 256, 70_000, dtype=np.uint8)
    content = PYTHON_2[2].replace(b"(K\x01K\x01K\x03\x86", b"(K\x01J" + (70_000).to_bytes(4, "little") + b"\x85")
    content = content.replace(b"T\x03\x00\x00\x00\x81'\n", b"T" + (70_000).to_bytes(4, "little") + pixels.tobytes())
    np.testing.assert_equal(parse_pickle(content, "x")["data"], pixels)


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
    [Held(), Held, {1, 2}, frozenset(), complex(1, 2), np.array([None, 1]), np.array([(1, 2)], "i1,i2"),
     np.array("2020", "M8[D]"), np.ma.masked_array([1]), np.zeros(2, complex), slice(3), 2**70,
     {(1, 2): 3}, {1.5: 3}, {2**61 - 1: 3}, collections.Counter("ab"), np.random.default_rng(0), np.uint8],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_but_plain_data_is_refused(value, protocol):
    refused(pickle.dumps([value], protocol))


DTYPE = b"cnumpy\ndtype\n(S'u1'\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"<!DOCTYPE html><html>", ["web page", "download it again"]),
        (gzip.compress(b"N.", mtime=0), ["gzip", "unpack it"]),
        (b"PK\x03\x04 torch", ["zip"]),
        (b"hello", ["an object of a class"]),
        (b"\xffhello", ["not a pickle"]),
        (b"\x80\x06N.", ["protocol 6"]),
        (b"N.N.", ["2 bytes follow"]),
        (b"Pabc\n.", ["persistent id"]),
        (b"NQ.", ["persistent id"]),
        (b"\x82\x01.", ["extension code"]),
        (b"\x97.", ["buffer outside"]),
        (b"(i__main__\nHeld\n.", ["object of the class '__main__.Held'"]),
        (b"cos.path\njoin\n.", ["'os.path.join'"]),
        (b"cnumpy\x1b[31m\nx\n.", [r"'numpy\x1b[31m.x'"]),
        (b"cnumpy\ndtype\n.", ["without its content"]),
        (ARRAY + b".", ["without its content"]),
        (ARRAY + b"(I1\n(I5\nt" + DTYPE + b"I00\nS'abc'\ntb.", ["shape (5) of uint8", "3 bytes"]),
        (ARRAY + b"(I1\n(I-1\nt" + DTYPE + b"I00\nS''\ntb.", ["shape (-1)"]),
        (ARRAY + b"(I1\n(I1000000000000\nI0\nt" + DTYPE + b"I00\nS''\ntb.", ["more than the file holds"]),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE + b"I00\n(lNatb.", ["Python objects"]),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE.replace(b"u1", b"b1") + b"I00\nS'\\x02'\ntb.", ["truth values"]),
        (ARRAY + b"(I1\n(I1\nt" + DTYPE.replace(b"u1", b"U1") + b"I00\nS'zzzz'\ntb.", ["no characters"]),
        (DTYPE.replace(b"'u1'", b"'O'") + b".", ["Python objects"]),
        (DTYPE.replace(b"'u1'", b"'V8'") + b".", ["dtype 'V8'"]),
        (DTYPE.replace(b"NNN", b"N(S'a'\ntN") + b".", ["fields"]),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.", ["_reconstruct", "does not write"]),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", ["_codecs.encode", "does not write"]),
        (b"(lb.", ["damaged"]),
        (b"}(NNu.", ["key of the type NoneType"]),
        (b"V\\ud800\n.", ["half a character"]),
        (b"L" + b"9" * 5000 + b"L\n.", ["damaged"]),
        (b"\x8a\xff" + b"\x01" * 255 + b".", ["integer of 255 bytes"]),
        (b"X\xff\xff\xff\xffabc.", ["truncated"]),
        (b"\x8e" + b"\xff" * 8 + b"abc.", ["truncated"]),
        (b"\x95" + b"\xff" * 8 + b"N.", ["frame"]),
        (b"Nr\xff\xff\xff\xff0h\x07.", ["damaged", "index 7"]),
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


def laughs(start, step, levels=40):
    return start + step * levels + b"."


ENCODE = b"c_codecs\nencode\nq\x00X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x01]("
BOMBS = {
    "tuples of the same": laughs(b"N", b"2\x86"),
    "lists of the same": laughs(b"]q\x00", b"0](h\x00h\x00eq\x00"),
    "dicts of the same": laughs(b"}q\x00", b"0}(K\x00h\x00K\x01h\x00uq\x00"),
    "tuples of the same as a key": b"}" + laughs(b"N", b"2\x86")[:-1] + b"Ns.",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "a tuple in itself": b"]q\x00h\x00\x85q\x010h\x00h\x01a.",
    "depth": b"(" * 10**5 + b"t" * 10**5 + b".",
    "depth of lists": b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "depth of tuples": b"N" + b"\x85" * 10**5 + b".",
    "a text encoded again and again": ENCODE + b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 20_000 + b"e.",
    "a text named again and again": b"](X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x00" + b"h\x00" * 100_000 + b"e.",
    "an array named again and again": b"](" + pickle.dumps(np.zeros(9**5), 4)[:-1] + b"q\xfa" + b"h\xfa" * 9**4 + b"e.",
    "an ordered dict made again and again": b"](ccollections\nOrderedDict\nq\x00(" + b"(K\x01K\x02l" * 10_000
    + b"l\x85q\x010" + b"h\x00h\x01R" * 100_000 + b"e.",
    "steps": b"N0" * 3_000_000 + b"N.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon_and_in_little_memory(name):
    content = BOMBS[name]
    start = time.process_time()
    refused(content)
    assert time.process_time() - start < 8
    if len(content) < 2 * 10**6:
        tracemalloc.start()
        refused(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20


def test_limits_are_the_callers():
    nested = [[[1]]]
    assert parse_pickle(pickle.dumps(nested), "x", Limits(depth=3)) == nested
    refused(pickle.dumps(nested), "more than 2 containers", limits=Limits(depth=2))
    refused(pickle.dumps(list(range(100))), "more than 50 steps", limits=Limits(steps=50))
    refused(pickle.dumps([[1, 2], [3]]), "its own values", limits=Limits(values=5))


def test_files_are_read_and_refused_by_name(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([1], 2))
    assert read_pickle(path) == [1]
    with pytest.raises(DataError, match=r"x\.pkl has 9 bytes; .* at most 3"):
        read_pickle(path, Limits(size=3))
    with pytest.raises(DataError, match=r"y\.pkl cannot be read: No such file"):
        read_pickle(tmp_path / "y.pkl")
