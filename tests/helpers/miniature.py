"""Small stand-ins for real data sets."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_meta.plugins.datasets.omniglot import VALIDATION_ALPHABETS, Omniglot


def paint(path: Path, seed: Any, size: tuple[int, int] = (20, 14)) -> Path:
    """An image of noise that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def small_omniglot(root: Path, packed: bool) -> None:
    """An Omniglot of 7 + 2 characters: the five validation alphabets, two for training, two for test."""
    root.mkdir(parents=True, exist_ok=True)
    background = [*sorted(VALIDATION_ALPHABETS), "Greek", "Latin"]
    for name, alphabets in {"images_background": background, "images_evaluation": ["Keble", "ULOG"]}.items():
        for a, alphabet in enumerate(alphabets):
            for d in range(20):
                pixels = np.random.default_rng((a, d, len(alphabets))).random((105, 105)) > 0.1
                path = root / name / alphabet / "character01" / f"{a:04}_{d + 1:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        if packed:
            shutil.make_archive(str(root / name), "zip", root, name)
            shutil.rmtree(root / name)


def pass_for_whole(patch: pytest.MonkeyPatch) -> None:
    """Let the small Omniglot pass for a whole one."""
    patch.setattr("robustbench_meta.data.omniglot.CHARACTERS", {"images_background": 7, "images_evaluation": 2})
    patch.setattr(Omniglot, "_check", lambda *_: None)


CACHE = "mini-imagenet-cache-{}.pkl"
META = "CIFAR_FS_{}.pickle"


def pickled_part(seed, classes, cache, images=3, shape=(8, 8, 3), **spoilt):
    """The content of a file: images of noise, in one of the two layouts, out of order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(classes)), images))
    pixels = random.integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    if cache:
        members = {name: np.flatnonzero(labels == i).tolist() for i, name in enumerate(classes)}
        return {"image_data": pixels, "class_dict": members, **spoilt}
    return {"data": pixels, "labels": [classes[i] for i in labels], **spoilt}


def pickle_parts(folder, names, protocol=4, **spoilt):
    """A data set of 4, 2 and 3 classes: by cache in the one layout, by label in the other."""
    folder.mkdir(parents=True, exist_ok=True)
    cache, contents = "cache" in names, {}
    for seed, (part, few) in enumerate([("train", range(4)), ("val", range(4, 6)), ("test", range(6, 9))]):
        classes = [f"n{i:02}" for i in few] if cache else list(few)
        contents[part] = pickled_part(seed, classes, cache, **spoilt)
        (folder / names.format(part)).write_bytes(pickle.dumps(contents[part], protocol))
    return contents
