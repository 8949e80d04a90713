"""Equal images: one rule for every reader, found from the bytes, the training side gives way, and the row says so."""

import json
import pickle
import shutil

import numpy as np
import pytest

from robustbench_meta import run
from robustbench_meta.errors import DataError
from robustbench_meta.plugins.datasets.image_folder import ImageFolder
from robustbench_meta.plugins.datasets.omniglot import Omniglot
from robustbench_meta.plugins.datasets.pickled import Pickled
from tests.helpers.miniature import META, paint, pass_for_whole, pickle_parts, small_omniglot


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three splits of two classes of four images; three pairs across splits or classes, one inside a class."""
    root = tmp_path / "my"
    for part, names in {"train": "ab", "val": "cd", "test": "ef"}.items():
        for name in names:
            for i in range(4):
                paint(root / part / name / f"{i}.png", (ord(name), i), (8, 8))
    shutil.copy(root / "test/e/0.png", root / "train/a/1.png")
    shutil.copy(root / "test/e/1.png", root / "val/c/2.png")
    shutil.copy(root / "test/e/2.png", root / "test/f/3.png")
    shutil.copy(root / "train/b/0.png", root / "train/b/3.png")
    return root


def counts(splits):
    return {label: int(n) for split in splits for label, n in zip(split.classes, split.counts, strict=True)}


PAIRS = [("train/a/1.png", "test/e/0.png"), ("val/c/2.png", "test/e/1.png"), ("test/f/3.png", "test/e/2.png")]


class TestImageFolder:
    def test_what_crosses_splits_gives_way_on_the_training_side(self, folder, caplog):
        for _ in range(2):  # decoded, and from the cache
            splits = ImageFolder(path=str(folder)).load(None)
            assert counts(splits) == {"a": 3, "b": 3, "c": 3, "d": 4, "e": 4, "f": 3}
            assert [split.copies for split in splits] == ["2 dropped", "1 dropped", "1 dropped"]
        for pair in PAIRS:
            assert " = ".join(reversed(pair)) in caplog.text

    def test_no_image_is_in_two_places_afterwards(self, folder):
        images = np.concatenate([split.images.numpy() for split in ImageFolder(path=str(folder)).load(None)])
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images) == 20

    def test_kept_when_asked(self, folder):
        splits = ImageFolder(path=str(folder), copies="keep").load(None)
        assert set(counts(splits).values()) == {4}
        assert [split.copies for split in splits] == ["2 kept", "1 kept", "1 kept"]

    def test_refused_when_asked_with_all_of_them_before_anything_is_decoded(self, folder):
        (folder / "val/d/0.png").write_bytes(b"no image at all")
        with pytest.raises(DataError) as error:
            ImageFolder(path=str(folder), copies="refuse").load(None)
        for pair in PAIRS:
            assert all(name in str(error.value) for name in pair)
        assert "copies=drop" in str(error.value)

    def test_a_class_of_nothing_but_copies_is_named(self, folder):
        shutil.rmtree(folder / "train/a")
        shutil.copytree(folder / "test/f", folder / "train/a")
        with pytest.raises(DataError, match="class 'a' of train has nothing but copies"):
            ImageFolder(path=str(folder)).load(None)

    def test_without_copies_nothing_is_said(self, tmp_path, caplog):
        for name in "abc":
            paint(tmp_path / name / "0.png", ord(name))
        assert [split.copies for split in ImageFolder(path=str(tmp_path)).load(None)] == ["", "", ""]
        assert "dropped" not in caplog.text


class TestOtherReaders:
    def spoilt(self, root):
        contents = pickle_parts(root, META)
        contents["train"]["data"][1] = contents["test"]["data"][0]
        (root / META.format("train")).write_bytes(pickle.dumps(contents["train"]))

    def test_pickled_follows_the_same_rule(self, tmp_path, caplog):
        self.spoilt(tmp_path)
        splits = Pickled(path=str(tmp_path)).load(None)
        assert [int(split.counts.sum()) for split in splits] == [11, 6, 9]
        assert [split.copies for split in splits] == ["1 dropped", "", ""]
        assert "train image 1 " in caplog.text
        kept = Pickled(path=str(tmp_path), copies="keep").load(None)
        assert [int(split.counts.sum()) for split in kept] == [12, 6, 9]
        with pytest.raises(DataError, match=r"train image 1 .*copies=drop"):
            Pickled(path=str(tmp_path), copies="refuse").load(None)

    def test_omniglot_is_published_with_a_copy_which_stays_and_is_said(self, tmp_path, monkeypatch):
        pass_for_whole(monkeypatch)
        small_omniglot(tmp_path, packed=False)
        drawings = sorted((tmp_path / "images_background/Greek/character01").iterdir())
        shutil.copy(drawings[2], drawings[18])
        assert [split.copies for split in Omniglot().load(tmp_path)] == ["1 kept", "", ""]
        dropped = Omniglot(copies="drop").load(tmp_path)
        assert counts(dropped)["Greek/character01"] == 19
        turned = Omniglot(copies="drop", rotations=True).load(tmp_path)
        assert counts(turned)["Greek/character01/rotated90"] == 19


def test_the_row_says_what_was_dropped(folder, tmp_path):
    outcome = run(
        learner="protonet", attack="none", dataset=f"image-folder:path={folder}", way=2, query=1, profile="smoke",
        meta_steps=2, episodes=4, checks=False, results=tmp_path / "results",
    )  # fmt: skip
    told = "2 dropped from train, 1 dropped from validation, 1 dropped from test"
    assert outcome.leaderboard["copies"].tolist() == [told]
    [record] = (tmp_path / "results/records").iterdir()
    assert json.loads(record.read_text())["labels"]["copies"] == told
