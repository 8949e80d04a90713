"""The built-in data sets: what is in them, and that their splits are what the papers say."""

import json
import os
import pickle
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from scipy import stats

from robustbench_meta.data.array_cache import cache_dir, cached
from robustbench_meta.data.image_decoding import read_image
from robustbench_meta.data.pickled import find_series
from robustbench_meta.errors import DataError
from robustbench_meta.experiment.data_library import add, list_data
from robustbench_meta.options import parse_choice
from robustbench_meta.plugins.datasets import glyphs, omniglot
from robustbench_meta.plugins.datasets.glyphs import Glyphs
from robustbench_meta.plugins.datasets.image_folder import ImageFolder
from robustbench_meta.plugins.datasets.omniglot import Omniglot
from robustbench_meta.plugins.datasets.pickled import Pickled
from robustbench_meta.plugins.datasets.toy import Toy
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.testing import verify
from tests.helpers.miniature import CACHE, META, paint, pass_for_whole, pickle_parts, pickled_part, small_omniglot


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """A cache that lasts for all tests of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(kept, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(kept))


def real_data():
    """The folder with the real Omniglot, or a skip."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for folder in (os.environ.get("ROBUSTBENCH_META_DATA"), beside):
        if folder and (Path(folder) / "omniglot" / "images_background.zip").is_file():
            return Path(folder)
    pytest.skip("the real Omniglot is not here: `bench data download omniglot`, or set ROBUSTBENCH_META_DATA")


def test_all_five_are_registered():
    names = load_registry(local=False).names("dataset")
    assert {"glyphs", "omniglot", "image-folder", "pickled", "toy"} <= set(names)


class TestGlyphs:
    def test_splits_are_large_and_disjoint_in_script(self):
        splits = Glyphs().load(None)
        assert [len(split.classes) for split in splits] >= [800, 60, 250]
        scripts = [{glyphs.script_of(unicodedata.lookup(label)) for label in split.classes} for split in splits]
        assert len(set.union(*scripts)) == sum(map(len, scripts))
        assert {"CYRILLIC", "GEORGIAN", "ARMENIAN", "HEBREW"} <= scripts[2]
        for split in splits:
            assert split.shape == (1, 28, 28)
            assert set(split.counts) == {20}

    @pytest.mark.parametrize(
        ("character", "script"),
        [("𝔸", "LATIN"), ("ℵ", "HEBREW"), ("µ", "GREEK"), ("Ж", "CYRILLIC"), ("𐌀", "OLD ITALIC")],
    )
    def test_a_form_of_a_letter_belongs_to_the_script_of_the_letter(self, character, script):
        assert glyphs.script_of(character) == script

    def test_no_two_classes_look_the_same(self):
        """Of O, Ο (Greek) and О (Cyrillic) one stays, as the small ones do; Q has no like."""
        classes = [label for split in Glyphs().load(None) for label in split.classes]
        for size in ("CAPITAL", "SMALL"):
            alike = {f"LATIN {size} LETTER O", f"GREEK {size} LETTER OMICRON", f"CYRILLIC {size} LETTER O"}
            assert len(alike & set(classes)) <= 1
        assert "LATIN CAPITAL LETTER Q" in classes

    def test_no_class_of_one_split_looks_like_one_of_another(self):
        """Drawn here anew, larger and by another measure: the mean difference of ink, in each style that both have."""
        splits = Glyphs().load(None)
        kept = [set(split.classes) for split in splits]
        for one, other in (("LATIN CAPITAL LETTER K", "CYRILLIC CAPITAL LETTER KA"),
                           ("LATIN CAPITAL LETTER K WITH STROKE", "CYRILLIC CAPITAL LETTER KA WITH STROKE"),
                           ("LATIN SMALL LETTER N", "ARMENIAN SMALL LETTER RA")):  # fmt: skip
            assert not (any(one in classes for classes in kept) and any(other in classes for classes in kept))
        for name in ("DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-BoldItalic"):
            font = ImageFont.truetype(str(glyphs.font_folder() / f"{name}.ttf"), 80)
            missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
            ink = []
            for classes in kept:
                masks = [font.getmask(unicodedata.lookup(label), mode="L") for label in sorted(classes)]
                drawn = [Image.frombytes("L", mask.size, bytes(mask)).crop(mask.getbbox()).resize((32, 32))
                         for mask in masks if mask.getbbox() and (mask.getbbox(), bytes(mask)) != missing]  # fmt: skip
                ink.append(np.stack([np.asarray(image, np.float32).ravel() / 255 for image in drawn]))
            for a, b in ((0, 1), (0, 2), (1, 2)):
                nearest = min(np.abs(ink[b] - each).mean(1).min() for each in ink[a])
                assert nearest > 0.04, (name, a, b, nearest)

    def test_ink_is_bright_centred_and_inside(self):
        images = Glyphs().load(None).test.images.float()[:, 0] / 255
        mass = images.sum((1, 2))
        assert 0.05 < images.mean() < 0.3
        assert (images.amax((1, 2)) > 0.7).all(), "an image without ink"
        middle = (images.sum(1) * torch.arange(28)).sum(1) / mass
        assert (middle - 13.5).abs().mean() < 2
        border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
        assert ((border > 0.25).any(1).float().mean()) < 0.02, "glyphs are cut off"

    def test_no_two_images_of_a_class_are_equal(self):
        bank = Glyphs().load(None).test
        images = bank.images.numpy().reshape(len(bank.classes), 20, -1)
        assert all(len(np.unique(group, axis=0)) == 20 for group in images)

    def test_rendering_repeats_exactly_and_fewer_images_are_a_prefix(self, monkeypatch):
        monkeypatch.setattr(glyphs, "_styles", lambda _: {code: list(range(12)) for code in map(ord, "QRЖ")})
        first, again, fewer = glyphs.render("letters", 20), glyphs.render("letters", 20), glyphs.render("letters", 7)
        assert np.array_equal(first.images, again.images)
        assert first.classes.tolist() == [
            "LATIN CAPITAL LETTER Q",
            "LATIN CAPITAL LETTER R",
            "CYRILLIC CAPITAL LETTER ZHE",
        ]
        assert np.array_equal(first.images.reshape(3, 20, -1)[:, :7], fewer.images.reshape(3, 7, -1))


class TestCache:
    def make(self):
        self.made = getattr(self, "made", 0) + 1
        return {"numbers": np.arange(5)}

    def test_is_used_and_is_keyed(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path))
        for key, made in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2)):
            assert cached("n", key, self.make)["numbers"].tolist() == [0, 1, 2, 3, 4]
            assert self.made == made
        assert not list(tmp_path.glob("*.tmp"))

    @pytest.mark.parametrize(
        "damage", [b"", b"PK\x03\x04", b"\x80\x04pickle", None], ids=["empty", "cut", "pickle", "flip"]
    )
    def test_damage_costs_time_only(self, tmp_path, monkeypatch, damage):
        monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path))
        cached("n", {}, self.make)
        (file,) = tmp_path.iterdir()
        content = bytearray(file.read_bytes())
        content[content.index(np.arange(5).tobytes()) + 8] ^= 1
        file.write_bytes(content if damage is None else damage)
        assert cached("n", {}, self.make)["numbers"].tolist() == [0, 1, 2, 3, 4]
        assert self.made == 2

    def test_that_cannot_be_written_costs_time_only(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "file" / "below"))
        assert cached("n", {}, self.make)["numbers"].sum() == 10

    def test_is_where_it_is_told_to_be(self, kept):
        assert cache_dir() == kept


class TestOmniglot:
    def test_vinyals_list_has_the_published_counts(self):
        facts = json.loads(Path(omniglot.__file__).with_name("omniglot_vinyals.json").read_text())
        size = {part: sum(last - first + 1 for first, last in facts[part].values()) for part in ("validation", "test")}
        assert size == {"validation": 172, "test": 423}
        assert facts["counts"] == {"train": 964 + 659 - 172 - 423, **size}

    @pytest.mark.parametrize(
        ("options", "counts"),
        [({}, [792, 172, 659]), ({"split": "vinyals"}, [1028, 172, 423]), ({"rotations": True}, [3168, 688, 2636])],
        ids=["lake", "vinyals", "rotations"],
    )
    def test_real_splits(self, options, counts):
        splits = Omniglot(**options).load(real_data())
        assert [len(split.classes) for split in splits] == counts
        assert len({label for split in splits for label in split.classes}) == sum(counts)
        for split in splits:
            assert set(split.counts) == {20}
            assert split.shape == (1, 28, 28)
            assert 0.05 < split.images.float().mean() / 255 < 0.12, "ink is bright, and thin"
        if options.get("split") != "vinyals":
            alphabets = [{label.split("/")[0] for label in split.classes} for split in splits]
            assert [len(part) for part in alphabets] == [25, 5, 20]
            assert len(set.union(*alphabets)) == 50

    def test_the_vinyals_list_names_only_characters_that_exist(self):
        splits = Omniglot().load(real_data())
        known = {label for split in splits for label in split.classes}
        facts = json.loads(Path(omniglot.__file__).with_name("omniglot_vinyals.json").read_text())
        for part in ("validation", "test"):
            for alphabet, (first, last) in facts[part].items():
                assert {f"{alphabet}/character{n:02}" for n in range(first, last + 1)} <= known

    def test_rotations_are_quarter_turns(self):
        plain, turned = (Omniglot(rotations=value).load(real_data()).test for value in (False, True))
        label = plain.classes[5]
        images = plain.images[100:120]
        for turn in range(4):
            place = turned.classes.index(f"{label}/rotated{90 * turn}")
            assert torch.equal(turned.images[place * 20 : place * 20 + 20], torch.rot90(images, turn, (2, 3)))

    def test_two_folders_made_alike_are_not_taken_for_one(self, tmp_path, monkeypatch):
        """Other pixels under the same names, sizes and times."""
        pass_for_whole(monkeypatch)
        found = []
        for name, invert in [("one", False), ("two", True)]:
            small_omniglot(tmp_path / name, packed=False)
            for path in (tmp_path / name).rglob("*.png"):
                pixels = np.asarray(Image.open(path))
                Image.fromarray(~pixels if invert else pixels).save(path)
                path.write_bytes(path.read_bytes().ljust(4000, b"\0"))
                os.utime(path, (1e9, 1e9))
            found.append(Omniglot().load(tmp_path / name).train.fingerprint)
        assert found[0] != found[1]

    def test_zip_and_folder_are_the_same_data(self, tmp_path):
        small_omniglot(tmp_path / "zips", packed=True)
        small_omniglot(tmp_path / "folders" / "omniglot-py", packed=False)
        with pytest.MonkeyPatch.context() as patch:
            pass_for_whole(patch)
            prints = [[s.fingerprint for s in Omniglot().load(tmp_path / kind)] for kind in ("zips", "folders")]
        assert prints[0] == prints[1]


class TestImageFolder:
    def folders(self, root, classes, images=3):
        for c in range(classes):
            for i in range(images + c % 2):
                paint(root / f"class{c:02}" / f"{i}.png", (c, i))
        return root

    def test_two_folders_made_alike_are_not_taken_for_one(self, tmp_path):
        """Other pixels under the same names, sizes and times; a folder that is moved is still the same."""
        found = []
        for k, name in enumerate(("one", "two")):
            for c in range(6):
                path = paint(tmp_path / name / f"c{c}" / "0.bmp", (k, c))
                os.utime(path, (1e9, 1e9))
            found.append(ImageFolder(path=str(tmp_path / name), size=8).load(None).train.fingerprint)
        assert found[0] != found[1]
        (tmp_path / "one").rename(tmp_path / "moved")
        before = set(cache_dir().iterdir())
        assert ImageFolder(path=str(tmp_path / "moved"), size=8).load(None).train.fingerprint == found[0]
        assert set(cache_dir().iterdir()) == before

    def test_one_folder_a_class_is_divided_by_class(self, tmp_path):
        root = self.folders(tmp_path / "my", 10)
        splits = ImageFolder(path="my", size=8, split="60:20:20").load(tmp_path)
        assert [len(split.classes) for split in splits] == [6, 2, 2]
        assert sorted(label for split in splits for label in split.classes) == sorted(p.name for p in root.iterdir())
        assert splits.train.shape == (3, 8, 8)
        assert {*splits.train.counts.tolist()} == {3, 4}, "unequal classes stay as they are"
        others = ImageFolder(path=str(root), size=8, split="60:20:20", split_seed=1).load(None)
        assert others.train.classes != splits.train.classes

    def test_one_csv_of_splits(self, tmp_path):
        rows = [
            (f"{part}{c}{i}.png", f"n{part}{c}", part) for part in ("train", "val", "test") for c in "ab" for i in "01"
        ]
        for n, (file, _, _) in enumerate(rows):
            paint(tmp_path / "images" / file, n)
        (tmp_path / "split.csv").write_text("\n".join(["filename,label,split", *(",".join(row) for row in rows)]))
        splits = ImageFolder(path=str(tmp_path), size=8, csv="split.csv", channels=1).load(None)
        assert [split.classes for split in splits] == [[f"n{part}a", f"n{part}b"] for part in ("train", "val", "test")]
        assert splits.train.images.shape == (4, 1, 8, 8)

    def test_pixels_are_those_of_the_file(self, tmp_path):
        self.folders(tmp_path, 3)
        red = Image.new("RGB", (30, 10), (255, 0, 0))
        red.paste((0, 0, 255), (10, 0, 20, 10))
        red.save(tmp_path / "class00" / "0.png")
        squashed, cropped = (
            next(
                s
                for s in ImageFolder(path=str(tmp_path), size=10, fit=fit, split="1:1:1").load(None)
                if s.classes == ["class00"]
            )
            for fit in ("squash", "crop")
        )
        assert squashed.images[0, :, 5, 0].tolist() == [255, 0, 0]
        assert squashed.images[0, :, 5, 5].tolist() == [0, 0, 255]
        assert cropped.images[0, 2, 5, 1:9].min() > 250, "the central square is blue"

    def test_changed_files_are_read_again(self, tmp_path):
        self.folders(tmp_path, 3)
        prints = []
        for _ in range(2):
            prints.append({s.fingerprint for s in ImageFolder(path=str(tmp_path), size=8, split="1:1:1").load(None)})
            paint(tmp_path / "class00" / "0.png", 999)
        assert len(prints[0] & prints[1]) == 2

    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("L", 77, (77, 77, 77)),
            ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
            ("P", 0, (0, 0, 0)),
            ("1", 1, (255, 255, 255)),
        ],
    )
    def test_every_kind_of_pixel_becomes_colour(self, tmp_path, mode, colour, expected):
        image = Image.new(mode, (2, 2), colour)
        if mode == "P":
            image.putpalette([0] * 768)
        image.save(tmp_path / "x.png")
        assert read_image((tmp_path / "x.png").read_bytes(), "x", "RGB").getpixel((1, 1)) == expected


class TestPickled:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("names", [CACHE, META, "{}.pkl"], ids=["mini-imagenet-cache", "MetaOptNet", "bare"])
    def test_each_class_has_its_images(self, tmp_path, names, protocol):
        contents = pickle_parts(tmp_path / "my", names, protocol)
        splits = Pickled(path="my").load(tmp_path)
        assert [len(split.classes) for split in splits] == [4, 2, 3]
        for split, (part, content) in zip(splits, contents.items(), strict=True):
            assert split.shape == (3, 8, 8)
            for place, name in enumerate(split.classes):
                if "class_dict" in content:
                    expected = content["image_data"][content["class_dict"][name]]
                else:
                    expected = content["data"][[str(label) == name for label in content["labels"]]]
                found = split.images[split.starts[place] : split.starts[place] + split.counts[place]]
                assert np.array_equal(found.numpy().transpose(0, 2, 3, 1), expected), part

    def test_keeps_the_contract_of_data_sets(self, tmp_path, registry):
        pickle_parts(tmp_path / "my", META)
        verify(Pickled(path="my"), registry=registry, data_root=tmp_path)

    def test_the_base_classes_of_metaoptnets_miniimagenet_are_the_train_split(self, tmp_path):
        names = "miniImageNet_category_split_{}.pickle"
        pickle_parts(tmp_path, names)
        (tmp_path / names.format("train")).rename(tmp_path / names.format("train_phase_train"))
        for part in ("val", "test"):
            again = pickled_part(9, list(range(4)), cache=False)
            (tmp_path / names.format(f"train_phase_{part}")).write_bytes(pickle.dumps(again))
        assert [series.name for series in find_series(tmp_path)] == ["miniImageNet_category_split"]
        splits = Pickled(path=str(tmp_path)).load(None)
        assert [split.classes for split in splits] == [list("0123"), list("45"), list("678")]

    def test_several_in_one_folder_are_chosen_by_name(self, tmp_path):
        pickle_parts(tmp_path, META)
        pickle_parts(tmp_path, "FC100_{}.pickle", shape=(4, 4, 1))
        assert Pickled(path=str(tmp_path), series="FC100").load(None).test.shape == (1, 4, 4)
        with pytest.raises(DataError, match=r"several data sets: .* series, of CIFAR_FS, FC100"):
            Pickled(path=str(tmp_path)).load(None)
        with pytest.raises(DataError, match="unknown series 'FC10'; there is: CIFAR_FS, FC100"):
            Pickled(path=str(tmp_path), series="FC10").load(None)

    def test_labels_may_be_an_array_or_names(self, tmp_path):
        for part, label in [("train", np.zeros(3, int)), ("val", np.array(["b"] * 3)), ("test", [b"c", "d", "d"])]:
            content = pickled_part(len(part), [0], cache=False, labels=label)
            (tmp_path / f"{part}.p").write_bytes(pickle.dumps(content))
        assert [split.classes for split in Pickled(path=str(tmp_path)).load(None)] == [["0"], ["b"], ["c", "d"]]

    def test_is_added_listed_and_loaded(self, tmp_path):
        pickle_parts(tmp_path / "mine", CACHE)
        row = add("mini", tmp_path / "mine", tmp_path / "root")
        assert (row.dataset, row.state) == ("pickled:path=mini", "needs options"), "2 classes for validation"
        pickle_parts(tmp_path / "root" / "mini", META)
        rows = [row for row in list_data(tmp_path / "root") if row.where.endswith("mini")]
        assert [row.dataset for row in rows] == [
            f"pickled:path=mini,series={name}" for name in ("CIFAR_FS", "mini-imagenet-cache")
        ]
        registry = load_registry(local=False)
        for row in rows:
            choice = parse_choice(row.dataset)
            registry.make("dataset", choice.name, dict(choice.options)).load(tmp_path / "root")


class TestToy:
    def test_labels_are_fair_coins_unrelated_to_the_features(self):
        """No feature correlates with y more than 50 random ones do (Bonferroni at 0.1 %)."""
        tasks = Toy().load(None).test.sample(range(400), 2, 5, 20)
        x, y = tasks.query.x.flatten(0, 1).double().numpy(), tasks.query.y.flatten().numpy()
        assert stats.binomtest(int(y.sum()), len(y)).pvalue > 1e-3
        assert min(stats.pearsonr(x[:, i], y).pvalue for i in range(50)) > 1e-3 / 50
        assert stats.kstest(x[:, 0], "uniform").pvalue > 1e-3
        ones = tasks.query.y.sum(1).numpy()
        assert ones.std() == pytest.approx(np.sqrt(40 / 4), rel=0.15), "each example has its own coin: no balance"

    def test_shapes_and_seeds(self):
        splits = Toy().load(None)
        one = splits.train.sample([5, 6], 2, 3, 4, tasks_per_seed=2)
        assert one.support.x.shape == (4, 6, 50)
        assert one.query.y.shape == (4, 8)
        assert one.support.x.dtype == torch.float32
        assert one.query.y.dtype == torch.int64
        assert torch.equal(one.query.x[2:], splits.train.sample([6], 2, 3, 4, 2).query.x)
        assert not torch.equal(one.query.x, splits.test.sample([5, 6], 2, 3, 4, 2).query.x)
        assert len({label for split in splits for label in split.classes}) == 6

    def test_declares_the_tutorials_setting(self):
        assert (Toy.loss, Toy.backbone, Toy.eps, Toy.way) == ("squared", "linear", {"linf": 0.001}, 2)
        with pytest.raises(DataError, match="--way 2"):
            Toy().load(None).train.check(5, 1, 1)


def test_an_archive_entry_is_found_without_its_outer_folder(tmp_path):
    """Zips made inside the folder have no images_background/ in front."""
    small_omniglot(tmp_path, packed=False)
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file in (tmp_path / name).rglob("*.png"):
                archive.write(file, file.relative_to(tmp_path / name))
        shutil.rmtree(tmp_path / name)
    with pytest.MonkeyPatch.context() as patch:
        pass_for_whole(patch)
        assert len(Omniglot().load(tmp_path).test.classes) == 2
