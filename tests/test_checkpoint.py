"""Checkpoints against torn files, failing disks and hostile pickles."""

import errno
import json
import os
import pickle
import shutil
import subprocess

import pytest
import torch

import raybust
from raybust import config as configuration
from raybust import data, methods
from raybust.disk import checkpoint
from raybust.disk.checkpoint import MANIFEST, STATE, WEIGHTS
from raybust.errors import RequestError, why_failed
from raybust.training.fit import fit
from raybust.training.objective import assemble


def fill(folder, value=1.0):
    weights = {"w": torch.full((3, 2), value), "n": torch.tensor(7)}
    state = {"epoch": int(value), "optimizer": {"state": {0: {"m": torch.ones(2)}}}}
    checkpoint.write(folder, weights, state, {"epoch": int(value), "metrics": {"a": 0.1 + 0.2}})


def commit(root, epoch, keep=2):
    name = checkpoint.folder_name(epoch)
    return checkpoint.commit(root, name, lambda folder: fill(folder, float(epoch)), keep)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_back(tmp_path):
    folder = commit(tmp_path, 5)
    assert folder == tmp_path / "epoch-000005"
    assert sorted(content(folder)) == [MANIFEST, WEIGHTS, STATE]
    weights = checkpoint.read_weights(folder)
    assert torch.equal(weights["w"], torch.full((3, 2), 5.0))
    assert weights["n"].dtype == torch.int64
    assert checkpoint.read_state(folder)["epoch"] == 5
    manifest = checkpoint.read_manifest(folder)
    assert manifest["metrics"] == {"a": 0.1 + 0.2}
    assert manifest["format"] == checkpoint.FORMAT
    assert set(manifest["files"]) == {WEIGHTS, STATE}


def test_weights_that_are_views_or_strided_are_written_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    weights = {"t": base.T, "channels_last": torch.rand(2, 3, 4, 4).to(
        memory_format=torch.channels_last)}  # fmt: skip
    checkpoint.write(tmp_path, weights, {}, {})
    for key, value in checkpoint.read_weights(tmp_path).items():
        assert torch.equal(value, weights[key])


def test_only_the_newest_are_kept(tmp_path):
    for epoch in range(1, 12):
        commit(tmp_path, epoch, keep=3)
    assert [path.name[-2:] for path in checkpoint.folders(tmp_path)] == ["11", "10", "09"]
    assert len(list(tmp_path.iterdir())) == 3


def test_names_that_are_no_checkpoints_are_left_alone(tmp_path):
    for name in ("epoch-1", "epoch-000001x", "certified", "epoch-000009.tmp", ".epoch-000009.tmp"):
        (tmp_path / name).mkdir()
    commit(tmp_path, 1)
    commit(tmp_path, 2)
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["epoch-000002", "epoch-000001"]
    assert len(list(tmp_path.iterdir())) == 7
    assert checkpoint.folders(tmp_path / "nowhere") == []
    assert checkpoint.newest(tmp_path / "nowhere") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", [cut, empty, flip, os.remove])
@pytest.mark.parametrize("name", [WEIGHTS, STATE, MANIFEST])
def test_a_torn_file_is_recognized_and_the_previous_checkpoint_used(tmp_path, name, harm):
    commit(tmp_path, 1)
    commit(tmp_path, 2)
    torn = tmp_path / "epoch-000002"
    if (name, harm) == (MANIFEST, cut):  # a lost newline at its end is no loss
        cut(torn / name)
        assert checkpoint.torn(torn) is None
    harm(torn / name)
    if (name, harm) == (MANIFEST, flip):
        record = json.loads((tmp_path / "epoch-000001" / MANIFEST).read_text())
        (torn / name).write_text(json.dumps(record))  # still JSON, of another checkpoint
    told = []
    assert checkpoint.newest(tmp_path, told.append) == tmp_path / "epoch-000001"
    assert len(told) == 1
    assert "epoch-000002 is torn" in told[0]
    assert "using the previous one" in told[0]
    assert name in told[0] or harm is flip
    with pytest.raises(RequestError, match="not a complete checkpoint"):
        checkpoint.read_manifest(torn)


def test_all_torn_is_none(tmp_path):
    for epoch in (1, 2):
        os.remove(commit(tmp_path, epoch) / WEIGHTS)
    told = []
    assert checkpoint.newest(tmp_path, told.append) is None
    assert len(told) == 2


def test_another_format_is_not_read(tmp_path):
    folder = commit(tmp_path, 1)
    record = json.loads((folder / MANIFEST).read_text()) | {"format": checkpoint.FORMAT + 1}
    (folder / MANIFEST).write_text(json.dumps(record))
    assert f"format {checkpoint.FORMAT + 1}" in checkpoint.torn(folder)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"format": 1}'])
def test_a_manifest_that_is_other_json_is_torn(tmp_path, text):
    folder = commit(tmp_path, 1)
    (folder / MANIFEST).write_text(text)
    assert checkpoint.torn(folder) is not None


def test_the_torn_one_is_replaced_when_training_gets_there_again(tmp_path):
    commit(tmp_path, 1)
    empty(commit(tmp_path, 2) / WEIGHTS)
    commit(tmp_path, 2)
    assert checkpoint.epoch_of(checkpoint.newest(tmp_path)) == 2
    assert len(list(tmp_path.iterdir())) == 2


# Failures while writing


@pytest.mark.parametrize("stage", ["weights", "state", "manifest", "sync", "rename"])
def test_a_write_error_leaves_the_older_checkpoints_as_they_were(tmp_path, monkeypatch, stage):
    commit(tmp_path, 1)
    commit(tmp_path, 2)
    before = [content(tmp_path / f"epoch-00000{epoch}") for epoch in (1, 2)]

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if stage == "weights":
            patch.setattr(checkpoint, "save_file", full)
        elif stage == "state":
            patch.setattr(torch, "save", full)
        elif stage == "manifest":
            patch.setattr(checkpoint, "replace_text", full)
        elif stage == "sync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(checkpoint.Path, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            commit(tmp_path, 3)
    assert [content(tmp_path / f"epoch-00000{epoch}") for epoch in (1, 2)] == before
    assert checkpoint.epoch_of(checkpoint.newest(tmp_path)) == 2
    commit(tmp_path, 3)  # space again: nothing of the failed attempt is in the way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000002", "epoch-000003"]


def test_a_kill_in_the_middle_of_writing_leaves_no_checkpoint_of_that_epoch(tmp_path):
    """At every moment of a commit, a resume finds an intact checkpoint."""
    commit(tmp_path, 1)
    seen = []

    def slow(folder):
        for step in range(3):
            seen.append(checkpoint.newest(tmp_path).name)
            if step == 1:
                fill(folder, 2.0)

    checkpoint.commit(tmp_path, "epoch-000002", slow, 2)
    assert seen == ["epoch-000001"] * 3
    assert checkpoint.newest(tmp_path).name == "epoch-000002"


# Hostile content


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_that_would_run_code_is_refused_unexecuted(tmp_path):
    folder = commit(tmp_path, 1)
    target = str(tmp_path / "executed")
    for write in (
        lambda path: torch.save({"epoch": 1, "optimizer": Bomb(target)}, path),
        lambda path: path.write_bytes(pickle.dumps(Bomb(target), protocol=2)),
    ):
        write(folder / STATE)
        with pytest.raises(pickle.UnpicklingError):
            checkpoint.read_state(folder)
        assert not os.path.exists(target)
    pickle.loads(pickle.dumps(Bomb(target)))
    assert os.path.exists(target), "the bomb is none"


def test_a_whole_module_is_refused(tmp_path):
    folder = commit(tmp_path, 1)
    torch.save(torch.nn.Linear(2, 2), folder / STATE)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.read_state(folder)


# The manifest of a real run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    settings = (
        "method.name=gaussian", "method.sigma=0.37", "model.width=2", "train.epochs=1",
        "train.milestones=[0.1,0.9]", "certified_fast.n=100", "certified_fast.examples=5", "seed=3",
    )  # fmt: skip
    config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
    dataset = data.load(config.data)
    (progress,) = fit(config, dataset, torch.device("cpu"))
    checkpoint.commit(root, checkpoint.folder_name(1), progress.save, 2)
    return config, dataset, progress, root / "epoch-000001"


def test_the_manifest_says_all_that_is_needed_to_rebuild_the_network(trained):
    config, dataset, progress, folder = trained
    manifest = checkpoint.read_manifest(folder)
    assert configuration.from_dict(manifest["config"], methods.get) == config
    assert manifest["classes"] == list(dataset.classes)
    assert manifest["metrics"] == progress.metrics
    assert manifest["sigma"] == 0.37
    assert manifest["data_digest"] == dataset.digest
    assert (manifest["epoch"], manifest["workers"]) == (1, 1)
    network = assemble(config, dataset)
    network.load_state_dict(checkpoint.read_weights(folder))
    trainer = progress.save.__self__
    images, _ = dataset.test.fetch(range(9))
    torch.testing.assert_close(network.eval()(images), trainer.network.eval()(images))
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)
    assert manifest["versions"] == {"raybust": raybust.__version__, "torch": torch.__version__}


def test_a_checkpoint_may_be_copied_elsewhere(trained, tmp_path):
    copy = tmp_path / "anything"
    shutil.copytree(trained[-1], copy)
    assert checkpoint.torn(copy) is None
    assert checkpoint.read_manifest(copy) == checkpoint.read_manifest(trained[-1])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("large", ["weights", "state"])
def test_a_full_disk_is_named_whichever_file_it_meets(tmp_path, large):
    """Neither safetensors nor torch's writer says so in the system's words."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    sizes = {"weights": 8, "state": 8} | {large: 2_000_000}
    try:
        with pytest.raises(OSError, match="No space") as found:
            checkpoint.write(
                disk, {"w": torch.zeros(sizes["weights"])}, {"s": torch.zeros(sizes["state"])}, {}
            )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "rerun the same command to resume" in why_failed(found.value)
