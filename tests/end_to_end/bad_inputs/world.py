"""Makes one folder with all things that are broken, each in one way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from tests.helpers.miniature import META, paint, pickle_parts, pickled_part, small_omniglot

HERE = Path(__file__).parent


class Running:
    """What a pickle runs that does more than hold data."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def make_world(root: Path, finished: Path) -> None:
    """Fill `root`.

    Args:
        root: the folder.
        finished: a results folder of one MAML on the toy, under FGSM.
    """
    plugins(root / "plugins-of")
    images(root / "images")
    archives(root)
    pickles(root)
    omniglots(root)
    results(root, finished)
    suites(root / "suites")
    (root / "a-file").write_text("mine\n")
    (root / "data").mkdir()


def plugins(root: Path) -> None:
    """A folder a plugin that does not load, and one of those that load and misbehave."""
    for path in (HERE / "broken").glob("*.py"):
        (root / path.stem).mkdir(parents=True)
        shutil.copy(path, root / path.stem)
    (root / "syntax").mkdir()
    (root / "syntax" / "syntax.py").write_text("import torch\n\ndef register_learners(register:\n")
    (root / "binary").mkdir()
    (root / "binary" / "binary.py").write_bytes(b"\0\1\2\xff")
    (root / "empty").mkdir()
    shutil.copytree(HERE / "misbehaving", root / "misbehaving", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE.parent / "cheats" / "attacks.py", root / "misbehaving" / "cheats.py")


def classes(root: Path, names: str, count: int = 6) -> None:
    """A folder a class, with images of noise."""
    for name in names:
        for number in range(count):
            paint(root / name / f"{number}.png", (ord(name), number), (8, 8))


def images(root: Path) -> None:
    """Folders of images, each broken in one way."""
    (root / "empty").mkdir(parents=True)
    classes(root / "two-classes", "ab")
    classes(root / "one-empty-class", "abc")
    (root / "one-empty-class" / "d").mkdir()
    for part, names in {"train": "abcde", "val": "efghi", "test": "jklmn"}.items():
        classes(root / "class-in-two-splits" / part, names)
    for part, names in {"train": "abcde", "test": "jklmn"}.items():
        classes(root / "no-validation" / part, names)
    for part, names in {"train": "abcde", "val": "fghij", "test": "klmno"}.items():
        classes(root / "fine" / part, names)
        classes(root / "too-few-images" / part, names, 2)
    classes(root / "same-image", "abc")
    shutil.copy(root / "same-image" / "a" / "0.png", root / "same-image" / "b" / "0.png")
    classes(root / "class-of-copies", "abc")
    shutil.copytree(root / "class-of-copies" / "b", root / "class-of-copies" / "d")
    for name, part in {"Greek": "train", "Latin": "val", "Runes": "test"}.items():
        paint(root / "nested" / name / "alpha" / "0.png", [*name.encode()], (8, 8))
        paint(root / "flat-splits" / part / "0.png", [*name.encode()])
    (root / "hdf5").mkdir()
    (root / "hdf5" / "mini.hdf5").write_bytes(b"\x89HDF")
    classes(root / "bomb", "abc")
    (root / "bomb" / "a" / "0.png").write_bytes(png(30_000, 30_000))
    classes(root / "text-as-image", "abc")
    (root / "text-as-image" / "b" / "3.png").write_text("not an image")
    classes(root / "half-an-image", "abc")
    whole = (root / "half-an-image" / "c" / "2.png").read_bytes()
    (root / "half-an-image" / "c" / "2.png").write_bytes(whole[: len(whole) // 2])
    for name, rows in {
        "csv-climbs": "filename,label\n../../a-file,a\n",
        "csv-lists-what-is-not-there": "filename,label\nnowhere.png,a\n",
        "csv-without-labels": "filename,class\n0.png,a\n",
    }.items():
        (root / name).mkdir()
        for part in ("train", "val", "test"):
            (root / name / f"{part}.csv").write_text(rows)


def png(width: int, height: int) -> bytes:
    """A PNG that claims to have this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def archives(root: Path) -> None:
    """Zips, each broken in one way."""
    with zipfile.ZipFile(root / "whole.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"images/a/{number}.png", np.random.default_rng(number).bytes(200))
    whole = (root / "whole.zip").read_bytes()
    (root / "truncated.zip").write_bytes(whole[: len(whole) // 2])
    (root / "page.zip").write_text("<!DOCTYPE html><html><body>Please log in.</body></html>")
    (root / "nothing.zip").write_bytes(b"")
    with zipfile.ZipFile(root / "climbing.zip", "w") as archive:
        archive.writestr("../../climbed.png", b"")
    with zipfile.ZipFile(root / "linking.zip", "w") as archive:
        link = zipfile.ZipInfo("images/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(root / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(16 * 2**20))


def pickles(root: Path) -> None:
    """Folders of pickles, each broken in one way."""
    pickle_parts(root / "pickles" / "fine", META)
    for name, content in {
        "executing": Running(),
        "list": [1, 2, 3],
        "floats": pickled_part(0, [0, 1, 2], False, data=np.zeros((9, 8, 8, 3))),
    }.items():
        shutil.copytree(root / "pickles" / "fine", root / "pickles" / name)
        (root / "pickles" / name / META.format("train")).write_bytes(pickle.dumps(content))
    shutil.copytree(root / "pickles" / "fine", root / "pickles" / "truncated")
    path = root / "pickles" / "truncated" / META.format("train")
    path.write_bytes(path.read_bytes()[:-100])
    shutil.copytree(root / "pickles" / "fine", root / "pickles" / "no-test")
    (root / "pickles" / "no-test" / META.format("test")).unlink()
    shutil.copytree(root / "pickles" / "fine", root / "pickles" / "class-in-two-splits")
    train = root / "pickles" / "class-in-two-splits" / META.format("train")
    shutil.copy(train, train.with_name(META.format("test")))


def omniglots(root: Path) -> None:
    """An Omniglot of 9 characters."""
    small_omniglot(root / "small-omniglot", packed=False)


def results(root: Path, finished: Path) -> None:
    """Results folders, each broken in one way."""
    shutil.copytree(finished, root / "finished")
    (root / "no-results").mkdir()
    (root / "empty-results" / "records").mkdir(parents=True)
    for name in ("damaged-record", "newer-record", "damaged-checkpoint"):
        shutil.copytree(finished, root / name)
    [record] = (root / "damaged-record" / "records").iterdir()
    record.write_text(record.read_text().replace('"episodes": 4', '"episodes": 5', 1))
    [record] = (root / "newer-record" / "records").iterdir()
    record.write_text(json.dumps({**json.loads(record.read_text()), "schema": 99}))
    [checkpoint] = (root / "damaged-checkpoint" / "checkpoints").iterdir()
    content = bytearray(checkpoint.read_bytes())
    content[-20] ^= 1
    checkpoint.write_bytes(content)
    [record] = (root / "damaged-checkpoint" / "records").iterdir()
    record.unlink()
    shutil.copy(checkpoint, root / "damaged.safetensors")
    [checkpoint] = (finished / "checkpoints").iterdir()
    shutil.copy(checkpoint, root / "fine.safetensors")
    save_file(load_file(checkpoint), root / "stranger.safetensors")
    (root / "text.safetensors").write_text("not a checkpoint")


def suites(root: Path) -> None:
    """Suite files, each broken in one way."""
    root.mkdir()
    small = b'profile = "smoke"\ndataset = "toy"\nmeta-steps = 2\nepisodes = 4\nchecks = false\nattack = "fgsm"\n'
    for name, content in {
        "empty": b"",
        "misspelt": small + b"\nep = 0.1\n",
        "plural": b'learners = ["maml"]\n',
        "table": b"[defaults]\nway = 5\n",
        "where": small + b'device = "cuda"\n',
        "quoted": small + b'way = "2"\n',
        "listed": small + b"way = [2, 5]\n",
        "nothing": small + b"learner = []\n",
        "low": b"# one class\nway = 1\n",
        "no-scenario": small + b'scenario = ["clean/adv", "adv"]\n',
        "no-eps": small + b'eps = [\n    0.1,\n    "much",\n]\n',
        "control": b'learner = "\\u001b[2J"\n',
        "half": small + b"way = [2,\n",
        "twice": small + b'dataset = "glyphs"\n',
        "latin": small + "# für\n".encode("latin-1"),
        "large": b"#" * 70_000,
        "second": small + b"[[parts]]\nshot = 1\n\n[[parts]]\nshot = 0\n",
        "parts": small + b"[parts]\nshot = 1\n",
        "cannot": small + b'[[parts]]\nlearner = "maml"\n\n[[parts]]\nlearner = "protonet"\n',
        "unknown": small + b'[[parts]]\nlearner = "mamll"\n',
        "fine": small + b'learner = "maml"\n',
    }.items():
        (root / f"{name}.toml").write_bytes(content)
    (root / "folder.toml").mkdir()
