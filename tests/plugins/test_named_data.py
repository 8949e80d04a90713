"""The field's data sets by name, from every layout that people have."""

import io
import os
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_meta.errors import DataError
from robustbench_meta.experiment.data_library import add, list_data
from robustbench_meta.plugins.datasets.named import CIFARFS, CLASSES, CUB, FC100, MiniImageNet
from robustbench_meta.registry.registry import load_registry

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = {
    "cifar-fs": (64, 16, 20), "fc100": (60, 20, 20), "mini-imagenet": (64, 16, 20), "tiered-imagenet": (351, 97, 160),
    "cub": (100, 50, 50),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path_factory.mktemp("cache")))


def images_of(splits):
    """By class, the set of its images' bytes."""
    found = {}
    for source in splits:
        for label, start, count in zip(source.classes, source.starts, source.counts, strict=True):
            found[label] = {image.numpy().tobytes() for image in source.images[start : start + count]}
    return found


def archive(path: Path, per_class=2, twin=None):
    """A small archive as Krizhevsky's: pickles of protocol 2; `twin`: two classes that get one equal image."""
    names = sorted(label for part in CLASSES["cifar-fs"].values() for label in part)
    rng = np.random.default_rng(0)
    content = {"meta": {"fine_label_names": names, "coarse_label_names": []}}
    for part, count in (("train", per_class), ("test", 1)):
        labels = np.repeat(np.arange(100), count)
        rng.shuffle(labels)
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        if twin and part == "train":
            one, other = (int(np.flatnonzero(labels == names.index(label))[0]) for label in twin)
            data[one] = data[other]
        files = [f"{names[label]}_{place}.png" for place, label in enumerate(labels)]
        content[part] = {"data": data, "fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels),
                         "filenames": files, "batch_label": "b"}  # fmt: skip
    with tarfile.open(path, "w:gz") as tar:
        for name, value in content.items():
            data = pickle.dumps(value, protocol=2)
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content


def as_folders(root: Path, labels, per_class=2, side=8):
    for label in labels:
        rng = np.random.default_rng(zlib.crc32(label.encode()))
        (root / label).mkdir(parents=True)
        for place in range(per_class):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(root / label / f"{place}.png")


@pytest.mark.parametrize("name", SIZES)
def test_the_lists_are_the_papers_and_disjoint(name):
    lists = CLASSES[name]
    assert tuple(len(lists[part]) for part in ("train", "validation", "test")) == SIZES[name]
    assert len({label for labels in lists.values() for label in labels}) == sum(SIZES[name])


def test_fc100_splits_by_superclass_and_cifar_fs_does_not():
    # CIFAR-100's superclass 'people' and 'trees' (Krizhevsky 2009), which FC100 keeps together
    for group in (
        {"baby", "boy", "girl", "man", "woman"},
        {"maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"},
    ):
        assert sum(bool(group & set(labels)) for labels in CLASSES["fc100"].values()) == 1
        assert sum(bool(group & set(labels)) for labels in CLASSES["cifar-fs"].values()) > 1


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_fs_and_fc100_come_from_the_official_archive(tmp_path, packed):
    (tmp_path / "cifar100").mkdir()
    content = archive(tmp_path / "cifar100" / "cifar-100-python.tar.gz")
    if not packed:
        with tarfile.open(tmp_path / "cifar100" / "cifar-100-python.tar.gz") as tar:
            tar.extractall(tmp_path / "cifar100", filter="data")
        (tmp_path / "cifar100" / "cifar-100-python.tar.gz").unlink()
    for dataset in (CIFARFS(), FC100()):
        splits = dataset.load(tmp_path)
        assert [list(source.classes) for source in splits] == list(CLASSES[dataset.name].values())
        found = images_of(splits)
        names = content["meta"]["fine_label_names"]
        for place, label in enumerate(content["test"]["fine_labels"]):
            assert content["test"]["data"][place].tobytes() in found[names[label]]
        assert {len(images) for images in found.values()} == {3}
        assert splits.train.shape == (3, 32, 32)


def test_an_image_of_two_classes_is_dropped_from_the_training_side_and_told(tmp_path, caplog):
    (tmp_path / "cifar100").mkdir()
    archive(tmp_path / "cifar100" / "cifar-100-python.tar.gz", twin=("apple", "baby"))  # train and test of CIFAR-FS
    splits = CIFARFS().load(tmp_path)
    assert splits.train.copies == "1 dropped"
    assert not splits.test.copies
    assert "apple/" in caplog.text
    assert CIFARFS(copies="keep").load(tmp_path).train.copies == "1 kept"
    with pytest.raises(DataError, match="equal images under two classes"):
        CIFARFS(copies="refuse").load(tmp_path)


@pytest.mark.parametrize(
    "layout", ["a folder a class", "train, val and test", "data and splits", "images among others", "another split"]
)
def test_folders_are_split_by_the_lists_however_they_lie(tmp_path, layout):
    lists = CLASSES["cifar-fs"]
    folder = tmp_path / "cifar-fs"
    words = {"train": "train", "validation": "val", "test": "test"}
    if layout == "a folder a class":
        as_folders(folder, [label for labels in lists.values() for label in labels])
    elif layout == "train, val and test":
        for part, labels in lists.items():
            as_folders(folder / words[part], labels)
    elif layout == "data and splits":  # Bertinetto et al.'s
        as_folders(folder / "data", [label for labels in lists.values() for label in labels])
        for part, labels in lists.items():
            (folder / "splits" / "bertinetto").mkdir(parents=True, exist_ok=True)
            (folder / "splits" / "bertinetto" / f"{words[part]}.txt").write_text("\n".join(labels))
    elif layout == "images among others":  # CUB's
        as_folders(folder / "images", [label for labels in lists.values() for label in labels])
        for other in ("attributes", "parts"):
            (folder / other).mkdir()
            (folder / other / "notes.txt").write_text("no images")
    else:
        for part, labels in CLASSES["fc100"].items():
            as_folders(folder / words[part], labels)
    splits = CIFARFS().load(tmp_path)
    assert [list(source.classes) for source in splits] == list(lists.values())
    assert splits.train.shape == (3, 8, 8)


def test_a_missing_class_and_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"bench data download cifar100.*bench data add cifar-fs PATH"):
        CIFARFS().load(tmp_path)
    with pytest.raises(DataError, match="bench data add mini-imagenet PATH"):
        MiniImageNet().load(tmp_path)
    labels = [label for labels in CLASSES["cub"].values() for label in labels]
    as_folders(tmp_path / "cub", labels[:-1], per_class=1)
    with pytest.raises(DataError, match=rf"cub: 1 of 200 classes are missing \({labels[-1]}\)"):
        CUB().load(tmp_path)


def test_an_archive_is_added_listed_and_found(tmp_path):
    archive(tmp_path / "cifar-100-python.tar.gz", per_class=9)
    row = add("cifar100", tmp_path / "cifar-100-python.tar.gz", tmp_path / "root")
    assert row.state == "ready"
    rows = {row.dataset: row for row in list_data(tmp_path / "root")}
    assert (rows["cifar-fs"].state, rows["fc100"].state, rows["mini-imagenet"].state) == ("ready", "ready", "missing")
    assert len(CIFARFS().load(tmp_path / "root").train.classes) == 64


def test_a_folder_is_added_under_the_name(tmp_path):
    as_folders(tmp_path / "mine", [label for labels in CLASSES["fc100"].values() for label in labels], per_class=7)
    row = add("fc100", tmp_path / "mine", tmp_path / "root")
    assert (row.dataset, row.state) == ("fc100", "ready")
    assert len(FC100().load(tmp_path / "root").test.classes) == 20
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    for place, label in enumerate(sorted(os.listdir(tmp_path / "other"))[:36]):
        (tmp_path / "other" / label).rename(tmp_path / "other" / CLASSES["mini-imagenet"]["train"][place])
    with pytest.raises(DataError, match=r"was not added: mini-imagenet: 64 of 100 classes are missing"):
        add("mini-imagenet", tmp_path / "other", tmp_path / "root")


def test_a_damaged_archive_is_told(tmp_path):
    (tmp_path / "cifar100").mkdir()
    place = tmp_path / "cifar100" / "cifar-100-python.tar.gz"
    archive(place)
    place.write_bytes(place.read_bytes()[:2000])
    with pytest.raises(DataError, match="get it again"):
        CIFARFS().load(tmp_path)


def test_real_cifar_fs_loads_by_name(tmp_path):
    if not (SHARED / "cifar-fs" / "cifar-fs.zip").is_file():
        pytest.skip("the real CIFAR-FS is not here: put cifar-fs.zip into shared/data/cifar-fs beside the checkout")
    add("cifar-fs", SHARED / "cifar-fs" / "cifar-fs.zip", tmp_path)
    splits = load_registry(local=False).make("dataset", "cifar-fs", {}).load(tmp_path)
    assert [len(source.classes) for source in splits] == [64, 16, 20]
    assert splits.test.shape == (3, 32, 32)
    assert {int(count) for source in splits for count in source.counts} == {300}
