"""Data that nobody should trust: each defect is one message that says what was found and what to do."""

import hashlib
import http.server
import io
import shutil
import stat
import struct
import threading
import zipfile
import zlib

import pytest
from PIL import Image
from pydantic import ValidationError

from robustbench_meta.data import add, archives, data_root, download_omniglot, library, list_data
from robustbench_meta.errors import BenchError, DataError
from robustbench_meta.plugins.datasets.image_folder import ImageFolder
from robustbench_meta.plugins.datasets.omniglot import Omniglot
from robustbench_meta.registry import load_registry
from tests.miniature import paint, pass_for_whole, small_omniglot


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
        ],
        ids=["parent", "parent inside", "absolute", "backslash", "drive", "symlink"],
    )
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

    def test_more_than_8_bits(self, root):
        Image.new("I;16", (5, 5), 40_000).save(root / "val" / "b" / "1.png")
        refused(lambda: self.load(root), "1.png", "8 bits")

    def test_the_same_image_in_two_splits(self, root):
        shutil.copy(root / "train" / "a" / "0.png", root / "test" / "c" / "9.png")
        refused(lambda: self.load(root), "0.png (train", "9.png (test", "same image")

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
            (lambda root: shutil.rmtree(root / "train"), ["2 classes", "at least 3"]),
        ],
        ids=["no val", "val twice", "empty class", "empty split", "too few classes"],
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
        with pytest.raises(BenchError, match=r"option 'split' of dataset 'image-folder' was given"):
            load_registry(local=False).make("dataset", "image-folder", {"split": split})


class TestDownload:
    @pytest.fixture
    def serve(self, monkeypatch):
        """A server on this machine that answers every request with one content."""
        servers = []

        def start(content, right=False):
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

                def log_message(self, *_):
                    pass

            if right:
                md5 = hashlib.md5(content).hexdigest()
                monkeypatch.setattr(library, "MD5", dict.fromkeys(library.MD5, md5))
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
        return {row.dataset: row.state for row in list_data(root)}

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
        assert self.rows(tmp_path / "root")["image-folder:path=my-images"] == "ready"

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
        refused(lambda: add("other", mine, tmp_path / "file"), "cannot be written", "--data-root")
        refused(lambda: add("other", tmp_path / "file", tmp_path / "root"), "is empty, not a zip")


def test_the_data_root(tmp_path, monkeypatch):
    assert data_root(tmp_path) == tmp_path
    assert data_root(None) == tmp_path / "default"
    monkeypatch.delenv("ROBUSTBENCH_META_DATA")
    assert "robustbench_meta" in data_root(None).parts
