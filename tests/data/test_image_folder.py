"""Layouts and archives that people have: read where it is plain what is meant, else said what was found."""

import gzip
import pickle
import shutil
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.experiment.data_library import add, list_data
from robustbench_meta.plugins.datasets.image_folder import ImageFolder
from robustbench_meta.plugins.datasets.omniglot import Omniglot
from robustbench_meta.plugins.datasets.pickled import Pickled
from robustbench_meta.registry.registry import load_registry
from tests.helpers.miniature import CACHE, META, paint, pass_for_whole, pickle_parts, small_omniglot


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "cache"))


def classes(root, names, images=2, size=(8, 8)):
    for name in names:
        for i in range(images):
            paint(root / name / f"{i}.png", (*name.encode(), i), size)
    return root


def parted(root, words):
    for word, names in zip(words, ("ab", "cd", "ef"), strict=True):
        classes(root / word, names)
    return root


def tables(folder, root, words=("train", "val", "test")):
    """Three CSVs in `folder` over root/images."""
    folder.mkdir(parents=True, exist_ok=True)
    for word, names in zip(words, ("ab", "cd", "ef"), strict=True):
        rows = [f"{name}{i}.png,{name}" for name in names for i in range(2)]
        (folder / f"{word}.csv").write_text("\n".join(["filename,label", *rows]))
        for name in names:
            for i in range(2):
                paint(root / "images" / f"{name}{i}.png", (ord(name), i))


def load(root, **options):
    return [split.classes for split in ImageFolder(path=str(root), **options).load(None)]


THREE = [["a", "b"], ["c", "d"], ["e", "f"]]


@pytest.mark.parametrize(
    "words",
    [("Train", "Val", "Test"), ("base", "val", "novel"), ("meta-train", "meta-val", "meta-test"),
     ("metatrain", "metavalid", "meta_test"), ("TRAIN", "Validation", "testing")],
)  # fmt: skip
def test_words_for_splits(tmp_path, words):
    assert load(parted(tmp_path / "my", words)) == THREE


@pytest.mark.parametrize("place", ["", "split", "splits"])
def test_tables_beside_images(tmp_path, place):
    tables(tmp_path / place, tmp_path)
    assert load(tmp_path) == THREE


def test_one_folder_too_high_and_clutter_is_nothing(tmp_path):
    mine = parted(tmp_path / "outer" / "inner" / "my", ("train", "val", "test"))
    (tmp_path / "outer" / "README.md").write_text("read me")
    for junk in ("Icon\r", "._0.png", ".DS_Store", "Thumbs.db"):
        (mine / "train" / "a" / junk).write_text("")
        (tmp_path / "outer" / junk).write_text("")
    shutil.copytree(mine / "test" / "e", mine / "train" / "a" / ".ipynb_checkpoints")
    (tmp_path / "outer" / "__MACOSX").mkdir()
    splits = ImageFolder(path=str(tmp_path / "outer")).load(None)
    assert [split.classes for split in splits] == THREE
    assert [split.copies for split in splits] == ["", "", ""]
    pickle_parts(tmp_path / "pickles" / "download", META)
    assert len(Pickled(path=str(tmp_path / "pickles")).load(None).train.classes) == 4


def test_a_class_called_as_a_split_is_a_class(tmp_path):
    splits = load(classes(tmp_path / "my", ["train", "bus", "tram", "test"]))
    assert sorted(chain(*splits)) == ["bus", "test", "train", "tram"]
    parted(tmp_path / "split", ("train", "val", "test"))
    classes(tmp_path / "split" / "train", ["train"])
    assert load(tmp_path / "split")[0] == ["a", "b", "train"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: [classes(root / f"Alphabet{a}", "xyz") for a in "abc"], ["'x' in it holds images", "CSV"]),
        (lambda root: classes(root, ["train", "val", "test"]), ["holds no folders", "one folder a class"]),
        (lambda root: (classes(root, "abc") / "a" / "9.png").symlink_to("/gone/1.png"), ["a link to /gone/1.png"]),
        (lambda root: (root / "mini.hdf5").write_text(""), ["mini.hdf5", "h5py and Pillow"]),
        (lambda root: (root / "mini.tar.gz").write_text(""), ["mini.tar.gz", "unpack"]),
        (lambda root: pickle_parts(root, META), ["CIFAR_FS_test.pickle", "data set pickled"]),
        (lambda root: (root / "base.json").write_text(""), ["base.json", "CSV"]),
    ],
    ids=["nested classes", "splits without classes", "broken link", "hdf5", "tar", "pickles", "json"],
)
def test_what_is_not_plain_is_said(tmp_path, make, words):
    (tmp_path / "my").mkdir()
    make(tmp_path / "my")
    with pytest.raises(DataError) as error:
        load(tmp_path / "my")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_images_in_a_folder_images_of_each_class(tmp_path):
    for name in "abc":
        classes(tmp_path / "my", [name])
        (tmp_path / "my" / name).rename(tmp_path / "images")
        (tmp_path / "my" / name).mkdir()
        (tmp_path / "images").rename(tmp_path / "my" / name / "images")
    assert sorted(chain(*load(tmp_path / "my"))) == ["a", "b", "c"]


@pytest.mark.parametrize(("sizes", "side"), [([(32, 32)], 32), ([(20, 14), (9, 30)], 30), ([(200, 90), (20, 20)], 84)])
def test_images_are_never_blown_up(tmp_path, sizes, side):
    for number, name in enumerate("abc"):
        classes(tmp_path / "my", name, size=sizes[number % len(sizes)])
    assert ImageFolder(path=str(tmp_path / "my")).load(None).train.shape == (3, side, side)
    assert ImageFolder(path=str(tmp_path / "my"), size=84).load(None).train.shape == (3, 84, 84)


@pytest.mark.parametrize(
    ("count", "split", "expected"),
    [(20, "auto", [10, 5, 5]), (15, "auto", [5, 5, 5]), (14, "auto", [6, 4, 4]), (100, "auto", [64, 16, 20]),
     (20, "90:5:5", [18, 1, 1]), (100, "64:16:20", [64, 16, 20]), (3, "64:16:20", [1, 1, 1]),
     (4, "64:16:20", [2, 1, 1]), (5, "1:98:1", [1, 3, 1])],
)  # fmt: skip
def test_every_split_gets_a_class_and_twenty_are_enough_for_5_way_tasks(tmp_path, count, split, expected):
    classes(tmp_path, [f"c{n:03}" for n in range(count)], images=1)
    assert [len(split) for split in load(tmp_path, split=split)] == expected


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTBENCH_META_DATA", str(tmp_path / "root"))
    parted(tmp_path / "mine", ("train", "val", "test"))
    for path in ("mine", "./mine", "../" + tmp_path.name + "/mine"):
        assert [split.classes for split in ImageFolder(path=path).load(None)] == THREE
    pickle_parts(tmp_path / "pickles", META)
    Pickled(path="pickles").load(None)
    classes(tmp_path / "root" / "mine", "xyz")
    with pytest.raises(DataError, match=r"is both .*root.mine and .*mine: give the absolute path"):
        ImageFolder(path="mine").load(None)
    assert [split.classes for split in ImageFolder(path="./mine").load(None)] == THREE


@pytest.mark.parametrize(
    ("name", "words"),
    [("meta-dataset", ("bench data add", "image-folder:path=", "pickled:path=")), ("cifarfs", ("'cifar-fs'",)),
     ("miniimagenet", ("'mini-imagenet'",)), ("tieredimagenet", ("'tiered-imagenet'",))],
)  # fmt: skip
def test_an_unknown_benchmark_says_what_to_type(name, words):
    with pytest.raises(BenchError) as error:
        load_registry(local=False).make("dataset", name, {})
    assert all(word in str(error.value) for word in words)


class TestPickled:
    def test_gzipped_npz_and_ranges(self, tmp_path):
        pickle_parts(tmp_path, META)
        expected = [split.fingerprint for split in Pickled(path=str(tmp_path)).load(None)]
        for part in ("train", "val", "test"):
            path = tmp_path / META.format(part)
            content = path.read_bytes()
            (tmp_path / "gz").mkdir(exist_ok=True)
            with gzip.open(tmp_path / "gz" / f"{path.name}.gz", "wb") as file:
                file.write(content)
            (tmp_path / "npz").mkdir(exist_ok=True)
            held = pickle.loads(content)
            np.savez(tmp_path / "npz" / f"CIFAR_FS_{part}.npz", images=held["data"], labels=held["labels"])
        for form in ("gz", "npz"):
            assert [split.fingerprint for split in Pickled(path=str(tmp_path / form)).load(None)] == expected

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_members_as_ranges(self, tmp_path, protocol):
        for part, content in pickle_parts(tmp_path, CACHE).items():
            names = sorted(content["class_dict"])
            ranges = {f"{part}{name}": range(i * 3, i * 3 + 3) for i, name in enumerate(names)}
            (tmp_path / CACHE.format(part)).write_bytes(pickle.dumps({**content, "class_dict": ranges}, protocol))
        assert {3} == {int(n) for split in Pickled(path=str(tmp_path)).load(None) for n in split.counts}

    def test_tiered_imagenet_is_told_what_to_do(self, tmp_path):
        (tmp_path / "train_images_png.pkl").write_bytes(b"")
        with pytest.raises(DataError, match=r"train_images_png\.pkl, as tieredImageNet .* a folder a class"):
            Pickled(path=str(tmp_path)).load(None)


class TestAdd:
    @pytest.fixture
    def mine(self, tmp_path):
        return parted(tmp_path / "mine", ("Train", "Val", "Test"))

    def files(self, mine):
        return [(path, path.relative_to(mine).as_posix()) for path in sorted(mine.rglob("*.png"))]

    @pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
    def test_a_tar(self, tmp_path, mine, suffix):
        with tarfile.open(tmp_path / f"x.{suffix}", f"w:{suffix.partition('.')[2]}") as archive:
            archive.add(mine, "mine")
        add("my", tmp_path / f"x.{suffix}", tmp_path / "root")
        assert [split.classes for split in ImageFolder(path="my").load(tmp_path / "root")] == THREE

    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [("../evil", tarfile.REGTYPE, "leads out"), ("/evil", tarfile.REGTYPE, "leads out"),
         ("a/b", tarfile.SYMTYPE, "no file or folder"), (".x/../../evil", tarfile.REGTYPE, "leads out")],
    )  # fmt: skip
    def test_a_tar_that_leads_elsewhere(self, tmp_path, name, kind, words):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.addfile(entry)
        with pytest.raises(DataError, match=words):
            add("my", tmp_path / "x.tar", tmp_path / "root")
        assert list((tmp_path / "root").iterdir()) == []

    def test_a_tar_bomb(self, tmp_path):
        (tmp_path / "zeros").write_bytes(bytes(8 * 2**20))
        with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "zeros", "a.png")
        with pytest.raises(DataError, match="times its size; at most 200 times"):
            add("my", tmp_path / "x.tar.gz", tmp_path / "root")

    def test_zips_by_windows_and_by_a_mac(self, tmp_path, mine):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for path, name in self.files(mine):
                archive.writestr(zipfile.ZipInfo("mine\\" + name.replace("/", "\\")), path.read_bytes())
        with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
            for path, name in self.files(mine):
                archive.write(path, f"mine/{name}")
            archive.writestr("mine/Icon\r", "")
            archive.writestr("mine/Train/a/._0.png", "x")
            archive.writestr("__MACOSX/mine/._Train", "x")
            archive.writestr("README.txt", "x")
        for name in ("x", "mac"):
            add(name, tmp_path / f"{name}.zip", tmp_path / "root")
            assert [split.classes for split in ImageFolder(path=name).load(tmp_path / "root")] == THREE

    def test_a_table_of_splits(self, tmp_path):
        tables(tmp_path / "tables", tmp_path / "my")
        rows = [
            f"{line},{part}"
            for part in ("train", "val", "test")
            for line in (tmp_path / "tables" / f"{part}.csv").read_text().splitlines()[1:]
        ]
        (tmp_path / "my" / "mine.csv").write_text("\n".join(["filename,label,split", *rows]))
        assert add("one", tmp_path / "my", tmp_path / "root").dataset == "image-folder:path=one"
        assert [split.classes for split in ImageFolder(path="one").load(tmp_path / "root")] == THREE
        shutil.copy(tmp_path / "my" / "mine.csv", tmp_path / "my" / "other.csv")
        add("two", tmp_path / "my", tmp_path / "root")
        found = {row.dataset: row.state for row in list_data(tmp_path / "root")}
        few = {f"image-folder:path=two,csv={name}.csv": "needs options" for name in ("mine", "other")}
        assert few.items() <= found.items(), "3 classes, tasks have 5"

    def test_ready_is_only_what_runs(self, tmp_path, mine):
        row = add("small", mine, tmp_path / "root")
        assert row.state == "needs options"
        assert "5-way task needs 5" in row.where
        classes(tmp_path / "many", [f"c{n:02}" for n in range(20)], images=6)
        assert add("many", tmp_path / "many", tmp_path / "root").state == "ready"
        (tmp_path / "root" / "nothing").mkdir()
        states = {Path(row.where).name: row.state for row in list_data(tmp_path / "root")}
        assert states == {**states, "nothing": "damaged", "many": "ready", "small": "needs options"}

    def test_a_folder_with_one_archive_is_that_archive(self, tmp_path):
        classes(tmp_path / "many", [f"c{n:02}" for n in range(20)], images=6)
        shutil.make_archive(str(tmp_path / "download" / "images"), "zip", tmp_path / "many")
        (tmp_path / "download" / "README.md").write_text("Images.")
        assert add("many", tmp_path / "download", tmp_path / "root").state == "ready"
        shutil.make_archive(str(tmp_path / "download" / "others"), "zip", tmp_path / "many")
        with pytest.raises(DataError, match="unpack archives first"):
            add("two", tmp_path / "download", tmp_path / "root")

    def test_a_broken_link_and_a_single_pickle(self, tmp_path, mine):
        pickle_parts(tmp_path / "pickles", META)
        with pytest.raises(DataError, match="one file of a data set: give the folder"):
            add("my", tmp_path / "pickles" / META.format("train"), tmp_path / "root")
        (mine / "Train" / "a" / "9.png").symlink_to("/gone/9.png")
        with pytest.raises(DataError, match=r"a link to /gone/9\.png, which is not there"):
            add("my", mine, tmp_path / "root")

    def test_warnings_name_no_temporary_place(self, tmp_path, mine, caplog):
        (mine / "Train" / "a" / "notes.txt").write_text("")
        shutil.copy(mine / "Train" / "a" / "0.png", mine / "Train" / "a" / "copy.png")
        add("my", mine, tmp_path / "root")
        assert "1 files that are no images" in caplog.text
        assert "copy.png" in caplog.text
        assert ".adding" not in caplog.text


def test_a_class_of_one_image_gets_advice_that_helps(tmp_path):
    classes(tmp_path, "abc", images=1)
    with pytest.raises(DataError, match="remove the class, or add images"):
        ImageFolder(path=str(tmp_path)).load(None).train.check(1, 1, 1)


def test_omniglot_as_windows_and_macs_unpack_it(tmp_path, monkeypatch):
    pass_for_whole(monkeypatch)
    small_omniglot(tmp_path / "plain", packed=False)
    expected = [split.fingerprint for split in Omniglot().load(tmp_path / "plain")]
    for name in ("images_background", "images_evaluation"):
        (tmp_path / "nested" / name).mkdir(parents=True)
        shutil.copytree(tmp_path / "plain" / name, tmp_path / "nested" / name / name)
        first = min((tmp_path / "plain" / name).rglob("*.png"))
        first.with_name(f"._{first.name}").write_bytes(b"x")
    for place in ("plain", "nested"):
        assert [split.fingerprint for split in Omniglot().load(tmp_path / place)] == expected
