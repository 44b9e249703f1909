"""Listings beside the runs: found again only while the files are the same."""

import os
import threading

import packing
import pytest
import torch
from test_packed import folder, pack

from raybust.config.inputs import Data
from raybust.data import kept, load
from raybust.data import listing as listings


@pytest.fixture
def out(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def scans(monkeypatch):
    """Folders that were listed, one by one."""
    seen = []
    real = os.scandir

    def scandir(path):
        seen.append(str(path))
        return real(path)

    monkeypatch.setattr(listings.os, "scandir", scandir)
    return seen


def age(root, seconds=60):
    """Makes folders and files as old as those that people have."""
    for place, _, files in os.walk(root):
        for path in (place, *(os.path.join(place, name) for name in files)):
            past = os.stat(path).st_mtime - seconds
            os.utime(path, (past, past))


def read(root, out):
    return load(Data(name="image_folder", path=str(root), image_size=8, validation=0.25), out)


def same(one, other):
    assert (one.digest, one.notes, one.classes) == (other.digest, other.notes, other.classes)
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.files == theirs.files
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.labels.dtype == torch.int64


@pytest.mark.parametrize("parts", [("test",), ("val", "test")])
def test_a_folder_is_listed_once(tmp_path, out, scans, parts):
    root = folder(tmp_path / "folder", (("train", 6), *((part, 2) for part in parts)))
    (root / "train" / "ape" / "notes.txt").write_text("not an image")
    (root / "train" / "ape" / "déjà vu.png").write_bytes(next(root.glob("test/*/*")).read_bytes())
    os.rename(root / "train" / "ape" / "0.png", os.fsencode(root / "train" / "ape") + b"/\xe9.png")
    age(root)
    alone = read(root, None)
    scans.clear()
    first = read(root, out)
    assert len(scans) == 3 * (1 + len(parts))
    scans.clear()
    again = read(root, out)
    assert scans == []
    same(first, alone)
    same(again, alone)
    assert "left out: 1 files .txt" in again.notes


CHANGES = {
    "another image": lambda root: packing.Path(root / "train" / "bee" / "new.png").write_bytes(
        (root / "train" / "bee" / "0.png").read_bytes()
    ),
    "an image less": lambda root: (root / "train" / "bee" / "0.png").unlink(),
    "a folder below": lambda root: (root / "test" / "cow" / "more").mkdir(),
    "a class renamed": lambda root: [
        (root / part / "cow").rename(root / part / "cat") for part in ("train", "test")
    ],
    "another part": lambda root: [(root / "val" / kind).mkdir(parents=True) or (
        root / "val" / kind / "0.png"
    ).write_bytes((root / "test" / kind / "0.png").read_bytes()) for kind in ("ape", "bee", "cow")],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_listed_anew(tmp_path, out, change):
    root = folder(tmp_path / "folder")
    age(root)
    read(root, out)
    CHANGES[change](root)
    same(read(root, out), read(root, None))
    age(root)
    same(read(root, out), read(root, None))


def test_what_changed_a_moment_ago_is_not_kept(tmp_path, out, scans):
    """A second change within the resolution of the times could not be told from the first."""
    root = folder(tmp_path / "folder")
    read(root, out)
    scans.clear()
    read(root, out)
    assert len(scans) == 6


def test_nothing_is_written_before_there_are_runs(tmp_path):
    root = folder(tmp_path / "folder")
    age(root)
    read(root, tmp_path / "absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


@pytest.mark.parametrize("content", [b"", b"PAR1" * 9, None])
def test_a_torn_listing_is_made_again(tmp_path, out, content):
    root = folder(tmp_path / "folder")
    age(root)
    read(root, out)
    (kept_file,) = (out / kept.FOLDER).glob("*.parquet")
    kept_file.write_bytes(kept_file.read_bytes()[:-20] if content is None else content)
    same(read(root, out), read(root, None))


def test_several_at_once_list_it_once(tmp_path, out, scans):
    root = folder(tmp_path / "folder")
    age(root)
    scans.clear()
    found = []
    ranks = [threading.Thread(target=lambda: found.append(read(root, out))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(scans) == 6
    for one in found:
        same(one, found[0])


def test_the_annotations_of_tiny_imagenet_are_part_of_it(tmp_path, out):
    root = folder(tmp_path / "folder", (("train", 6),))
    (root / "val" / "images").mkdir(parents=True)
    for number in range(2):
        content = (root / "train" / "ape" / f"{number}.png").read_bytes()
        (root / "val" / "images" / f"{number}.png").write_bytes(content)
    rows = root / "val" / "val_annotations.txt"
    rows.write_text("0.png\tape\n1.png\tbee\n")
    age(root)
    assert read(root, out).test.labels.tolist() == [0, 1]
    rows.write_text("0.png\tcow\n1.png\tbee\n")
    assert read(root, out).test.labels.tolist() == [2, 1]


def test_tar_shards_are_indexed_once(tmp_path, out, monkeypatch):
    home = pack("webdataset", folder(tmp_path / "folder"), tmp_path / "packed")
    age(home)
    config = Data(name="webdataset", path=str(home), image_size=8, validation=0.25)
    first = load(config, out)
    opened = packing.tarfile.open
    monkeypatch.setattr(packing.tarfile, "open", None)
    again = load(config, out)
    assert (again.digest, again.notes) == (first.digest, first.notes)
    assert again.test.named(5) == first.test.named(5)
    monkeypatch.setattr(packing.tarfile, "open", opened)
    pack("webdataset", folder(tmp_path / "other", (("train", 9), ("test", 5))), home)
    assert len(load(config, out).test) == 15
