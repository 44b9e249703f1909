"""Parquet files and tar shards hold the same data set as the folder they were packed from."""

import gzip
import json
import os
import time

import fsspec
import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_decode import FORMS

from raybust import config as configuration
from raybust import methods
from raybust.config.inputs import Data
from raybust.data import Batches, load
from raybust.data.batches import windowed
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.training.fit import fit

SIZE = 8


def folder(root, counts=(("train", 9), ("test", 4)), classes=("ape", "bee", "cow")):
    draw = np.random.default_rng(0)
    for part, count in counts:
        for kind in classes:
            (root / part / kind).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (12, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / kind / f"{number}.png")
    return root


def pack(form, source, target, parts=("train", "test"), **options):
    """Packs a folder; FORM is the name of the data set, or "bytes" for parquet of bare bytes."""
    for part in parts:
        rows = packing.members(source, part)
        if form == "webdataset":
            packing.as_tar(rows, target / part, shards=2, **options)
        else:
            kind = "bytes" if form == "bytes" else "struct"
            packing.as_parquet(rows, target / part, files=2, cell=kind, **options)
    return target


def read(form, path, **options):
    name = "parquet" if form == "bytes" else form
    given = {"name": name, "path": path and str(path), "image_size": SIZE, "validation": 0.25}
    return load(Data(**{**given, **options}))


def everything(part):
    return part.fetch(range(len(part)))


FORMS_OF_SHARDS = ("parquet", "bytes", "webdataset")


@pytest.mark.parametrize("form", FORMS_OF_SHARDS)
def test_shards_are_the_folder_they_were_packed_from(tmp_path, form):
    source = folder(tmp_path / "folder")
    ours = read(form, pack(form, source, tmp_path / "packed"))
    theirs = read("image_folder", source)
    assert ours.classes == theirs.classes
    assert (ours.shape, ours.mean, ours.augment) == (theirs.shape, theirs.mean, theirs.augment)
    for name in ("train", "validation", "test"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(one.indices, other.indices)
        for mine, his in zip(everything(one), everything(other), strict=True):
            assert torch.equal(mine, his)
        at = list(range(len(one)))[::-1]
        assert (one.content(at), one.labeling(at)) == (other.content(at), other.labeling(at))


@pytest.mark.parametrize("form", FORMS_OF_SHARDS)
def test_images_decode_as_in_a_folder(tmp_path, form):
    """Modes, bit depths, transparency and EXIF; the lines about them too."""
    for part in ("train", "test"):
        for kind in ("ape", "bee"):
            (tmp_path / "folder" / part / kind).mkdir(parents=True)
            for name, (image, _) in FORMS.items():
                image.save(tmp_path / "folder" / part / kind / name)
            exif = Image.Exif()
            exif[0x0112] = 6
            turned = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
            turned.save(tmp_path / "folder" / part / kind / "turned.jpg", exif=exif)
    ours = read(form, pack(form, tmp_path / "folder", tmp_path / "packed"))
    theirs = read("image_folder", tmp_path / "folder")
    assert torch.equal(everything(ours.test)[0], everything(theirs.test)[0])
    assert torch.equal(everything(ours.train)[0], everything(theirs.train)[0])
    traits = [note for note in theirs.notes if "files looked at" in note]
    assert len(traits) > 4
    assert set(traits) <= set(ours.notes)


def test_an_epoch_of_tar_shards_is_that_of_the_folder(tmp_path):
    source = folder(tmp_path / "folder")
    ours = read("webdataset", pack("webdataset", source, tmp_path / "packed")).train
    theirs = read("image_folder", source).train
    made = [Batches(part, batch_size=4, device="cpu", seed=3, augment="crop_flip", loader_workers=n)
            for part, n in ((ours, 2), (theirs, 0))]  # fmt: skip
    for mine, his in zip(made[0].epoch(1), made[1].epoch(1), strict=True):
        assert torch.equal(mine[0], his[0])
        assert torch.equal(mine[1], his[1])


@pytest.mark.parametrize("form", FORMS_OF_SHARDS)
def test_ranks_see_disjoint_images_that_together_are_the_epoch(tmp_path, form):
    source = folder(tmp_path / "folder", (("train", 12), ("test", 4)))
    part = read(form, pack(form, source, tmp_path / "packed")).train
    known = {image.numpy().tobytes() for image in everything(part)[0]}

    def epoch(number, world, workers):
        seen = []
        for rank in range(world):
            batches = Batches(part, batch_size=6, device="cpu", seed=1, rank=rank, world=world,
                              loader_workers=workers)  # fmt: skip
            seen.append([image.numpy().tobytes() for batch, _ in batches.epoch(number)
                         for image in batch])  # fmt: skip
        return seen

    (alone,) = epoch(0, 1, 0)
    both = epoch(0, 2, 1)
    assert not set(both[0]) & set(both[1])
    assert set(both[0]) | set(both[1]) == set(alone)
    assert set(alone) <= known
    assert len(alone) == len(part) // 6 * 6 == len(set(alone))
    (later,) = epoch(1, 1, 0)
    assert later != alone
    assert later == epoch(1, 1, 2)[0]


@pytest.mark.parametrize("form", ["image_folder", "parquet", "webdataset"])
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path, form):
    source = folder(tmp_path / "folder")
    home = source if form == "image_folder" else pack(form, source, tmp_path / "packed")
    settings = [
        f"data.name={form}", f"data.path={home}", "data.image_size=8", "data.augment=crop_flip",
        "data.loader_workers=2", "model.width=4", "train.batch_size=4", "train.epochs=3",
        "certified_fast.examples=2", "certified_fast.n=100",
    ]  # fmt: skip
    config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)

    def run(name, resume=None, last=3):
        for progress in fit(config, load(config.data), torch.device("cpu"), resume):
            target = tmp_path / f"{name}-{progress.epoch}"
            target.mkdir()
            progress.save(target)
            if progress.epoch == last:
                break
        return target

    whole = run("whole")
    resumed = run("parts", resume=run("parts", last=1))
    ours, theirs = checkpoint.read_weights(whole), checkpoint.read_weights(resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_window_holds_the_images_of_its_blocks():
    blocks = torch.arange(10).repeat_interleave(7)[torch.randperm(70)]
    order = windowed(blocks, 3, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(70))
    windows = [set(part.tolist()) for part in blocks[order].split(21)]
    assert [len(window) for window in windows] == [3, 3, 3, 1]
    assert set.union(*windows) == set(range(10))
    assert len(set(blocks[order][:21].tolist()[:7])) > 1


def test_one_window_of_all_blocks_is_a_uniform_permutation():
    """Every image is at every place equally often: chi-squared over 4 x 4 cells, 9 degrees of
    freedom, of which 27.9 is exceeded once in a thousand."""
    counts = torch.zeros(4, 4)
    for seed in range(4000):
        order = windowed(torch.tensor([0, 0, 1, 1]), 2, torch.Generator().manual_seed(seed))
        counts[torch.arange(4), order] += 1
    assert ((counts - 1000).square() / 1000).sum() < 27.9


ARRAYS = {
    "bytes": (np.uint8, 255, lambda x: x),
    "floats": (np.float32, 1, lambda x: x.astype(np.float32) / 255),
    "gray": (np.uint8, 255, lambda x: x[..., 0]),
    "planes": (np.uint8, 255, lambda x: x.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_are_images(tmp_path, form):
    kind, _, convert = ARRAYS[form]
    pixels = np.random.default_rng(0).integers(0, 255, (6, SIZE, SIZE, 3), dtype=np.uint8)
    arrays = convert(pixels)
    column = pa.array(arrays.tolist())
    leaf = pa.from_numpy_dtype(kind)
    for _ in range(arrays.ndim - 1):
        leaf = pa.list_(leaf)
    table = pa.table({"image": column.cast(leaf), "label": [0, 1] * 3})
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    images, _ = everything(read("parquet", tmp_path).test)
    expected = pixels[..., :1].repeat(3, 3) if form == "gray" else pixels
    assert torch.equal(images, torch.from_numpy(expected).permute(0, 3, 1, 2) / 255)


def test_names_of_the_classes_come_from_the_hub_s_metadata(tmp_path):
    rows = packing.members(folder(tmp_path / "folder"), "train")
    names = ["cow", "bee", "ape"]
    told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for part in ("train", "test"):
        table = pa.table({"image": [row[1] for row in rows],
                          "label": [names.index(row[2]) for row in rows]})  # fmt: skip
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    data = read("parquet", tmp_path)
    assert data.classes == tuple(names)
    assert data.test.labels.tolist() == [2] * 9 + [1] * 9 + [0] * 9


def test_columns_of_other_names(tmp_path):
    rows = packing.members(folder(tmp_path / "folder"), "train")
    for part in ("train", "test"):
        table = pa.table({"img": [row[1] for row in rows], "fine": [row[2] for row in rows]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    with pytest.raises(RequestError, match=r"lacks the column image and label; it has img, fine"):
        read("parquet", tmp_path)
    assert read("parquet", tmp_path, columns=("img", "fine")).classes == ("ape", "bee", "cow")


def test_a_json_file_holds_the_label_too(tmp_path):
    source = folder(tmp_path / "folder")
    ours = read("webdataset", pack("webdataset", source, tmp_path / "packed", label_in="json"))
    assert ours.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


# Splits


def test_parts_are_found_by_name_or_by_pattern(tmp_path):
    counts = (("train", 8), ("validation", 3), ("test", 4))
    home = pack("webdataset", folder(tmp_path / "folder", counts), tmp_path / "imagenet-train",
                [part for part, _ in counts])  # fmt: skip
    data = read("webdataset", home)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 9, 12]
    assert "2 train and 2 validation and 2 test files" in data.notes[0]
    validation = everything(data.validation)[0]
    (home / "validation-000.tar").rename(home / "dev0.tar")
    (home / "validation-001.tar").rename(home / "dev1.tar")
    with pytest.raises(RequestError, match=r"dev0\.tar' has no part in its name"):
        read("webdataset", home)
    named = {"train": "train-*.tar", "test": "test-00[01].tar", "validation": "dev{0..1}.tar"}
    same = read("webdataset", home, **named)
    assert torch.equal(everything(same.validation)[0], validation)
    away = {key: str(home / value) for key, value in named.items()}
    assert read("webdataset", None, **away).digest == same.digest
    with pytest.raises(RequestError, match=r"data\.test: .*test-000\.tar' is also among the files"):
        read("webdataset", home, **{**named, "train": "t*.tar"})


def test_without_a_test_part_the_validation_files_are_the_test_set(tmp_path):
    source = folder(tmp_path / "folder", (("train", 8), ("val", 3)))
    data = read("parquet", pack("parquet", source, tmp_path / "packed", ["train", "val"]))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 6, 9]


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_test_part_without_labels_is_left_aside(tmp_path, form):
    """As hubs publish ImageNet: every label of the test part is -1, or there are none."""
    source = folder(tmp_path / "folder", (("train", 8), ("val", 3), ("test", 4)))
    home = pack(form, source, tmp_path / "packed", ["train", "val"])
    numbers = {"ape": 0, "bee": 1, "cow": 2}
    blank = -1 if form == "parquet" else None
    for part in ("train", "val", "test"):
        rows = [(name, content, blank if part == "test" else numbers[label])
                for name, content, label in packing.members(source, part)]  # fmt: skip
        packer = packing.as_parquet if form == "parquet" else packing.as_tar
        packer(rows, home / part, 2)
    data = read(form, home)
    assert len(data.test) == 9
    assert "left out: the test files, whose images have no labels" in data.notes


def test_a_fixed_cut_is_the_test_set_whatever_the_seeds(tmp_path):
    home = pack("parquet", folder(tmp_path / "folder"), tmp_path / "packed", ["train"])
    with pytest.raises(RequestError, match=r"2 files for training and none for testing; .*=0\.2"):
        read("parquet", home)
    data, other = (read("parquet", home, test=0.3, split_seed=seed) for seed in (0, 1))
    assert torch.equal(data.test.indices, other.test.indices)
    assert sorted(data.test.labels.bincount().tolist()) == [2, 3, 3]
    assert not torch.equal(data.validation.indices, other.validation.indices)
    for found in (data, other):
        every = torch.cat([found.train.indices, found.validation.indices, found.test.indices])
        assert sorted(every.tolist()) == list(range(27))
    assert len(read("parquet", next(home.iterdir()), test=0.3).test) == 4


def test_row_groups_of_one_class_are_told(tmp_path):
    source = folder(tmp_path / "folder", (("train", 9), ("test", 9)))
    told = "a row group holds 1.0 classes, 2.9 if they were mixed"
    home = pack("parquet", source, tmp_path / "packed", group=9)
    for part in ("train", "test"):
        (home / f"{part}-00001.parquet").unlink()
        packing.as_parquet(packing.members(source, part), home / part, group=9)
    assert told in " ".join(read("parquet", home).notes)
    for part in ("train", "test"):
        rows = packing.members(source, part)
        mixed = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
        packing.as_parquet(mixed, home / part, group=9)
    assert told[:20] not in " ".join(read("parquet", home).notes)


# Unreadable images


def broken(root, files):
    for file in files:
        path = root / "train" / file
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("form", ["image_folder", "parquet", "webdataset"])
@pytest.mark.parametrize("workers", [0, 2])
def test_few_unreadable_images_are_counted_and_replaced(tmp_path, form, workers):
    source = folder(tmp_path / "folder", (("train", 12), ("test", 4)))
    whole = {image.numpy().tobytes() for image in everything(read("image_folder", source).train)[0]}
    broken(source, ["ape/0.png", "bee/3.png", "cow/7.png"])
    home = source if form == "image_folder" else pack(form, source, tmp_path / "packed")
    part = read(form, home, split_seed=0).train
    lost = 0
    for position in range(len(part)):
        try:
            part.picture(position)
        except RequestError:
            lost += 1
    assert lost > 0

    def made(bad, world=1, rank=0):
        return Batches(part, batch_size=len(part) // 6 * 6, device="cpu", seed=0, bad=bad,
                       loader_workers=workers, world=world, rank=rank)  # fmt: skip

    batches = made(lost / len(part))
    for epoch in range(2):
        ((images, labels),) = batches.epoch(epoch)
        assert len(images) == len(labels) == len(part) // 6 * 6
        seen = [image.numpy().tobytes() for image in images]
        assert set(seen) <= whole
        assert len(set(seen)) == len(seen) - batches.facts()["train/unreadable"][0]
    ranks = [made(lost / len(part), 2, rank) for rank in range(2)]
    for rank in ranks:
        list(rank.epoch(0))
    sums = [rank.facts()["train/unreadable"] for rank in ranks]
    assert sum(one for one, _ in sums) / sum(count for _, count in sums) == lost
    with pytest.raises(RequestError, match=r"cannot be read as an image .*replace or remove it$"):
        list(made(0.0).epoch(0))
    if lost > 1:
        with pytest.raises(RequestError, match=rf"{lost} of this epoch, and data\.bad allows 1"):
            list(made(1 / len(part)).epoch(0))


def test_a_batch_without_a_readable_image_is_an_error(tmp_path):
    source = folder(tmp_path / "folder")
    broken(
        source, [f"{kind}/{number}.png" for kind in ("ape", "bee", "cow") for number in range(9)]
    )
    batches = Batches(
        read("image_folder", source).train, batch_size=4, device="cpu", seed=0, bad=0.9
    )
    with pytest.raises(RequestError, match="cannot be read as an image"):
        next(batches.epoch(0))


def test_waiting_for_images_is_measured(tmp_path, monkeypatch):
    part = read("image_folder", folder(tmp_path / "folder")).train
    decode = type(part).decode
    monkeypatch.setattr(type(part), "decode", lambda *a: time.sleep(0.01) or decode(*a))
    batches = Batches(part, batch_size=4, device="cpu", seed=0)
    for _ in batches.epoch(0):
        time.sleep(0.05)  # the loop's own work
    assert 0.01 * 4 * batches.steps <= batches.facts()["train/waited"][0]
    assert batches.facts()["train/waited"][1] == 1


# What changes


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_the_digest_follows_images_labels_and_cut(tmp_path, form):
    source = folder(tmp_path / "folder")
    home = pack(form, source, tmp_path / "packed")
    digest = read(form, home).digest
    assert digest == read(form, home).digest
    assert digest == read(form, home.rename(tmp_path / "moved")).digest
    assert digest != read(form, tmp_path / "moved", split_seed=1).digest
    first = next((source / "test" / "cow").iterdir())
    Image.open(first).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first)
    assert digest != read(form, pack(form, source, tmp_path / "moved")).digest


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
@pytest.mark.parametrize("change", ["rewritten", "replaced", "cut", "gone"])
def test_a_shard_that_changes_while_it_is_read_is_an_error(tmp_path, form, change):
    home = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    part = read(form, home).test
    part.fetch([0])
    path = sorted(home.glob("test*"))[0]
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    elif change == "replaced":
        path.unlink()
        path.write_bytes(content[::-1])
    else:
        path.write_bytes(content[: len(content) // 2] if change == "cut" else content)
        later = time.time() + 10
        os.utime(path, (later, later))
    expected = "No such file" if change == "gone" else "has changed since it was listed"
    with pytest.raises(RequestError, match=rf"{path.name}: .*{expected}"):
        part.fetch(range(len(part)))


# Bad input


def test_an_unreadable_image_is_named(tmp_path):
    source = folder(tmp_path / "folder")
    (source / "test" / "bee" / "1.png").write_bytes(b"no image")
    ours = read("webdataset", pack("webdataset", source, tmp_path / "tar"))
    with pytest.raises(RequestError, match=r"test-000\.tar: 000005\.png: cannot be read as an im"):
        ours.test.fetch(range(6))
    ours = read("parquet", pack("parquet", source, tmp_path / "parquet"))
    with pytest.raises(RequestError, match=r"test-00000\.parquet: row 5: cannot be read as an im"):
        ours.test.fetch(range(6))


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
@pytest.mark.parametrize("fault", ["empty", "garbage", "half", "compressed"])
def test_a_damaged_shard_is_named(tmp_path, form, fault):
    home = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    path = sorted(home.glob("train*"))[1]
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"x" * 5000, "half": content[: len(content) // 2],
                      "compressed": gzip.compress(content)}[fault])  # fmt: skip
    with pytest.raises(RequestError, match=rf"{path.name}: cannot be read as a (tar|parquet) file"):
        read(form, home)


def test_bad_tables(tmp_path):
    rows = packing.members(folder(tmp_path / "folder"), "train")
    images, labels = [row[1] for row in rows], [row[2] for row in rows]

    def refused(told, **columns):
        for part in ("train", "test"):
            pq.write_table(pa.table(columns), tmp_path / f"{part}.parquet")
        with pytest.raises(RequestError, match=told) as caught:
            everything(read("parquet", tmp_path).test)
        assert "\n" not in str(caught.value)

    refused("the column image is string, expected bytes", image=["x"] * 27, label=labels)
    refused(r"the column image is struct<path: string>", image=[{"path": "x"}] * 27, label=labels)
    refused("the column label is double, expected", image=images, label=[0.5] * 27)
    refused(r"data\.train: 1 of 27 images have no label, the first is .*train\.parquet: row 26",
            image=images, label=[*labels[:-1], None])  # fmt: skip
    refused(r"train\.parquet: row 3: has no image in the column image",
            image=[*images[:3], None, *images[4:]], label=labels)  # fmt: skip
    refused(r"labels of train: got labels from 1 to 3", image=images, label=[1, 2, 3] * 9)
    refused("row 0: got int64, expected uint8", image=[[[1000] * 8] * 8] * 27, label=labels)
    refused("row 0: has rows of different lengths", image=[[[0.5], [0.5, 0.5]]] * 27, label=labels)


def test_bad_shards(tmp_path):
    content = packing.members(folder(tmp_path / "folder"), "train")[0][1]

    def refused(told, *members):
        for part in ("train", "test"):
            with packing.tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
                for name, what in members:
                    packing.add(archive, name, what)
        with pytest.raises(RequestError, match=told) as caught:
            read("webdataset", tmp_path)
        assert "\n" not in str(caught.value)

    refused(r"train\.tar: has no images; expected members", ("0.txt", b"x"), ("1.cls", b"1"))
    refused(r"two images of one key, '0\.png' and '0\.jpg'", ("0.png", content), ("0.jpg", content))
    refused(r"0\.cls: is not readable", ("0.png", content), ("0.cls", b"\xff"))
    refused(r"0\.json: is not readable", ("0.png", content), ("0.json", b"{"))
    refused(r"0\.json: has the label \[1\]", ("0.png", content), ("0.json", b'{"label": [1]}'))
    refused(r"1 of 2 images have no label, the first is .*train\.tar: a/1\.png",
            ("a/0.png", content), ("a/0.cls", b"0"), ("a/1.png", content))  # fmt: skip
    refused("labels of several types: int, str", ("0.png", content), ("0.cls", b"0"),
            ("1.png", content), ("1.cls", b"ape"))  # fmt: skip


def test_what_a_shard_holds_besides_is_counted(tmp_path):
    source = folder(tmp_path / "folder")
    home = pack("webdataset", source, tmp_path / "packed")
    with packing.tarfile.open(home / "test-000.tar", "a") as archive:
        packing.add(archive, "000000.txt", b"a caption")
        packing.add(archive, "._000001.png", b"x")
        packing.add(archive, "lonely.cls", b"0")
    notes = read("webdataset", home).notes
    for told in ("1 files .txt", "1 hidden or system files", "1 labels without an image"):
        assert f"test: left out: {told}" in notes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"path": None}, r"data\.path: got null, expected files"),
        ({"path": "absent"}, r"data\.path: there is no file or folder '.*absent'"),
        ({"path": "absent*.parquet"}, r"data\.path: no file matches"),
        ({"path": "empty"}, r"data\.path: '.*empty' has no files \.parquet or \.pq"),
        ({"train": "train{3..1}.parquet"}, r"data\.train: got \{3\.\.1\}, expected \{FIRST\.\.LAS"),
        ({"test": "test*"}, r"data\.train: got null with data\.test set"),
        ({"test": 0.5}, r"data\.test: got 0\.5, but there are test files"),
        ({"name": "digits", "path": None, "train": "x"}, r"data\.train: got 'x', but dataset digi"),
        ({"name": "digits", "path": None, "test": 0.5}, r"data\.test: got 0\.5, but dataset digi"),
        ({"name": "digits", "path": None, "validation": "x"}, r"data\.validation: .*a number > 0"),
        ({"columns": ("image",)}, r"columns: got \['image'\], expected \[IMAGE, LABEL\]"),
        ({"path": "nosuch://x/y"}, r"nosuch://: .*"),
        ({"path": "http://localhost/*.parquet"}, r"http servers list no files; name them"),
    ],
)
def test_bad_requests(tmp_path, monkeypatch, settings, told):
    monkeypatch.chdir(pack("parquet", folder(tmp_path / "folder"), tmp_path / "packed"))
    (tmp_path / "packed" / "empty").mkdir()
    with pytest.raises(RequestError, match=told) as caught:
        load(Data(**{"name": "parquet", "path": ".", "image_size": SIZE, **settings}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:TOPSECRET@bucket/train.parquet",
        "https://user:TOPSECRET@host/train.parquet",
        "https://host/train.parquet?X-Amz-Signature=TOPSECRET",
    ],
)
@pytest.mark.parametrize("key", ["path", "train"])
def test_a_location_with_a_credential_is_refused_and_not_repeated(uri, key):
    with pytest.raises(RequestError, match=rf"data\.{key}: .*in the environment") as caught:
        load(Data(name="parquet", **{key: uri}))
    assert "TOPSECRET" not in str(caught.value)


# Stores


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_file_system_of_fsspec(tmp_path, form):
    source = pack(form, folder(tmp_path / "folder"), tmp_path / "packed")
    store = fsspec.filesystem("memory")
    home = f"memory://{tmp_path.name}-{form}"
    for path in source.iterdir():
        store.pipe(f"{home}/{path.name}", path.read_bytes())
    ours, theirs = read(form, home), read(form, source)
    assert ours.digest == theirs.digest
    assert torch.equal(everything(ours.test)[0], everything(theirs.test)[0])
    ending = "tar" if form == "webdataset" else "parquet"
    named = read(form, home, train=f"train-*.{ending}", test=f"test-*.{ending}")
    assert named.digest == theirs.digest
    with pytest.raises(RequestError, match=r"there are no files .* at 'memory://nowhere'"):
        read(form, "memory://nowhere")
