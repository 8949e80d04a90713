"""`python -m benchmarks.fuzz`: damaged and hostile files for what reads files.

A case is the content of a file. It must give a result or a BenchError, within 10 seconds (of the processor; 200 on
the clock, as the machine may be busy) and 1 GiB; all else is a crash. In half of the cases a valid file is mutated
(bits, truncations, splices, lengths, and whole opcodes of a pickle or chunks of a PNG), the other half Hypothesis makes
from scratch. They run in a process of their own, so a hang or a death is a crash like any other. Linux only.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from robustbench_meta.data import archives, safe_pickle
from robustbench_meta.data.image_decoding import read_image
from robustbench_meta.data.pickled import choose_series, read_series
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.metrics import QueryMetrics
from robustbench_meta.engine.training_snapshots import TrainingState, read_state, state_bytes
from robustbench_meta.errors import BenchError
from robustbench_meta.evaluation.partial_results import (
    ChunkResult,
    PartialResult,
    ScenarioResult,
    part_bytes,
    read_part,
)
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, weights_of
from robustbench_meta.experiment.suite import KEYS, parse_suite, read_suite, shipped, suite_text
from robustbench_meta.results.records import SCHEMA, read_record, record_text

SECONDS, MEMORY = 10, 2**30
_EXECUTES = ("exec", "import", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "pickle.find_class", "socket.",
             "subprocess.", "ctypes.")  # fmt: skip
"""Of Python's audit events, what reading a file has no need of."""
_ROUND, _FEWEST = 400, 60
"""Cases of a kind in turn, and when the time is over."""
app = typer.Typer(add_completion=False, rich_markup_mode="rich")
Mutate = Callable[[bytes, random.Random], bytes]


class Target(NamedTuple):
    """What is fuzzed."""

    run: Callable[[bytes, Path], object]
    """Reads the content; the folder is empty, and its own."""
    seeds: Callable[[], list[bytes]]
    """Valid contents."""
    made: st.SearchStrategy[bytes]
    """Contents from scratch."""
    mutations: tuple[Mutate, ...] = ()
    """Besides those that fit any file."""


class Crash(NamedTuple):
    """A case that gave neither a result nor a BenchError."""

    reason: str
    content: bytes


# ---- mutations of any file


def flip_bits(content: bytes, random: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def truncate(content: bytes, random: random.Random) -> bytes:
    """Cut off the end, or the start."""
    at = random.randint(0, len(content))
    return content[:at] if random.random() < 0.8 else content[at:]


def splice(content: bytes, random: random.Random) -> bytes:
    """Repeat, move or leave out a part."""
    a, b, c = sorted(random.randint(0, len(content)) for _ in range(3))
    repeated = content[:b] + content[a:b] * random.choice([1, 2, 50]) + content[b:]
    moved = content[:a] + content[b:c] + content[a:b] + content[c:]
    return random.choice([repeated, moved, content[:a] + content[b:]])


def set_lengths(content: bytes, random: random.Random) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes with numbers at which lengths go wrong."""
    form = random.choice("BHIQ")
    top = 2 ** (8 * struct.calcsize(form))
    value = random.choice([0, 1, top - 1, top // 2, top // 2 - 1, top // 16, random.randrange(top)])
    packed = struct.pack(random.choice("<>") + form, value)
    at = random.randint(0, max(0, len(content) - len(packed)))
    return content[:at] + packed + content[at + len(packed) :]


MUTATIONS: tuple[Mutate, ...] = (flip_bits, truncate, splice, set_lengths)

# ---- pickles

CALLS = (
    b"cposix\nsystem\n", b"cbuiltins\neval\n", b"c__builtin__\nbytes\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy._core.numeric\n_frombuffer\n", b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n", b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core._internal\n_ctypes\n",
)  # fmt: skip
CODES = tuple(opcode.code.encode("latin-1") for opcode in pickletools.opcodes if not opcode.arg)
VALUES = (
    b"N", b"\x88", b"K\x01", b"K\x00", b"J\xff\xff\xff\xff", b"I01\n", b"I5\n", b"L7L\n", b"F1.5\n", b"C\x03abc",
    b"U\x01b", b"\x8a\x08\0\0\0\0\0\0\0\x10", b"G\x7f\xf8\0\0\0\0\0\0", b"X\x02\0\0\0u1", b"X\x02\0\0\0O8",
    b"X\x01\0\0\0<", b"X\x06\0\0\0latin1", b"S'x\\x00'\n", b"V\\u0041\n", b"h\x00", b"h\x01", b"h\x02", b"q\x00",
    b"q\x01", b"\x94", b"g0\n", b"B\xff\xff\xff\xff", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x95\0\0\0\0\0\0\0\0",
    b"\x80\x05", b"i__main__\nx\n", b"P1\n",
)  # fmt: skip


def pickled_seeds() -> list[bytes]:
    """Data sets in both layouts and what numpy writes otherwise, in all protocols and both spellings of its modules."""
    noise = np.random.default_rng(0)
    images = noise.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    contents: list[Any] = [
        {"image_data": images, "class_dict": OrderedDict(n01=[0, 1, 2], n02=np.array([3, 4, 5]))},
        {"data": images, "labels": [1, 1, 1, 2, 2, 2]},
        {"data": np.asfortranarray(images[..., :1]), "labels": np.arange(6, dtype=">i4")},
        [np.float64(1.5), np.array(["ab", "c"]), np.array([True]), np.zeros((3, 0)), b"", b"\xff" * 300, (1, (2, 3))],
    ]
    new = [pickle.dumps(content, protocol) for content in contents for protocol in range(6)]
    old = [
        each.replace(b"numpy._core", b"numpy.core") for each in new if b"c\x15" not in each and b"\x8c\x16" not in each
    ]
    return [*new, *old]


def by_opcode(content: bytes, random: random.Random) -> bytes:
    """Leave out, repeat, exchange or insert whole opcodes."""
    try:
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
    except Exception:  # it was mutated before
        places = [0]
    pieces = [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]
    pieces = [piece for piece in pieces if not piece.startswith(b"\x95")]  # a frame's length would tell on the rest
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(pieces) + 1)
        new = random.choice([random.choice(CODES), random.choice(VALUES), random.choice(CALLS), *pieces[:1]])
        match random.randrange(4):
            case 0:
                pieces[at : at + 1] = []
            case 1:
                pieces[at:at] = [new]
            case 2:
                pieces[at : at + 1] = [new]
            case _:
                other = random.randrange(len(pieces) + 1)
                pieces[at:at] = pieces[other : other + random.randint(1, 5)] * random.choice([1, 1, 2, 300])
    ends = itertools.accumulate(map(len, pieces))
    return b"".join(piece for piece, end in zip(pieces, ends, strict=True) if end <= 2**20)


def read_pickled(content: bytes, folder: Path) -> None:
    """As a pickle alone, and as one of the three files of a data set."""
    value = safe_pickle.load_pickle(io.BytesIO(content), "the pickle")
    if isinstance(value, dict):
        for part in ("train", "val"):
            other = {"data": np.full((2, 8, 8, 3), ord(part[0]), np.uint8), "labels": [f"{part}0", f"{part}1"]}
            (folder / f"{part}.pkl").write_bytes(pickle.dumps(other))
        (folder / "test.pkl").write_bytes(content)
        read_series(choose_series(folder, ""), "fuzzed", "keep")


def made_pickles() -> st.SearchStrategy[bytes]:
    """Programs of opcodes, and pickles of values."""
    pieces = st.sampled_from([*CODES, *VALUES, *CALLS])
    programs = st.lists(pieces, max_size=60).map(lambda parts: b"".join(parts) + b".")
    arrays = st.sampled_from(
        [np.zeros((2, 3)), np.arange(4, dtype="u1"), np.array(["é"]), np.array(None), np.float32(2)]
    )
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | arrays
    values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))
    return programs | st.builds(pickle.dumps, values, st.integers(0, 5))


# ---- zips


def zipped_seeds() -> list[bytes]:
    """Archives as they are, packed and not, with folders, extras and a comment."""
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.mkdir("a")
            archive.writestr("a/1.png", bytes(200))
            archive.writestr("a/é.png", os.urandom(20))
            archive.writestr("__MACOSX/x", b"y")
            archive.comment = b"a comment"
        found.append(file.getvalue())
    return found


def read_zip(content: bytes, folder: Path) -> None:
    """Unpack it; nothing may come to lie beside the folder."""
    (folder / "x.zip").write_bytes(content)
    try:
        archives.extract(folder / "x.zip", folder / "out", archives.Limits(total=2**26))
    finally:
        outside = {path.name for path in folder.iterdir()} - {"x.zip", "out"}
        assert not outside, f"{outside} was written outside of the folder"


def made_zips() -> st.SearchStrategy[bytes]:
    """Archives of any names and contents."""
    parts = st.sampled_from(["..", ".", "", "a", "A", "con", "a.", "C:", "\\", "é", "x" * 300, "a:b", "\x01", "b.png"])
    names = st.lists(parts, min_size=1, max_size=4).map("/".join) | st.text(min_size=1, max_size=9)
    entries = st.lists(st.tuples(names, st.binary(max_size=40), st.integers(0, 2**32 - 1)), max_size=6)
    return st.builds(_zip, entries, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def _zip(entries: Sequence[tuple[str, bytes, int]], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name.encode("utf-8", "replace").decode()
            info.external_attr, info.compress_type = mode, method
            archive._didModify = True  # type: ignore[attr-defined]
            if name not in archive.NameToInfo:
                archive.writestr(info, content)
    return file.getvalue()


# ---- images


def image_seeds() -> list[bytes]:
    """One of each format and kind of pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    colour, clear = Image.fromarray(noise[..., :3].copy()), Image.fromarray(noise.copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    cases: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "PNG", {}), (clear, "PNG", {}), (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("1"), "PNG", {}), (colour, "JPEG", {"exif": exif}), (colour, "JPEG", {"progressive": True}),
        (colour.convert("L"), "JPEG", {}), (colour.convert("CMYK"), "JPEG", {}), (colour, "BMP", {}),
        (colour.convert("P"), "BMP", {}), (clear, "WEBP", {"lossless": True}), (colour, "WEBP", {"exif": exif}),
        (colour, "PPM", {}), (colour.convert("L"), "PPM", {}), (colour.convert("1"), "PPM", {}),
    ]  # fmt: skip
    for image, form, options in cases:
        file = io.BytesIO()
        image.save(file, form, **options)
        found.append(file.getvalue())
    return [*found, b"P3 2 2 255 0 0 0 1 1 1 2 2 2 3 3 3", b"P1 2 2 0 1 1 0", b"Pf 1 1 -1.0 \x00\x00\x00\x00"]


def chunks_mended(content: bytes, random: random.Random) -> bytes:
    """A PNG with a changed chunk, the checksums made right again."""
    if not content.startswith(b"\x89PNG"):
        return set_lengths(content, random)
    at, chunks = 8, []
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if chunks:
        place = random.randrange(len(chunks))
        kind, data = chunks[place]
        data = _flipped_inside(data, random) if kind == b"IDAT" else set_lengths(data, random)
        kind = random.choice(
            [kind, kind, b"tEXt", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"fdAT"]
        )
        chunks[place : place + random.randrange(2)] = [(kind, data)]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return content[:8] + b"".join(packed)


def _flipped_inside(packed: bytes, random: random.Random) -> bytes:
    try:
        return zlib.compress(flip_bits(zlib.decompress(packed), random))
    except zlib.error:
        return flip_bits(packed, random)


def read_picture(content: bytes, folder: Path) -> None:
    """As colour and as grey."""
    image = read_image(content, "the image", "RGB")
    assert image.mode == "RGB"
    assert min(image.size) > 0
    assert read_image(content, "the image", "L").mode == "L"


def made_images() -> st.SearchStrategy[bytes]:
    """Headers with anything behind."""
    jpeg, png, webp = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\xff\0\0\0WEBPVP8"
    starts = [png, jpeg, webp, b"BM", b"P6 ", b"P5 9 9 ", b"P3 ", b"P1 "]
    sizes = st.integers(0, 2**32 - 1).map(lambda n: struct.pack(">I", n) + struct.pack("<I", n) + b"%d " % n)
    return st.tuples(st.sampled_from(starts), st.lists(sizes | st.binary(max_size=30), max_size=6)).map(
        lambda parts: parts[0] + b"".join(parts[1])
    )


# ---- records


def record_seeds() -> list[bytes]:
    """A record of one episode, of this version and as if of older ones; and JSON that is none."""
    training = {"way": 2, "shot": 1, "query": 1, "meta_steps": 1, "tasks_per_step": 1, "seed": 0}
    attack = {"plugin": {"name": "pgd", "options": {"steps": 1}}, "norm": "linf", "eps": 0.1, "sweep": []}
    names = ("dataset", "backbone", "learner", "attack", "eps", "training_attack", "training_eps", "surrogate",
             "warm_start")  # fmt: skip
    texts = ("training", "episodes_digest", "norm_layer", "inference", "precision", "method", "device", "written")
    answers = {"shape": [1, 2], "bits": "wA=="}
    record: dict[str, Any] = {
        **dict.fromkeys(texts, "x"), "key": "k", "parameters": 1, "labels": dict.fromkeys(names, "x"),
        "spec": {"training": training, "attack": attack, "code": "", "support": "clean", "query": "adv",
                 "surrogate": None, "episodes": 1},
        "timings": {"train_seconds": 1.0}, "flags": [], "checks": None, "versions": {"robustbench_meta": "0"},
        "clean": answers, "robust": answers,
    }  # fmt: skip
    old = [json.dumps({**record, "schema": schema}).encode() for schema in (1, 2)]
    return [record_text(record).encode(), *old, b"{}", b"[]", b"null"]


def checksum_mended(content: bytes, random: random.Random) -> bytes:
    """A record in which a value is another one, or not there, the checksum made right again."""
    try:
        record = json.loads(content)
    except ValueError:
        return content
    if not isinstance(record, dict) or not record:
        return content
    inside: Any = record
    while True:
        place = random.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not isinstance(inside[place], dict | list) or not inside[place] or random.random() < 0.2:
            break
        inside = inside[place]
    odd: list[Any] = [
        None, True, -1, 0, 2**63, 10**400, 0.5, float("nan"), "", "\x1b[2J", "\ud800", "A" * 9999, [], {}, [[]],
    ]  # fmt: skip
    if random.random() < 0.2 and isinstance(inside, dict):
        del inside[place]
    else:
        inside[place] = random.choice(odd)
    if record.get("schema") != SCHEMA:
        return json.dumps(record).encode()
    return record_text({name: value for name, value in record.items() if name != "checksum"}).encode()


def read_record_file(content: bytes, folder: Path) -> None:
    """As a file of the results folder."""
    (folder / "k.json").write_bytes(content)
    read_record(folder / "k.json")


def made_records() -> st.SearchStrategy[bytes]:
    """Any JSON, and deep ones."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    names = st.sampled_from(["schema", "checksum", "key", "status", "cell", "clean"]) | st.text()
    values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(names, inner))
    deep = st.integers(1, 200_000).map(lambda depth: b"[" * depth + b"]" * depth)
    return values.map(lambda value: json.dumps(value).encode()) | deep | st.binary()


# ---- checkpoints, and what is kept of work under way


def read_kept(content: bytes, _: Path) -> object:
    """As each of the three kinds of file that a run reads back."""
    for read in (partial(read_state, key="k", device=torch.device("cpu")), partial(read_part, training="k")):
        with suppress(BenchError):
            read(content)
    return weights_of(content)


def kept_seeds() -> list[bytes]:
    """A checkpoint, a state and a part."""
    weights = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    optimizer = torch.optim.Adam([weight.requires_grad_() for weight in weights.values()])
    sum(weight.sum() for weight in weights.values()).backward()  # type: ignore[union-attr]  # tensors
    optimizer.step()
    trained = Trained(weights, history=[{"step": 1.0}])
    state = TrainingState(1, weights, optimizer.state_dict(), trained, QueryMetrics(), Plan(), "cpu")
    chunk = ChunkResult(
        "6e6f", torch.ones(1, 2, dtype=torch.bool), {"c": ScenarioResult(torch.zeros(1, 2, dtype=torch.bool))}
    )
    part = part_bytes(PartialResult([chunk], {}, "cpu"), "k", ["c"])
    return [checkpoint_bytes(trained, {"learner": {"name": "maml"}}), state_bytes(state, "k"), part]


def headers() -> st.SearchStrategy[bytes]:
    """The length of a header, a header, and something behind it, as in safetensors."""
    values = st.recursive(st.none() | st.integers() | st.text(), lambda each: st.dictionaries(st.text(), each))
    header = st.dictionaries(st.sampled_from(["__metadata__", "w"]), values).map(lambda it: json.dumps(it).encode())
    return st.builds(lambda head, rest: len(head).to_bytes(8, "little") + head + rest, header, st.binary())


# ---- suites


def suite_seeds() -> list[bytes]:
    """The shipped ones, and one with every key."""
    every = '''
about = "é \\u0041"
learner = ["maml", "adml:outer=sequential"]
eps = [0.1, "8/255", "0:0.3:7", 1]
scenario = ["clean/adv", "clean/transfer"]
surrogate = 'maml'
checks = false
precision = "bf16"
parts = [{ way = 5, seed = [0, 0x7f] }, { "shot" = 1_0, meta-steps = 0, about = """
'''
    every = every.removesuffix("\n") + 'one""" }]\n'
    return [*(path.read_bytes() for path in shipped().values()), every.encode()]


def by_line(content: bytes, random: random.Random) -> bytes:
    """Leave out, repeat, exchange or insert whole lines."""
    lines = content.split(b"\n")
    keys = [name.encode() for name in [*KEYS, "about", "parts", "device", "x", '"\\u0000"', "parts.way"]]
    values = [
        b"1", b"-1", b"1e999", b"nan", b"true", b'""', b"[]", b"{}", b"[[1], 2]", b'"maml:a=1"', b'"""', b"1979-05-27",
        b"0x" + b"f" * 99, b"9" * 5000, b"[" * 3000, b'"\\u001b"', b"'clean/transfer'", b'["all", "1/0"]',
    ]  # fmt: skip
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(lines) + 1)
        new = random.choice([random.choice(keys) + b" = " + random.choice(values), b"[[parts]]", b"[parts]", b"[x.y]"])
        lines[at : at + random.randrange(2)] = random.choice([[], [new], [new], lines[:at][-3:] * 2])
    return b"\n".join(lines)


def read_suite_file(content: bytes, folder: Path) -> None:
    """As a file; what is read is written, and read again as the same."""
    (folder / "x.toml").write_bytes(content)
    suite = read_suite(folder / "x.toml", "x.toml").overridden({})
    again = parse_suite(suite_text(suite).encode(), "x.toml").overridden({})
    assert [part.spec() for part in again.parts] == [part.spec() for part in suite.parts]


def made_suites() -> st.SearchStrategy[bytes]:
    """Keys with values of any type, written as JSON is, of which TOML understands most."""
    leaves = st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["maml", "8/255", "clean/adv"])
    names = st.sampled_from([*KEYS, "about", "parts"]) | st.text(max_size=9)
    values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4))
    settings = st.lists(
        st.builds(lambda name, value: f"{json.dumps(name)} = {json.dumps(value)}", names, values)
        | st.just("[[parts]]"),
        max_size=9,
    )
    return settings.map(lambda lines: "\n".join(lines).encode()) | st.text().map(lambda text: text.encode())


TARGETS: dict[str, Target] = {
    "checkpoints": Target(read_kept, kept_seeds, headers()),
    "pickles": Target(read_pickled, pickled_seeds, made_pickles(), (by_opcode, by_opcode)),
    "zips": Target(read_zip, zipped_seeds, made_zips()),
    "images": Target(read_picture, image_seeds, made_images(), (chunks_mended,)),
    "records": Target(read_record_file, record_seeds, made_records(), (checksum_mended,) * 4),
    "suites": Target(read_suite_file, suite_seeds, made_suites(), (by_line,) * 4),
}

# ---- running


def fuzz(
    name: str, seconds: float, start: int = 0, crashes: Path | None = None, told: Callable[[str], None] = print
) -> tuple[int, list[Crash]]:
    """Fuzz a target for some seconds from a seed on: how many cases ran, and the crashes, one a reason.

    Crashes are told, and written to the folder `crashes`.
    """
    found: dict[str, Crash] = {}
    cases, number, end = 0, start, time.monotonic() + seconds
    while cases == 0 or time.monotonic() < end:
        done, crash = _round_apart(name, number, end)
        cases += done
        number += 1
        if crash is not None and crash.reason not in found:
            found[crash.reason] = crash
            told(f"{name}, seed {number - 1}: {crash.reason} ({len(crash.content)} bytes)")
            if crashes is not None:
                crashes.mkdir(parents=True, exist_ok=True)
                (crashes / f"{name}-{number - 1}").write_bytes(crash.content)
                (crashes / f"{name}-{number - 1}.txt").write_text(f"{crash.reason}\n", encoding="utf-8")
    return cases, list(found.values())


def _round_apart(name: str, number: int, end: float) -> tuple[int, Crash | None]:
    """Some rounds in a process of their own; that of a seed whose process dies is the crash."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        child = context.Process(target=_work, args=(name, number, Path(folder), there, end))
        child.start()
        there.close()
        try:
            cases, reason, content = here.recv()
        except EOFError:
            cases, reason, content = 1, "", (Path(folder) / "case").read_bytes()
        child.join()
        if child.exitcode:
            died = -child.exitcode
            hangs = died in (signal.SIGPROF, signal.SIGALRM)
            reason = f"hangs for {SECONDS} s" if hangs else f"the process died ({child.exitcode})"
    return cases, Crash(reason, content) if reason else None


def _work(name: str, number: int, folder: Path, answer: Connection, end: float) -> None:
    """In the process: half the cases by mutation, half by Hypothesis; the first crash ends it."""
    target = TARGETS[name]
    logging.disable()
    warnings.simplefilter("ignore")
    draw, seeds = random.Random(number), target.seeds()
    keep, count = folder / "case", 0
    ran = _watched()
    for place, content in enumerate(seeds):  # what is imported late is imported now
        (folder / str(place)).mkdir()
        with suppress(BenchError):
            target.run(content, folder / str(place))
    ran.clear()
    _limit_memory()

    def reason(content: bytes) -> str:
        nonlocal count
        count += 1
        keep.write_bytes(content)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            ran.clear()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(20 * SECONDS)
            try:
                target.run(content, Path(own))
            except BenchError as error:
                if ran:
                    return f"it executed {ran[0]}"
                fine = str(error).strip() and str(error).isprintable()
                return "" if fine else "a message that is empty, or has lines or control characters"
            except BaseException as error:
                return _where(error)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            return f"it executed {ran[0]}" if ran else ""

    rounds = 0
    while rounds == 0 or (rounds < 25 and time.monotonic() < end):
        for turn in range(_ROUND):
            if turn >= _FEWEST and time.monotonic() > end:
                break
            content = draw.choice(seeds)
            for _ in range(draw.choice([1, 1, 2, 4])):
                content = draw.choice([*MUTATIONS, *target.mutations])(content, draw) if content else content
            wrong = reason(content)
            if wrong:
                answer.send((count, wrong, _smaller(content, wrong, reason)))
                return
        examples = _ROUND if time.monotonic() < end else _FEWEST
        crash = _by_hypothesis(target, draw.randrange(2**32), reason, examples)
        if crash is not None:
            answer.send((count, *crash))
            return
        rounds += 1
    answer.send((count, "", b""))


def _watched() -> list[str]:
    """Where this process from now on notes what executes something."""
    ran: list[str] = []

    def hook(event: str, _: tuple[object, ...]) -> None:
        if event.startswith(_EXECUTES):
            ran.append(event)

    sys.addaudithook(hook)
    return ran


def _by_hypothesis(target: Target, number: int, reason: Callable[[bytes], str], examples: int) -> Crash | None:
    """The smallest case that Hypothesis finds."""
    last: list[Crash] = []

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    @given(target.made)
    def check(content: bytes) -> None:
        wrong = reason(content)
        if wrong:
            last.append(Crash(wrong, content))
            raise AssertionError(wrong)

    try:
        check()
    except Exception:  # Hypothesis wraps it where a case fails only sometimes
        if not last:
            raise
    return last[-1] if last else None


def _smaller(content: bytes, wrong: str, reason: Callable[[bytes], str], tries: int = 300) -> bytes:
    """A part of a case that still does the same."""
    size = len(content) // 2
    while size and tries > 0:
        for at in range(0, len(content), size):
            tries -= 1
            less = content[:at] + content[at + size :]
            if tries > 0 and reason(less) == wrong:
                content = less
                break
        else:
            size //= 2
    return content


def _where(error: BaseException) -> str:
    """The kind of an error and the line that raised it: crashes at one line are one."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    place = f" at {Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}" if step else ""
    return f"{type(error).__name__}{place}"


def _limit_memory() -> None:
    """As much as there is now, and 1 GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@app.command()
def main(
    target: Annotated[list[str], typer.Option(help=f"What to fuzz: {', '.join(TARGETS)}; repeatable.")],
    minutes: Annotated[float, typer.Option(help="For how long, each.")] = 5.0,
    start: Annotated[int, typer.Option("--seed", help="Where to start.", show_default="the time")] = -1,
    crashes: Annotated[Path, typer.Option(help="Where crashes are written.")] = Path("fuzz-crashes"),
) -> None:
    """Fuzz what reads files; exits with 1 if something crashed."""
    unknown = sorted(set(target) - set(TARGETS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; there is: {', '.join(TARGETS)}")
    failed = False
    for name in target:
        first = start if start >= 0 else int(time.time())
        cases, found = fuzz(name, 60 * minutes, first, crashes)
        failed |= bool(found)
        print(f"{name}: {cases:,} cases in {minutes:g} minutes from seed {first}, {len(found)} crashes")  # noqa: T201
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.fuzz")
