"""Training under Ray Train: what a run leaves behind, and what a killed worker costs."""

import dataclasses
import shutil
import threading
import time
import types

import kit
import pytest
import torch
import yaml
from waiting import wait

from raybust import config as configuration
from raybust import data, methods
from raybust.cluster import worker
from raybust.cluster.runlog import Job, RunLog
from raybust.cluster.worker import _keep
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError, WorkError
from raybust.request import find
from raybust.stages import training
from raybust.trained import load_trained
from raybust.training.fit import fit

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]


def train(config, said=None, resume=True):
    echo = [].append if said is None else said.append
    return training.train(config, address=None, resume=resume, verbose=False, echo=echo)


def undisturbed(config, folder):
    """Trains with just the loop, in this process; returns the last checkpoint and all metrics."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    metrics = {}
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        name = checkpoint.folder_name(progress.epoch)
        path = checkpoint.commit(folder, name, progress.save, 2)
        metrics[progress.epoch] = {
            k: v for k, v in progress.metrics.items() if k not in (*kit.CLOCKS, "epoch")
        }
    torch.set_num_threads(threads)
    return path, metrics


def assert_same_weights(left, right):
    left, right = checkpoint.read_weights(left), checkpoint.read_weights(right)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def test_a_run_leaves_checkpoints_identity_and_one_line_an_epoch(trained):
    out, folder, said = trained
    assert folder == out / "one"
    assert [path.name for path in checkpoint.folders(folder)] == ["epoch-000003", "epoch-000002"]
    assert all(checkpoint.torn(path) is None for path in checkpoint.folders(folder))
    identity = runs.read_identity(folder)
    assert identity.kind == "train"
    manifest = checkpoint.read_manifest(checkpoint.newest(folder))
    config = configuration.from_dict(manifest["config"], methods.get)
    assert config == kit.config(out, "name=one")
    assert manifest["config"] == identity.config
    assert manifest["epoch"] == 3
    epochs = [line for line in said if line.startswith("epoch")]
    assert [int(line.split()[1]) for line in epochs] == [1, 2, 3]
    assert "validation accuracy" in epochs[0]


def test_the_run_in_mlflow_has_params_metrics_and_artifacts(trained):
    out, folder, _ = trained
    (run,) = kit.runs_of(out).values()
    assert run.info.run_name == "one"
    assert run.info.status == "FINISHED"
    assert run.data.tags["raybust.run_key"] == runs.read_identity(folder).uid
    assert run.data.tags["raybust.stop_reason"] == "finished"
    assert run.data.tags["raybust.method"] == "gaussian"
    assert run.data.params["method.sigma"] == "0.25"
    assert run.data.params["train.batch_size"] == "128"
    points = kit.points_of(out, run)
    for key in ("train/loss", "validation/accuracy", "certified_fast/acr", "passes/forward"):
        assert {step for name, step in points if name == key} == {1, 2, 3}
    manifest = checkpoint.read_manifest(checkpoint.newest(folder))
    for key, value in manifest["metrics"].items():
        if key != "epoch":
            assert run.data.metrics[key] == value, key
    top = kit.artifacts_of(out, run)
    assert {"config.yaml", "environment.yaml", "checkpoint"} <= top
    inside = kit.artifacts_of(out, run, "checkpoint")
    assert inside == {"checkpoint/model.safetensors", "checkpoint/manifest.json"}
    (stored,) = (out / "mlartifacts").rglob("config.yaml")
    assert yaml.safe_load(stored.read_text()) == runs.read_identity(folder).config
    (weights,) = (out / "mlartifacts").rglob("model.safetensors")
    assert weights.read_bytes() == (checkpoint.newest(folder) / "model.safetensors").read_bytes()


def test_the_same_command_again_has_nothing_to_do(trained):
    out, folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    said = []
    assert train(kit.config(out, "name=one"), said) == folder
    assert any("is already trained" in line for line in said)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    assert len(kit.runs_of(out)) == 1


def test_an_id_of_mlflow_is_that_run_or_refused(trained, monkeypatch):
    out, folder, _ = trained
    (run,) = kit.runs_of(out).values()
    leaves = configuration.leaves_of_arguments([f"out={out}"])
    assert find(run.info.run_id, leaves) == folder
    later = dataclasses.replace(runs.read_identity(folder), uid="another")
    monkeypatch.setattr(runs, "read_identity", lambda _: later)  # as after --no-resume
    with pytest.raises(RequestError, match=r"now holds a later run; .*one\.1"):
        find(run.info.run_id, leaves)


def test_a_run_that_was_killed_after_its_last_checkpoint_is_ended(trained, out):
    _, folder, _ = trained
    copy = out / "one"
    kit.move_copy(folder, copy)
    journal = copy / runs.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole[: whole.rstrip(b"\n").rindex(b"\n") + 1])
    for record in copy.rglob("*.jsonl.*"):  # acknowledged offsets, of other tests' results too
        record.unlink()
    assert kit.lines(journal)[-1]["e"] != "end"
    said = []
    train(kit.config(out, "name=one"), said)
    assert said == ["one is already trained; use --no-resume to train it again"]
    assert kit.lines(journal)[-1]["e"] == "end"
    assert kit.runs_of(out)["one"].info.status == "FINISHED"
    ended = journal.read_bytes()
    train(kit.config(out, "name=one"))
    assert journal.read_bytes() == ended


def test_a_last_checkpoint_that_is_still_in_the_storage_is_fetched(trained, tmp_path):
    newest, before = checkpoint.folders(trained[1])[:2]
    shutil.copytree(before, tmp_path / "run" / before.name)
    for _ in range(2):
        _keep(newest, tmp_path / "run", 2)
    assert checkpoint.newest(tmp_path / "run").name == newest.name
    assert_same_weights(checkpoint.newest(tmp_path / "run"), newest)


def test_a_run_whose_last_checkpoint_is_in_the_storage_alone_reports_its_end(
    trained, out, monkeypatch
):
    """As after a kill between the last report and the copy to the run's folder."""
    told = []
    last = checkpoint.newest(trained[1])
    storage = types.SimpleNamespace(to_directory=lambda to: shutil.copytree(last, to))
    rank = types.SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr(worker.ray.train, "get_checkpoint", lambda: storage)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: rank)
    monkeypatch.setattr(worker.ray.train, "report", lambda metrics, **_: told.append(metrics))
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    plain = configuration.to_dict(kit.config(trained[0], "name=one"))
    job = Job(plain, str(out / "one"), "key", "one")
    assert worker.train_worker(dataclasses.asdict(job), uri=kit.uri(out)) is None
    assert told == [{**checkpoint.read_manifest(last)["metrics"], "complete": True}]
    assert_same_weights(checkpoint.newest(out / "one"), last)


def test_another_configuration_of_that_name_is_refused(trained):
    out, folder, _ = trained
    with pytest.raises(RequestError, match=r"train\.lr.*--no-resume"):
        train(kit.config(out, "name=one", "train.lr=0.06"))
    assert folder.exists()


def test_a_worker_trains_what_the_loop_alone_trains(trained, tmp_path):
    out, folder, _ = trained
    path, metrics = undisturbed(kit.config(out, "name=one"), tmp_path)
    assert kit.journal_metrics(folder) == metrics
    assert_same_weights(path, checkpoint.newest(folder))


def test_a_run_in_this_process_is_the_run_of_a_worker(trained, out, monkeypatch):
    """Files, checkpoints, journal and MLflow; Ray's own record is the only difference."""
    _, folder, said_on_ray = trained
    monkeypatch.setattr(training, "suffices", lambda *_: True)
    said = []
    here = train(kit.config(out, "name=one"), said)
    kinds = [{p.relative_to(at).as_posix() for p in at.rglob("*")} for at in (folder, here)]
    results = {name for name in kinds[0] if name.partition("/")[0] in kit.RESULTS}
    assert kinds[0] - results - kinds[1] <= {runs.RAY_RECORD, ".validate_storage_marker"}
    assert kinds[1] <= kinds[0]
    assert_same_weights(checkpoint.newest(here), checkpoint.newest(folder))
    assert kit.journal_metrics(here) == kit.journal_metrics(folder)
    events = [[e["e"] for e in kit.lines(at / "journal.jsonl")] for at in (folder, here)]
    assert events[0] == events[1]
    manifests = [checkpoint.read_manifest(checkpoint.newest(at)) for at in (folder, here)]
    for manifest in manifests:
        for key in ("config", "metrics", "files"):
            manifest.pop(key)
    assert manifests[0] == manifests[1]
    shown = [[line.partition("images/s")[0] for line in lines if line.startswith("epoch")]
             for lines in (said_on_ray, said)]  # fmt: skip
    assert shown[0] == shown[1]
    (run,) = kit.runs_of(out).values()
    assert run.info.status == "FINISHED"
    assert "checkpoint" in kit.artifacts_of(out, run)


def test_a_run_of_ray_goes_on_in_this_process(trained, out, monkeypatch):
    """As after a kill in the last epoch; Ray's record still names that epoch's checkpoint."""
    _, folder, _ = trained
    kit.move_copy(folder, out / "one", *kit.RESULTS)
    last = checkpoint.newest(out / "one")
    shutil.rmtree(last)
    assert (out / "one" / runs.RAY_RECORD).exists()
    monkeypatch.setattr(training, "suffices", lambda *_: True)
    said = []
    train(kit.config(out, "name=one"), said)
    assert any("one: resuming at epoch 2," in line for line in said)
    assert_same_weights(checkpoint.newest(folder), checkpoint.newest(out / "one"))
    assert not (out / "one" / runs.RAY_RECORD).exists()


def test_a_run_of_this_process_goes_on_on_ray(out, monkeypatch, tmp_path):
    """Two epochs here, each interrupted in the next one, the last one there."""
    config = kit.config(out, "name=both")
    path, metrics = undisturbed(config, tmp_path)
    newest = checkpoint.newest

    def stop_after(epochs):
        def log_epoch(self, progress, log=RunLog.epoch):
            log(self, progress)
            if progress.epoch > epochs:
                raise KeyboardInterrupt

        return log_epoch

    monkeypatch.setattr(training, "suffices", lambda *_: True)
    for epochs in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(RunLog, "epoch", stop_after(epochs))
            with pytest.raises(KeyboardInterrupt):
                train(config)
        assert checkpoint.epoch_of(newest(out / "both")) == epochs
    monkeypatch.setattr(training, "suffices", lambda *_: False)
    train(config)
    assert kit.journal_metrics(out / "both") == metrics
    assert_same_weights(path, newest(out / "both"))


def test_a_run_that_fails_here_says_so_like_on_ray(out, monkeypatch):
    monkeypatch.setattr(training, "suffices", lambda *_: True)
    with pytest.raises(WorkError, match=r"bad: .*nan in epoch 1.*lower train\.lr"):
        train(kit.config(out, "name=bad", "train.lr=1e6"))
    assert checkpoint.newest(out / "bad") is None
    (run,) = kit.runs_of(out).values()
    assert run.info.status == "FAILED"
    assert "nan in epoch 1" in run.data.tags["raybust.failure"]
    monkeypatch.setattr(checkpoint, "commit", full)
    with pytest.raises(
        WorkError, match=r"full: training failed: .*; make room on that disk and rerun"
    ):
        train(kit.config(out, "name=full"))


def full(*_):
    raise OSError(28, "No space left on device")


def test_two_workers_train_together_with_checkpoints_in_a_storage(out, cluster, tmp_path):
    """Ray keeps them there; the run's folder gets the last one, MLflow its weights."""
    storage = tmp_path / "storage"
    settings = ("name=two", "cluster.workers=2", "train.epochs=2", f"cluster.storage={storage}")
    folder = train(kit.config(out, *settings))
    manifest = checkpoint.read_manifest(checkpoint.newest(folder))
    assert (manifest["epoch"], manifest["workers"]) == (2, 2)
    (run,) = kit.runs_of(out).values()
    points = kit.points_of(out, run)
    assert {step for key, step in points if key == "train/loss"} == {1, 2}
    split = data.load(kit.config(out).data).train
    assert run.data.metrics["passes/forward"] == 2 * (len(split) // 128 * 128)
    assert run.data.metrics["validation/accuracy"] > 0.5
    (kept,) = storage.iterdir()
    assert_same_weights(checkpoint.newest(kept), checkpoint.newest(folder))
    # Its name is unique, so it is not confused with another sweep's trial or, after --no-resume,
    # with the run that was set aside.
    assert kept.name == f"two-{runs.read_identity(folder).uid}"
    assert "checkpoint" in kit.artifacts_of(out, run)
    trained = load_trained(folder, [])
    assert not trained.network.training
    wait(lambda: cluster.available_resources().get("CPU") == 2, 60, "all CPUs are free")


def test_more_workers_than_cpus_are_refused_before_anything_is_submitted(out):
    started = time.monotonic()
    config = kit.config(out, "name=three", "cluster.workers=3", "train.batch_size=129")
    with pytest.raises(RequestError, match=r"3 workers of 1 CPUs .* do not fit into .* 2 CPUs"):
        train(config)
    assert time.monotonic() - started < 10
    assert checkpoint.newest(out / "three") is None


def test_a_diverged_run_says_so_and_keeps_nothing_bad(out):
    with pytest.raises(WorkError, match=r"nan in epoch 1.*lower train\.lr"):
        train(kit.config(out, "name=bad", "train.lr=1e6"))
    assert checkpoint.newest(out / "bad") is None
    (run,) = kit.runs_of(out).values()
    assert run.info.status == "FAILED"
    assert "nan in epoch 1" in run.data.tags["raybust.failure"]


def test_an_error_on_one_rank_ends_all_with_its_line(out, cluster):
    """The other rank waits in an all-reduce, whose own timeout is half an hour."""
    config = kit.config(
        out,
        "name=torn",
        "model.name=tests.cluster.breaking:OnRankOne",
        "cluster.workers=2",
        "cluster.max_failures=0",
        "train.epochs=1",
    )
    started = time.monotonic()
    with pytest.raises(WorkError, match=r"torn: training failed: .*this rank's validation broke"):
        train(config)
    assert time.monotonic() - started < 120
    wait(lambda: cluster.available_resources().get("CPU") == 2, 60, "all CPUs are free")


def test_a_worker_that_is_killed_goes_on_from_its_last_checkpoint(out, tmp_path):
    config = kit.config(out, "name=killed", "train.epochs=6", "model.width=24")
    killed, said = [], []

    def kill():
        second = out / "killed" / checkpoint.folder_name(2) / "manifest.json"
        wait(second.exists, 60, "the second checkpoint")
        for process in kit.descendants("ray::RayTrainWorker"):
            process.kill()
            killed.append(len(checkpoint.folders(out / "killed")))

    thread = threading.Thread(target=kill)
    thread.start()
    folder = train(config, said)
    thread.join()
    assert len(killed) == 1, "no worker was killed in the middle"
    resumed = [line for line in kit.lines(folder / "journal.jsonl") if line["e"] == "resume"]
    assert len(resumed) == 1
    path, metrics = undisturbed(config, tmp_path)
    assert kit.journal_metrics(folder) == metrics
    assert_same_weights(path, checkpoint.newest(folder))
    epochs = [int(line.split()[1]) for line in said if line.startswith("epoch")]
    assert epochs == [1, 2, 3, 4, 5, 6]
    (run,) = kit.runs_of(out).values()
    assert {step for _, step in kit.points_of(out, run)} == set(range(1, 7))
