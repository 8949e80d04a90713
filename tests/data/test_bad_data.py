"""Data that nobody should trust: each defect is one message that says what was found and what to do."""

import hashlib
import http.server
import io
import pickle
import shutil
import stat
import struct
import threading
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import ValidationError

from robustbench_meta.cli.doctor import check_cache, check_data
from robustbench_meta.data import archives
from robustbench_meta.data.array_cache import cached
from robustbench_meta.data.image_decoding import read_image
from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.experiment import data_library
from robustbench_meta.experiment.data_library import add, download_omniglot, list_data
from robustbench_meta.plugins.datasets.image_folder import ImageFolder
from robustbench_meta.plugins.datasets.named import CLASSES
from robustbench_meta.plugins.datasets.omniglot import Omniglot
from robustbench_meta.plugins.datasets.pickled import Pickled
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.runtime.paths import data_root
from tests.helpers.miniature import META, paint, pass_for_whole, pickle_parts, pickled_part, small_omniglot


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROBUSTBENCH_META_DATA", str(tmp_path / "default"))


def refused(call, *words):
    """The call's DataError, which has these words in it."""
    with pytest.raises(DataError) as error:
        call()
    message = str(error.value)
    assert all(word in message for word in words), message
    return message


def png(width, height, data=b""):
    """A PNG that claims to have this size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def part(cache=False, **spoilt):
    """The content of a file with 3 classes of 3 images, in one of the layouts, but for what is given."""
    return pickled_part(0, [7, 8, 9], cache, **spoilt)


def link():
    entry = zipfile.ZipInfo("images/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


class TestArchives:
    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("../evil.png", ["'../evil.png'", "leads out"]),
            ("a/../../evil.png", ["leads out"]),
            ("/etc/evil.png", ["leads out"]),
            ("a\\..\\evil.png", ["leads out"]),
            ("C:evil.png", ["leads out"]),
            (link(), ["link"]),
            ("a.png:hidden", ["not every system", "'a.png:hidden'"]),
            ("aux/1.png", ["not every system", "'aux'"]),
            ("Com1.png", ["not every system"]),
            ("a./1.png", ["not every system", "'a.'"]),
            ("a\x1b[2J.png", [r"'a\x1b[2J.png'", "can be printed"]),
            ("GOOD.png", ["both 'good.png' and 'GOOD.png'"]),
            ("Good.PNG/1.png", ["both 'good.png' and 'Good.PNG'"]),
        ],
        ids=["parent", "parent inside", "absolute", "backslash", "drive", "symlink", "stream", "device",
             "device with a suffix", "dot", "escape sequence", "case", "case of a folder"],
    )  # fmt: skip
    def test_an_entry_that_would_leave_the_folder(self, tmp_path, entry, words):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("good.png", "x")
            archive.writestr(entry, "x")
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "x.zip", *words)
        assert not (tmp_path / "out").exists(), "something was unpacked before the check"

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            (archives.Limits(ratio=50), ["times its size", "at most 50"]),
            (archives.Limits(total=10**6), ["bytes", "at most 1000000"]),
            (archives.Limits(files=2), ["3 files", "at most 2"]),
        ],
        ids=["ratio", "size", "files"],
    )
    def test_a_bomb(self, tmp_path, limits, words):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in "abc":
                archive.writestr(name, bytes(4 * 10**6))
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out", limits), *words)
        assert not (tmp_path / "out").exists()

    def test_a_bomb_of_entries_that_overlap(self, tmp_path):
        """One packed file, named many times (Fifield 2019): each entry alone looks innocent."""
        kernel, data = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**20)
        packed = kernel.compress(data) + kernel.flush()
        local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 33, zlib.crc32(data), len(packed), len(data), 1, 0)
        central = b"".join(
            struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 8, 0, 33, zlib.crc32(data), len(packed), len(data),
                        3, 0, 0, 0, 0, 0, 0) + b"%03d" % i
            for i in range(300)
        )  # fmt: skip
        start = len(local) + 1 + len(packed)
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 300, 300, len(central), start, 0)
        (tmp_path / "x.zip").write_bytes(local + b"x" + packed + central + end)
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "times its size", "at most 200")

    def test_an_encrypted_one(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", b"1")
        content = bytearray((tmp_path / "x.zip").read_bytes())
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1
        (tmp_path / "x.zip").write_bytes(content)
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "encrypted ('a.png')")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_one_that_is_packed_in_a_way_that_has_no_bound(self, tmp_path, method):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
            archive.writestr("a.png", b"1")
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), f"method {method} ('a.png')", "deflate")

    def test_a_file_where_another_entry_has_a_folder(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a/b.png", b"1")
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "'a/b.png' where another")

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("n" * 300 + ".png", b"1")
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "cannot write", "File name too long")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", ["is empty"]),
            (b"<!DOCTYPE html><html>log in</html>", ["web page"]),
            (b"PK\x03\x04" + bytes(99), ["truncated zip of 103 bytes"]),
            (b"Rar!", ["not a zip"]),
        ],
        ids=["empty", "html", "truncated", "other"],
    )
    def test_no_zip_at_all(self, tmp_path, content, words):
        (tmp_path / "x.zip").write_bytes(content)
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "x.zip", *words)

    def test_a_flipped_bit_is_noticed(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", b"some content")
        (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(b"some content", b"sOme content"))
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "damaged", "CRC")

    def test_an_entry_twice(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", b"1")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a.png", b"2")
        refused(lambda: archives.extract(tmp_path / "x.zip", tmp_path / "out"), "'a.png' twice")


class TestOmniglot:
    @pytest.fixture
    def whole(self, tmp_path, monkeypatch):
        pass_for_whole(monkeypatch)
        small_omniglot(tmp_path / "omniglot", packed=False)
        return tmp_path / "omniglot"

    def test_nothing_there(self, tmp_path):
        refused(
            lambda: Omniglot().load(tmp_path / "nowhere"),
            "images_background.zip and images_evaluation.zip",
            "nowhere (no such folder)",
            "bench data download omniglot",
            "--data-root",
        )
        refused(lambda: Omniglot().load(None), str(tmp_path / "default"))

    def test_half_of_it(self, whole):
        shutil.rmtree(whole / "images_evaluation")
        message = refused(lambda: Omniglot().load(whole), "images_evaluation.zip", "bench data")
        assert "images_background" not in message

    def test_a_truncated_zip(self, whole):
        shutil.make_archive(str(whole / "images_background"), "zip", whole, "images_background")
        file = whole / "images_background.zip"
        file.write_bytes(file.read_bytes()[:-1000])
        refused(lambda: Omniglot().load(whole), "images_background.zip", "truncated", "again")

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda f: f.write_bytes(b"rubbish"), ["0000_03.png is not a readable image"]),
            (lambda f: f.write_bytes(f.read_bytes()[:60]), ["0000_03.png is not a readable image"]),
            (lambda f: f.write_bytes(png(9000, 9000)), ["0000_03.png has 9000×9000 pixels"]),
            (lambda f: f.unlink(), ["Armenian/character01 has 19 drawings", "has 20"]),
            (lambda f: shutil.rmtree(f.parent), ["6 characters", "has 7"]),
        ],
        ids=["no image", "cut image", "huge image", "a drawing less", "a character less"],
    )
    def test_damage_inside(self, whole, spoil, words):
        spoil(whole / "images_background" / "Armenian" / "character01" / "0000_03.png")
        refused(lambda: Omniglot().load(whole), "images_background", *words)

    def test_the_split_is_counted(self, tmp_path, monkeypatch):
        check = Omniglot._check
        pass_for_whole(monkeypatch)
        monkeypatch.setattr(Omniglot, "_check", check)
        small_omniglot(tmp_path, packed=False)
        refused(lambda: Omniglot().load(tmp_path), "'train': 2", "792")


class TestImageFolder:
    @pytest.fixture
    def root(self, tmp_path):
        for n, (part, label) in enumerate([("train", "a"), ("val", "b"), ("test", "c")]):
            for i in range(2):
                paint(tmp_path / "my" / part / label / f"{i}.png", (n, i))
        return tmp_path / "my"

    def load(self, root, **options):
        return ImageFolder(path=str(root), size=8, **options).load(None)

    def test_the_unspoilt_folder_loads(self, root):
        assert [split.classes for split in self.load(root)] == [["a"], ["b"], ["c"]]

    def test_no_path_and_no_folder(self, tmp_path):
        refused(lambda: ImageFolder().load(tmp_path), "image-folder:path=")
        refused(lambda: ImageFolder(path="nope").load(tmp_path), str(tmp_path / "nope"), "bench data list")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"rubbish", ["not a readable image"]),
            (b"", ["not a readable image"]),
            (png(60_000, 60_000), ["too large"]),
            (png(9_000, 9_000), ["9000×9000", "at most"]),
            (png(20, 20, b"short"), ["not a readable image"]),
        ],
        ids=["rubbish", "empty", "bomb", "large", "truncated"],
    )
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_a_bad_image_is_named(self, root, content, words):
        (root / "val" / "b" / "1.png").write_bytes(content)
        refused(lambda: self.load(root), str(root / "val" / "b" / "1.png"), *words)

    def test_a_file_that_is_too_large_is_not_read(self, root):
        with (root / "val" / "b" / "1.png").open("r+b") as file:
            file.truncate(2**40)
        refused(lambda: self.load(root), "1.png has 1099511627776 bytes", "at most 268435456")

    @pytest.mark.parametrize("form", ["GIF", "TIFF", "PDF", "ICO", "PCX", "TGA", "EPS"])
    def test_only_the_formats_that_are_named_are_decoded(self, root, form):
        """Each decoder more is one more that hostile files can be made for."""
        Image.new("RGB", (16, 16)).save(root / "val" / "b" / "1.png", form)
        refused(lambda: self.load(root), "1.png", "none of PNG, JPEG, BMP, WEBP, PPM")

    def test_text_in_an_image_that_unpacks_to_much(self, root):
        chunk = b"zTXt" + b"a\0\0" + zlib.compress(bytes(2**27))
        content = png(2, 2, bytes(14))
        content = (
            content[:33]
            + struct.pack(">I", len(chunk) - 4)
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            + content[33:]
        )
        (root / "val" / "b" / "1.png").write_bytes(content)
        refused(lambda: self.load(root), "1.png is not a readable image", "too large")

    def test_more_than_8_bits(self, root):
        Image.new("I;16", (5, 5), 40_000).save(root / "val" / "b" / "1.png")
        refused(lambda: self.load(root), "1.png", "8 bits")

    def test_the_same_class_in_two_splits(self, root):
        paint(root / "test" / "a" / "0.png", 77)
        refused(lambda: self.load(root), "class 'a' is both in train and in test")

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda root: shutil.rmtree(root / "val"), ["no val or valid or validation"]),
            (lambda root: shutil.copytree(root / "val", root / "validation"), ["val and validation"]),
            (lambda root: (root / "val" / "empty").mkdir(), ["empty", "holds no image"]),
            (lambda root: shutil.rmtree(root / "val" / "b"), ["validation has no class"]),
            (lambda root: shutil.rmtree(root / "train"), ["no train or training or base"]),
        ],
        ids=["no val", "val twice", "empty class", "empty split", "no train"],
    )
    def test_a_folder_in_disorder(self, root, spoil, words):
        spoil(root)
        refused(lambda: self.load(root), *words)

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            (b"name,label,split\n0.png,a,train\n", ["no column filename"]),
            (b"filename,label\n0.png,a\n", ["no column split"]),
            (b"filename,label,split\n0.png,a,holdout\n", ["line 2", "'holdout'", "expected train"]),
            (b"filename,label,split\n0.png,,train\n", ["line 2", "expected filename, label, split"]),
            (b"filename,label,split\n0.png,a\n", ["line 2"]),
            (b"filename,label,split\n../../secret.png,a,train\n", ["line 2", "leads out"]),
            (b"filename,label,split\n/etc/secret.png,a,train\n", ["leads out"]),
            (b"filename,label,split\ngone.png,a,train\n", ["1 files that are not there", "gone.png"]),
            (b"filename,label,split\n\xff\xfe,a,train\n", ["UTF-8"]),
            (b"", ["no column filename"]),
            (b"filename,label,split\n", ["train has no class"]),
        ],
        ids=[
            "filename",
            "split",
            "word",
            "empty cell",
            "short",
            "climbs",
            "absolute",
            "gone",
            "bytes",
            "empty",
            "no rows",
        ],
    )
    def test_a_bad_table(self, root, table, words):
        (root / "s.csv").write_bytes(table)
        refused(lambda: self.load(root, csv="s.csv"), *words)

    def test_a_table_that_is_not_there_or_not_inside(self, root):
        refused(lambda: self.load(root, csv="none.csv"), "none.csv")
        refused(lambda: self.load(root, csv="../s.csv"), "leads out")

    @pytest.mark.parametrize("split", ["64:16", "a:b:c", "0:1:1", "64/16/20"])
    def test_a_bad_option(self, split):
        with pytest.raises(ValidationError, match="64:16:20"):
            ImageFolder(split=split)
        with pytest.raises(BenchError, match=r"invalid split=.* of dataset 'image-folder'"):
            load_registry(local=False).make("dataset", "image-folder", {"split": split})


class TestPickled:
    @pytest.fixture
    def root(self, tmp_path):
        pickle_parts(tmp_path / "my", META)
        return tmp_path / "my"

    def load(self, root, **options):
        return Pickled(path=str(root), **options).load(None)

    def test_no_path_no_folder_no_pickles(self, tmp_path):
        refused(lambda: Pickled().load(tmp_path), "pickled:path=")
        refused(lambda: Pickled(path="nope").load(tmp_path), str(tmp_path / "nope"), "bench data list")
        refused(lambda: Pickled(path=str(tmp_path)).load(None), "no pickles", "mini-imagenet-cache-train.pkl")

    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda root: (root / META.format("val")).unlink(), ["no file of the split validation", "CIFAR_FS_test"]),
            (
                lambda root: shutil.copy(root / META.format("val"), root / "CIFAR_FS_valid.pkl"),
                ["two files", "valid.pkl"],
            ),
            (lambda root: shutil.copy(root / META.format("val"), root / META.format("test")), ["class '4' is both"]),
            (
                lambda root: pickle_parts(root, META, shape=(4, 4, 3)) and pickle_parts(root, "CIFAR_FS_{}.pkl"),
                ["two files"],
            ),
        ],
        ids=["no val", "val twice", "test is val", "twice"],
    )
    def test_a_folder_in_disorder(self, root, spoil, words):
        spoil(root)
        refused(lambda: self.load(root), *words)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ([1, 2], ["holds a list", "{data, labels}"]),
            ({"x": 1}, ["a dict of 'x'", "{image_data, class_dict}"]),
            ({"x\x1b[2J": 1}, [r"'x\x1b[2J'"]),
            ({"labels": [7] * 9}, ["a dict of"]),
            (part(data=[1]), ["data is a list", "expected uint8 [images, height, width, 3]"]),
            (part(data=np.zeros((9, 8, 8, 3), np.float32)), ["data is float32 [9, 8, 8, 3]", "expected uint8"]),
            (part(data=np.zeros((9, 3, 8, 8), np.uint8)), ["uint8 [9, 3, 8, 8]"]),
            (part(data=np.zeros((9, 8, 8), np.uint8)), ["uint8 [9, 8, 8]"]),
            (part(data=np.zeros((0, 8, 8, 3), np.uint8), labels=[]), ["uint8 [0, 8, 8, 3]"]),
            (part(data=np.zeros((9, 2, 8, 3), np.uint8)), ["2×8 pixels"]),
            (part(labels=[7] * 8), ["labels has 8 entries for 9 images"]),
            (part(labels=[7.5] * 9), ["labels is a list of 9", "whole numbers or names"]),
            (part(labels=np.zeros((9, 1), int)), ["labels is an array int64 [9, 1]"]),
            (part(labels=7), ["labels is a int"]),
            (part(labels=[7, "7", *[8] * 7]), ["a number and a name that are written alike"]),
            (part(labels=["a\nb"] * 9), [r"'a\nb'", "can be printed"]),
            (part(labels=["a" * 999] * 9), ["999 characters"]),
            (part(True, class_dict=[1]), ["class_dict is a list of 1"]),
            (part(True, class_dict={}), ["class_dict is a dict of 0"]),
            (part(True, class_dict={"a": []}), ["class_dict['a']", "not empty"]),
            (part(True, class_dict={"a": [0, 99]}), ["names image 99; there are 9"]),
            (part(True, class_dict={"a": [-1]}), ["names image -1"]),
            (part(True, class_dict={"a": [0, 1], "b": [1]}), ["names an image twice: 1"]),
            (part(True, class_dict={"a": [0], b"a": [1]}), ["two classes of one name"]),
            (part(True, class_dict={"a": [2**62]}), ["class_dict['a']"]),
            (part(data=np.zeros((9, 16, 16, 3), np.uint8)), ["different shapes", "3×16×16"]),
        ],
        ids=lambda value: "" if isinstance(value, list) and isinstance(value[0], str) else None,
    )
    def test_a_bad_file_is_named(self, root, content, words):
        (root / META.format("test")).write_bytes(pickle.dumps(content))
        message = refused(lambda: self.load(root), *words)
        assert str(root / META.format("test")) in message or "different shapes" in message or "class" in message
        assert message.isprintable()

    def test_what_would_be_executed_is_refused_by_name(self, root, tmp_path):
        (root / META.format("test")).write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
        refused(lambda: self.load(root), META.format("test"), "'os.system'", "a pickle can run programs")
        refused(lambda: add("mine", root, tmp_path / "root"), "was not added", "'os.system'")
        assert list((tmp_path / "root").iterdir()) == []

    def test_half_of_a_data_set_is_not_added_and_not_called_ready(self, root, tmp_path):
        (root / META.format("val")).unlink()
        refused(lambda: add("mine", root, tmp_path / "root"), "no file of the split validation")
        assert {row.dataset: row.state for row in list_data(tmp_path)}["pickled:path=my"] == "incomplete"
        (root / "CIFAR_FS_test.pkl").write_bytes(b"")
        assert {row.dataset: row.state for row in list_data(tmp_path)}["pickled:path=my"] == "damaged"


class TestDownload:
    @pytest.fixture
    def serve(self, monkeypatch):
        """A server on this machine that answers every request with one content."""
        servers = []

        def start(content, right=False, to=None):
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    self.send_response(302 if to else 200)
                    if to:
                        self.send_header("Location", to)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, *_):
                    pass

            if right:
                md5 = hashlib.md5(content).hexdigest()
                monkeypatch.setattr(data_library, "MD5", dict.fromkeys(data_library.MD5, md5))
            servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{servers[-1].server_port}/"

        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield start
        for server in servers:
            server.shutdown()
            server.server_close()

    def files(self, root):
        return sorted(path.name for path in root.rglob("*") if path.is_file())

    def test_both_archives_arrive_once(self, serve, tmp_path):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("a", "b")
        row = download_omniglot(tmp_path / "new", base_url=serve(content.getvalue(), right=True))
        assert row.state == "ready"
        assert self.files(tmp_path / "new") == ["images_background.zip", "images_evaluation.zip"]
        assert download_omniglot(tmp_path / "new", base_url="http://127.0.0.1:9/") == row, "fetched again"

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"<html>please log in", ["web page"]), (b"PK something else", ["not the official file", "MD5"])],
        ids=["html", "other"],
    )
    def test_another_content_leaves_nothing(self, serve, tmp_path, content, words):
        url = serve(content)
        refused(lambda: download_omniglot(tmp_path / "new", base_url=url), url, "by hand", *words)
        assert self.files(tmp_path / "new") == []

    def test_only_https_and_this_machine_are_asked(self, tmp_path):
        for url in ("http://example.org/", "ftp://example.org/", "file:///etc/"):
            refused(lambda url=url: download_omniglot(tmp_path, base_url=url), url, "not https", "by hand")
        assert self.files(tmp_path) == []

    @pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
    def test_a_redirect_to_another_scheme_is_not_followed(self, serve, tmp_path, place):
        url = serve(b"", to=place)
        refused(lambda: download_omniglot(tmp_path, base_url=url), "could not be downloaded", "by hand")
        assert self.files(tmp_path) == []

    def test_an_answer_by_http_to_a_question_by_https_is_refused(self):
        answer = types.SimpleNamespace(url="http://example.org/x.zip")
        refused(
            lambda: data_library._check_place(answer, "https://example.org/x.zip"),
            "redirects to http://example.org/x.zip",
        )
        answer.url = "https://elsewhere.org/x.zip"
        data_library._check_place(answer, "https://example.org/x.zip")

    def test_a_download_without_an_end_is_ended(self, serve, tmp_path, monkeypatch):
        monkeypatch.setattr(data_library, "MAX_DOWNLOAD", 10_000)
        url = serve(bytes(50_000), right=True)
        refused(lambda: download_omniglot(tmp_path, base_url=url), "more than 10000 bytes", "nothing was kept")
        assert self.files(tmp_path) == []

    def test_no_network(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        refused(
            lambda: download_omniglot(tmp_path, base_url="http://127.0.0.1:9/"), "could not be downloaded", "by hand"
        )
        assert self.files(tmp_path) == []

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        refused(lambda: download_omniglot(tmp_path / "file"), "file")

    def test_the_users_own_archive_is_not_overwritten(self, tmp_path):
        (tmp_path / "omniglot").mkdir()
        (tmp_path / "omniglot" / "images_background.zip").write_bytes(b"mine")
        refused(lambda: download_omniglot(tmp_path, base_url="http://127.0.0.1:9/"), "not the official file", "move it")
        assert (tmp_path / "omniglot" / "images_background.zip").read_bytes() == b"mine"


class TestAdd:
    @pytest.fixture
    def mine(self, tmp_path):
        for c in range(4):
            paint(tmp_path / "mine" / f"class{c}" / "0.png", c)
        return tmp_path / "mine"

    def rows(self, root):
        return {row.dataset: row.state for row in list_data(root) if row.dataset not in CLASSES}

    @pytest.mark.parametrize("form", ["folder", "zip", "wrapped zip"])
    def test_images_can_be_used_afterwards(self, tmp_path, mine, form):
        source = mine
        if form != "folder":
            inside = mine if form == "zip" else tmp_path
            name = shutil.make_archive(str(tmp_path / "packed"), "zip", inside, None if form == "zip" else "mine")
            source = tmp_path / name
        row = add("my-images", source, tmp_path / "root")
        assert row.dataset == "image-folder:path=my-images"
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["my-images"]
        splits = ImageFolder(path="my-images").load(tmp_path / "root")
        assert sorted(label for split in splits for label in split.classes) == [f"class{c}" for c in range(4)]
        assert self.rows(tmp_path / "root")["image-folder:path=my-images"] == "needs options", "4 classes, tasks have 5"

    @pytest.mark.parametrize("packed", [True, False], ids=["zips", "folders"])
    def test_omniglot(self, tmp_path, monkeypatch, packed):
        pass_for_whole(monkeypatch)
        small_omniglot(tmp_path / "downloads", packed)
        assert self.rows(tmp_path / "root")["omniglot"] == "missing"
        assert add("omniglot", tmp_path / "downloads", tmp_path / "root").state == "ready"
        assert len(Omniglot().load(tmp_path / "root").test.classes) == 2
        assert self.rows(tmp_path / "root") == {"glyphs": "built in", "toy": "built in", "omniglot": "ready"}

    def test_a_cut_archive_is_not_called_ready(self, tmp_path, monkeypatch):
        pass_for_whole(monkeypatch)
        small_omniglot(tmp_path / "omniglot", packed=True)
        assert self.rows(tmp_path)["omniglot"] == "ready"
        archive = tmp_path / "omniglot" / "images_background.zip"
        archive.write_bytes(archive.read_bytes()[:-200])
        assert self.rows(tmp_path)["omniglot"] == "damaged"

    def test_half_of_omniglot(self, tmp_path, monkeypatch):
        pass_for_whole(monkeypatch)
        small_omniglot(tmp_path / "downloads", packed=True)
        (tmp_path / "downloads" / "images_evaluation.zip").unlink()
        refused(lambda: add("omniglot", tmp_path / "downloads", tmp_path / "root"), "images_evaluation", "not added")
        assert list((tmp_path / "root").iterdir()) == []

    def test_what_does_not_load_leaves_nothing(self, tmp_path, mine):
        (mine / "class0" / "0.png").write_bytes(b"rubbish")
        message = refused(lambda: add("my", mine, tmp_path / "root"), "was not added", str(mine / "class0" / "0.png"))
        assert ".adding" not in message
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("../evil.png", "x")
        refused(lambda: add("my", tmp_path / "x.zip", tmp_path / "root"), "leads out")
        assert list((tmp_path / "root").iterdir()) == []
        assert not (tmp_path / "evil.png").exists()

    @pytest.mark.parametrize("name", ["glyphs", "../up", "", "a/b", ".hidden", "toy"])
    def test_a_bad_name(self, tmp_path, mine, name):
        refused(lambda: add(name, mine, tmp_path / "root"), f"named '{name}'")

    def test_what_is_in_the_way(self, tmp_path, mine):
        add("my", mine, tmp_path / "root")
        refused(lambda: add("my", mine, tmp_path / "root"), "exists", "remove it first")
        refused(lambda: add("my", tmp_path / "nowhere", tmp_path / "root"), "exists")
        refused(lambda: add("other", tmp_path / "nowhere", tmp_path / "root"), "there is no")
        (tmp_path / "file").write_text("")
        refused(lambda: add("other", mine, tmp_path / "file"), "cannot write", "--data-root")
        refused(lambda: add("other", tmp_path / "file", tmp_path / "root"), "is empty, not a zip")


SOUND = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


def with_exif(kind, exif):
    file = io.BytesIO()
    SOUND.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


@pytest.mark.parametrize("number", range(10))
def test_pictures_are_turned_as_their_exif_says(number):
    exif = Image.Exif()
    exif[0x0112] = number
    data = with_exif("PNG", exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(read_image(data, "f", "RGB"), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0" + struct.pack("<I", 5000), b"Exif\0\0garbage garbage",
     b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 65535),
     b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 2**31, 0) + b"\0\0\0\0"],
    ids=["header", "cut", "beyond the end", "not TIFF", "entries", "count"],
)  # fmt: skip
def test_damaged_exif_is_no_damaged_picture(kind, exif):
    data = with_exif(kind, exif)
    assert np.array_equal(read_image(data, "f", "RGB"), Image.open(io.BytesIO(data)).convert("RGB"))


class TestNobody:
    """A user without HOME and without an entry in the list of users, as containers and batch systems have."""

    @pytest.fixture(autouse=True)
    def _nobody(self, monkeypatch):
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "ROBUSTBENCH_META_CACHE", "ROBUSTBENCH_META_DATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])

    def test_what_would_be_kept_is_made_anew(self, caplog):
        arrays = {"a": np.arange(3)}
        assert cached("x", {}, lambda: arrays) is arrays
        assert "nothing is kept" in caplog.text
        assert "HOME" in caplog.text

    def test_data_that_would_be_there_are_refused_with_what_to_do(self):
        refused(lambda: data_root(None), "no home folder of yours", "HOME", "ROBUSTBENCH_META_DATA")
        refused(lambda: list_data(None), "no home folder of yours")
        assert [finding.state for finding in (*check_data(None), *check_cache())] == ["note", "note"]


def test_the_data_root(tmp_path, monkeypatch):
    assert data_root(tmp_path) == tmp_path
    assert data_root(None) == tmp_path / "default"
    monkeypatch.delenv("ROBUSTBENCH_META_DATA")
    assert "robustbench_meta" in data_root(None).parts
