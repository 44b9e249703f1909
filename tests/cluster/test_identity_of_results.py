"""By the command line: a number is gone on with, or reported, only as that of the function, the
images and the labels that made it."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
from PIL import Image
from ray.cloudpickle import register_pickle_by_value
from torch import nn

from raybust import data, methods
from raybust.cluster.runlog import Job
from raybust.config import compose, leaves_of_arguments, to_dict
from raybust.disk import checkpoint, runs
from raybust.disk.lock import locked
from raybust.disk.runs import JOURNAL
from raybust.disk.strip import strip
from raybust.errors import RequestError, WorkError
from raybust.stages import tuning
from raybust.stages.place import Here, OnRay
from raybust.training.fit import fit
from raybust.training.objective import code_of_training

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""
SHARP = """
    def forward(self, x):
        return (60 * super().forward(x)).softmax(1)
"""
SHIFTED = """
    def forward(self, x):
        return super().forward(x.roll(1, 3))
"""
FAST = (
    "certify.examples=8", "certify.n=200", "certify.sigma=0.25", "evaluate.examples=8",
    "evaluate.attacks=[pgd]", "evaluate.eps=[0.1]",
)  # fmt: skip
ONWARD = ("--no-resume", "--name NAME")


def bare_copy(run, place):
    """Copies a run without the results that other tests may have left in it."""
    kit.move_copy(run, place, "certified", "attacked", "corrupted")


@pytest.fixture
def home(out, monkeypatch):
    """The working directory: an npz of 8 x 8 images, weights, two networks with these weights."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (60, 8, 8)).astype(np.uint8)
    np.savez(out / "data.npz", x_train=images, y_train=np.arange(60) % 3, x_test=images[:15],
             y_test=np.arange(15) % 3)  # fmt: skip
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    torch.save(net.state_dict(), out / "plain.pth")
    name = f"net_{out.name}".replace("-", "_")  # modules stay imported for the whole session
    (out / f"{name}.py").write_text(NET)
    monkeypatch.chdir(out)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def ask(cli, home, out):
    """Runs a stage on the weights, with the user's module as its file says now."""

    def run(stage, *more, path="data.npz", weights="plain.pth"):
        import_anew(home)
        return cli(stage, weights, f"model.name={home}:Net", "data.name=npz", f"data.path={path}",
                   "--out", out, *FAST, *more)  # fmt: skip

    return run


def import_anew(name):
    """Imports a module of the working directory as a new process would. The workers of the tests'
    Ray were started elsewhere, so its classes travel to them by value."""
    sys.modules.pop(name, None)
    shutil.rmtree("__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    sys.path.insert(0, "")
    try:
        register_pickle_by_value(importlib.import_module(name))
    finally:
        sys.path.remove("")


def rewrite(name, body):
    """Puts another class under the module's name."""
    Path(f"{name}.py").write_text(NET + body)


def results(out, stage, ending):
    return sorted(out.glob(f"_weights/plain-*/{stage}/*{ending}"))


STAGES = [("certify", "certified", ".tsv", ()), ("evaluate", "attacked", ".tsv", ()),
          ("evaluate", "corrupted", ".jsonl", ("corruptions.rows=[[2, 0.5]]",))]  # fmt: skip


@pytest.mark.parametrize(("stage", "folder", "ending", "more"), STAGES)
@pytest.mark.parametrize("body", [SHARP, SHIFTED], ids=["softmax", "shifted"])
def test_another_forward_of_the_same_weights_goes_on_with_nothing(
    ask, home, out, stage, folder, ending, more, body
):
    first = ask(stage, *more)
    assert first.code == 0, first.err
    (path,) = results(out, folder, ending)
    before = path.read_bytes()
    rewrite(home, body)
    other = ask(stage, *more)
    assert other.code == 2
    assert "another function (outputs" in other.err
    assert all(way in other.err for way in ONWARD)
    assert path.read_bytes() == before
    beside = ask(stage, "--name", "other", *more)
    assert beside.code == 0, beside.err
    assert path.read_bytes() == before
    rewrite(home, "")
    again = ask(stage, *more)
    assert again.code == 0, again.err
    assert again.out == first.out
    named = ask(stage, "--name", "other", *more)
    assert named.code == 2
    assert "another function" in named.err


@pytest.mark.parametrize(("stage", "folder", "ending", "more"), STAGES)
def test_other_images_or_labels_under_the_same_name_are_told(
    ask, home, out, stage, folder, ending, more
):
    assert ask(stage, *more).code == 0
    with np.load("data.npz") as archive:
        arrays = dict(archive)
    for key, what in (("x_test", "other images"), ("y_test", "other labels")):
        changed = {**arrays, key: arrays[key].copy()}
        changed[key][3] = (changed[key][3] + 1) % 3
        np.savez("data.npz", **changed)
        found = ask(stage, *more)
        assert found.code == 2
        assert what in found.err
        assert "another function" not in found.err
    unseen = {**arrays, "x_test": arrays["x_test"].copy()}
    unseen["x_test"][12] = 0  # the result is of the first eight
    np.savez("data.npz", **unseen)
    found = ask(stage, *more)
    if folder == "corrupted":  # takes all fifteen
        assert (found.code, "other images" in found.err) == (2, True)
    else:
        assert (found.code, "resuming" in found.err) == (0, True)


def folders(home, value=0):
    """An image folder whose files have the same names and sizes for every value."""
    draw = np.random.default_rng(1)
    for part, count in (("train", 12), ("val", 8)):
        for kind in ("cat", "dog", "eel"):
            folder = home / "pictures" / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(0, 200, (8, 8, 3)).astype(np.uint8) + np.uint8(value)
                whole = folder / "whole.tmp"  # a task may be reading the file
                Image.fromarray(pixels).save(whole, "bmp")
                whole.replace(folder / f"{number}.bmp")


def of_pictures(home, out, stage, *more):
    """The command that runs a stage on a folder of pictures."""
    folders(out)
    (out / f"{home}.py").write_text(NET.replace("64", "192"))
    import_anew(home)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    torch.save(net.state_dict(), out / "wide.pth")
    return (stage, "wide.pth", f"model.name={home}:Net", "data.name=image_folder",
            f"data.path={out / 'pictures'}", "data.image_size=8", "--out", out, *FAST, *more,
            "corruptions.examples=8")  # fmt: skip


@pytest.mark.parametrize(("stage", "folder", "ending", "more"), STAGES)
def test_files_replaced_under_their_names_and_sizes_are_told(
    cli, home, out, stage, folder, ending, more
):
    command = of_pictures(home, out, stage, *more)
    assert cli(*command).code == 0
    again = cli(*command)
    assert (again.code, "resuming" in again.err) == (0, True)
    folders(out, value=20)
    found = cli(*command)
    assert found.code == 2
    assert "other images" in found.err


@pytest.mark.parametrize(("stage", "folder", "ending", "more"), STAGES)
def test_files_replaced_while_a_command_runs_are_told(
    cli, home, out, monkeypatch, stage, folder, ending, more
):
    """Images are read as the work proceeds, so nothing proves which ones were used."""
    command = of_pictures(home, out, stage, *more)

    def replacing(run, *arguments):
        for found in run(*arguments):
            folders(out, value=20)
            yield found

    for place in (Here, OnRay):
        run = place.run
        monkeypatch.setattr(place, "run", lambda *arguments, run=run: replacing(run, *arguments))
    done = cli(*command)
    assert (done.code, "the images changed while the command ran" in done.err) == (2, True)
    (aside,) = out.glob(f"_weights/wide-*/{folder}/*{ending}")
    assert aside.stem.rpartition(".")[2].isdigit(), "results that are not reported have a number"


def published(folder, value=0):
    """CIFAR-C's layout; the same names and sizes for every value."""
    from raybust.corruptions import COMMON

    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(2)
    for name in COMMON:
        pixels = draw.integers(0, 200, (75, 8, 8, 1)).astype(np.uint8)
        pixels[40] += np.uint8(value if name == COMMON[-1] else 0)
        np.save(folder / f"{name}.npy", pixels)
    np.save(folder / "labels.npy", np.tile(np.arange(15) % 3, 5))


def test_published_images_replaced_in_one_file_are_told_and_a_moved_folder_is_not(ask, out):
    published(out / "C")
    more = (f"corruptions.folder={out / 'C'}",)
    first = ask("evaluate", *more)
    assert first.code == 0, first.err
    again = ask("evaluate", *more)
    assert (again.code, again.out) == (0, first.out)
    (out / "elsewhere").mkdir()
    shutil.move(out / "C", out / "elsewhere" / "C")
    there = f"corruptions.folder={out / 'elsewhere' / 'C'}"
    moved = ask("evaluate", there)
    assert (moved.code, moved.out) == (0, first.out)
    published(out / "elsewhere" / "C", value=9)
    found = ask("evaluate", there)
    assert found.code == 2
    assert "other images or labels (" in found.err


def test_weights_replaced_under_their_name_are_told(ask, out):
    assert ask("certify").code == 0
    torch.manual_seed(1)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), out / "plain.pth")
    found = ask("certify")
    assert found.code == 2
    assert "another function (weights" in found.err


def test_another_normalization_of_the_same_weights_is_told(ask):
    assert ask("certify").code == 0
    found = ask("certify", "model.mean=[0.3]", "model.std=[0.3]")
    assert found.code == 2
    assert "another function" in found.err


def test_a_log_of_raybust_0_1_is_read_by_report_and_unproven_for_certify(ask, cli, out):
    assert ask("certify").code == 0
    (path,) = results(out, "certified", ".tsv")
    first, rest = path.read_text().split("\n", 1)
    header = json.loads(first.removeprefix("# "))
    del header["outputs"], header["labels"]
    path.write_text(f"# {json.dumps(header)}\n{rest}")
    assert cli("report", path, "--out", out).code == 0
    found = ask("certify")
    assert found.code == 2
    assert "unproven origin (its header does not record outputs, labels)" in found.err


def test_a_changed_row_is_refused_by_its_number_and_told_by_the_recomputation(ask, out):
    assert ask("certify").code == 0
    (path,) = results(out, "certified", ".tsv")
    lines = path.read_text().splitlines()
    cells = lines[4].split("\t")
    cells[3] = "1.5"
    path.write_text("\n".join([*lines[:4], "\t".join(cells), *lines[5:]]) + "\n")
    found = ask("certify")
    assert found.code == 2
    assert "line 5 was changed after it was written: radius: got 1.5" in found.err


def test_nothing_of_a_weights_file_lands_in_a_run_of_its_name(trained, cli, ask, out):
    """`certify plain.pth` beside a run called plain, and beside one called plain.pth."""
    for name in ("plain", "plain.pth.d"):
        bare_copy(trained[1], out / name)
    assert ask("certify").code == 0
    assert not list(out.glob("plain*/certified"))
    (path,) = results(out, "certified", ".tsv")
    assert "_weights" in path.parts
    found = cli("report", "plain", "--out", out)
    assert found.code == 2
    assert "has no certificates" in found.err


def test_two_weights_files_of_one_name_do_not_share_results(ask, out):
    assert ask("certify").code == 0
    (out / "deep").mkdir()
    torch.manual_seed(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict()
    torch.save(other, out / "deep" / "plain.pth")
    found = ask("certify", weights="deep/plain.pth")
    assert found.code == 0, found.err
    assert len(results(out, "certified", ".tsv")) == 2


@pytest.fixture
def run(trained, out):
    """A copy of the trained run in a store of its own."""
    bare_copy(trained[1], out / "one")
    return out / "one"


def test_two_protocols_never_share_a_point_in_mlflow(run, out, cli):
    for settings in ("certify.n=200", "certify.n=300", "certify.norm=linf", "certify.sigma=0.5"):
        found = cli("certify", "one", "--out", out, "certify.examples=5", settings)
        assert found.code == 0, found.err
    for settings in ("evaluate.eps=[0.1]", "evaluate.eps=[0.2]", "evaluate.pgd_steps=3"):
        more = ("--name", "steps") if "steps" in settings else ()
        found = cli("evaluate", "one", "--out", out, "evaluate.examples=5",
                    "evaluate.attacks=[pgd]", settings, *more)  # fmt: skip
        assert found.code == 0, found.err
    (stored,) = kit.runs_of(out).values()
    points = kit.points_of(out, stored)
    assert {step for key, step in points if key == "certified/acr"} == {0, 1, 3}
    assert {step for key, step in points if key == "certified/linf/acr"} == {2}
    assert {step for key, step in points if key == "attacked/robust_accuracy"} == {0, 1, 2}
    assert stored.data.tags["raybust.certified.1"].endswith("_n300")
    assert stored.data.tags["raybust.attacked.2"] == "steps"


def test_a_log_of_weights_that_the_run_no_longer_has_is_not_its(run, out, cli):
    assert cli("certify", "one", "--out", out, "certify.examples=5").code == 0
    assert cli("report", "one", "--out", out).code == 0
    newest = checkpoint.newest(run)
    weights = checkpoint.read_weights(newest)
    manifest = checkpoint.read_manifest(newest)
    del manifest["files"]
    for key in weights:
        weights[key] = weights[key] * 1.01
    later = run / checkpoint.folder_name(checkpoint.epoch_of(newest) + 1)
    later.mkdir()
    checkpoint.write(later, weights, checkpoint.read_state(newest), manifest)
    found = cli("report", "one", "--out", out)
    assert found.code == 2
    assert "is of other weights than one has now" in found.err


def test_what_was_kept_aside_is_not_reported(run, out, cli):
    for _ in range(2):
        arguments = ("certify", "one", "--out", out, "certify.examples=5", "--no-resume")
        assert cli(*arguments).code == 0
    assert len(list((run / "certified").glob("*.tsv"))) == 2
    found = cli("report", "one", "--out", out)
    assert found.code == 0
    assert found.out.count("| one |") == 1


def test_two_commands_do_not_work_on_one_run_at_once(run, out, cli):
    with locked(run):
        for stage in ("certify", "evaluate"):
            found = cli(stage, "one", "--out", out, "evaluate.attacks=[pgd]")
            assert found.code == 2
            assert "one: another command is running it" in found.err
    assert (run / JOURNAL).exists()


@pytest.mark.slow
def test_two_processes_at_once_make_no_row_twice(run, out):
    command = [sys.executable, "-m", "raybust", "certify", "one", "--out", str(out),
               "certify.examples=40", "certify.n=2000"]  # fmt: skip
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2]), errors
    if codes == [0, 2]:
        assert any("another command is running it" in text for text in errors)
    (log,) = (run / "certified").glob("*.tsv")
    rows = [line.split("\t")[0] for line in log.read_text().splitlines()[2:]]
    assert len(rows) == len(set(rows)) == 40


def test_results_of_a_copy_do_not_land_in_the_originals_mlflow_run(run, out, cli):
    shutil.copytree(run, out / "one (2)")
    first = cli("certify", "one", "--out", out, "certify.examples=5")
    assert first.code == 0, first.err
    (stored,) = kit.runs_of(out).values()
    before = kit.points_of(out, stored)
    other = cli("certify", "one (2)", "--out", out, "certify.examples=5", "certify.sigma=0.5")
    assert other.code == 0
    assert f"one (2) is a copy of {run}" in other.err
    assert kit.points_of(out, stored) == before
    shutil.move(out / "one (2)", out / "kept")
    shutil.rmtree(run)  # a copy whose original is gone is the run
    last = cli("certify", "kept", "--out", out, "certify.examples=5", "certify.sigma=0.7")
    assert (last.code, "is a copy" in last.err) == (0, False)


def test_a_torn_or_unfinished_checkpoint_is_told(run, out, cli):
    newest = checkpoint.newest(run)
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    earlier = run / checkpoint.folder_name(manifest["epoch"] - 1)
    shutil.rmtree(earlier, ignore_errors=True)
    shutil.copytree(newest, earlier)
    (earlier / checkpoint.MANIFEST).write_text(
        json.dumps({**manifest, "done": False, "epoch": manifest["epoch"] - 1})
    )
    weights = bytearray((newest / checkpoint.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (newest / checkpoint.WEIGHTS).write_bytes(weights)
    found = cli("certify", "one", "--out", out, "certify.examples=5")
    assert found.code == 0, found.err
    assert f"checkpoint {newest.name} is torn" in found.err
    assert f"one has not finished training: epoch {manifest['epoch'] - 1}" in found.err


def train_here(config, folder, epochs):
    """Trains in this process, whose modules are the test's, and keeps the last checkpoint."""
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        if progress.epoch == epochs:
            checkpoint.commit(folder, checkpoint.folder_name(epochs), progress.save, 1)
            return


@pytest.mark.parametrize("epochs", [1, 2])
def test_training_does_not_resume_with_another_function(cli, home, out, epochs):
    """Neither when it is done, nor on its way."""
    settings = (f"model.name={home}:Net", "data.name=npz", f"data.path={out / 'data.npz'}",
                "name=own", f"out={out}", "train.epochs=2", "train.batch_size=16",
                "certified_fast.every=0")  # fmt: skip
    import_anew(home)
    config = compose(leaves_of_arguments(settings), methods.get)
    runs.identify(out / "own", "train", to_dict(config))
    train_here(config, out / "own", epochs)
    rewrite(home, SHIFTED)
    import_anew(home)
    found = cli("train", *settings)
    assert found.code == 2
    assert f"own: its network no longer computes what it did when epoch-00000{epochs}" in found.err
    if epochs == 2:
        rewrite(home, "")
        import_anew(home)
        again = cli("train", *settings)
        assert (again.code, "is already trained" in again.err) == (0, True)


def test_a_sweep_does_not_resume_with_another_function(home, out):
    settings = (f"model.name={home}:Net", "data.name=npz", f"data.path={out / 'data.npz'}",
                "train.epochs=1", "train.batch_size=16", "certified_fast.every=0")  # fmt: skip
    import_anew(home)
    config = compose(leaves_of_arguments(settings), methods.get)
    dataset = data.load(config.data)
    sweep = out / "own", to_dict(config), dataset.digest
    runs.identify(sweep[0], "sweep", sweep[1], data=sweep[2])
    for trial in ("0000", "0001"):
        runs.identify(sweep[0] / runs.TRIALS / trial, "trial", sweep[1])
        train_here(config, sweep[0] / runs.TRIALS / trial, 1)
    tuning._check_earlier(*sweep, dataset)
    rewrite(home, SHIFTED)
    import_anew(home)
    with pytest.raises(RequestError, match="trial 1 of own: its network no longer computes"):
        tuning._check_earlier(*sweep, dataset)
    for trial in ("0000", "0001"):  # as most trials of a sweep
        strip(sweep[0] / runs.TRIALS / trial, weights=False)
    with pytest.raises(RequestError, match="trial 1 of own: its network no longer computes"):
        tuning._check_earlier(*sweep, dataset)
    rewrite(home, "")
    import_anew(home)
    tuning._check_earlier(*sweep, dataset)


def test_a_worker_of_another_code_does_not_train(home, out):
    """As when the file is edited between two trials of several workers, which start processes."""
    settings = (f"model.name={home}:Net", "data.name=npz", f"data.path={out / 'data.npz'}")
    import_anew(home)
    config = compose(leaves_of_arguments(settings), methods.get)
    dataset = data.load(config.data)
    job = Job(to_dict(config), str(out), "key", "one", code=code_of_training(config, dataset))
    job.check_inputs(config, dataset)
    rewrite(home, SHIFTED)
    import_anew(home)
    with pytest.raises(WorkError, match="the code of its network has changed since the command"):
        job.check_inputs(config, dataset)


def test_data_of_another_shape_or_number_of_classes_are_one_line(run, out, cli):
    draw = np.random.default_rng(0)
    for side, classes in ((16, 10), (8, 11)):
        images = draw.integers(0, 255, (120, side, side)).astype(np.uint8)
        labels = np.arange(120) % classes
        np.savez(out / "other.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        changed = json.loads((checkpoint.newest(run) / checkpoint.MANIFEST).read_text())
        changed["config"]["data"] |= {"name": "npz", "path": str(out / "other.npz")}
        (checkpoint.newest(run) / checkpoint.MANIFEST).write_text(json.dumps(changed))
        found = cli("certify", "one", "--out", out, "certify.examples=5")
        assert found.code == 2
        assert "one: was trained on" in found.err
        assert "Traceback" not in found.err


def test_rows_of_another_network_under_this_ones_header_are_told(ask, out):
    """The header names this network; the classes of the clean images do not fit it."""
    assert ask("evaluate").code == 0
    (path,) = results(out, "attacked", ".tsv")
    header, columns, *rows = path.read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    at = columns.split("\t")
    for row in cells:
        other = str((int(row[at.index("predict")]) + 1) % 3)
        right = other == row[at.index("label")]
        row[at.index("predict")] = row[at.index("becomes")] = other
        row[at.index("robust")] = str(int(right))
        row[at.index("broken_by")] = "-" if right else "clean"
        row[at.index("step")], row[at.index("distance")] = "-1", "0.0"
        row[at.index("attacks")] = "pgd:-1" if right else "-"
    path.write_text("\n".join([header, columns, *("\t".join(row) for row in cells)]) + "\n")
    found = ask("evaluate")
    assert found.code == 2
    assert "another function (8 of 8 images have other classes)" in found.err


def test_labels_of_published_images_that_were_replaced_are_told(ask, out):
    published(out / "C")
    more = (f"corruptions.folder={out / 'C'}",)
    assert ask("evaluate", *more).code == 0
    labels = np.load(out / "C" / "labels.npy")
    labels[20] = (labels[20] + 1) % 3  # of the second severity
    np.save(out / "C" / "labels.npy", labels)
    found = ask("evaluate", *more)
    assert found.code == 2
    assert "belongs to another dataset, labels differ" in found.err


def test_a_part_of_a_log_and_other_labels_in_it_are_reported(run, out, cli):
    assert cli("certify", "one", "--out", out, "certify.examples=9").code == 0
    (log,) = (run / "certified").glob("*.tsv")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:6]))
    found = cli("report", "one", "--out", out)
    assert found.code == 0
    assert "is not finished: it has 4 of 9 examples" in found.out
    changed = [line.split("\t") for line in lines]
    wrong = next(row for row in changed[2:] if row[1] != row[2])
    wrong[1], wrong[4] = (wrong[2], "1") if int(wrong[2]) >= 0 else ("7", "0")
    log.write_text("".join("\t".join(row) for row in changed))
    found = cli("report", "one", "--out", out)
    assert found.code == 0
    assert "its 9 examples and their labels do not match its header" in found.out
    log.write_text("".join(lines)[:-3])
    found = cli("report", "one", "--out", out)
    assert (found.code, "its last line is torn and was left out" in found.out) == (0, True)


def test_the_first_examples_of_data_sorted_by_class_are_warned_of(ask, out):
    with np.load("data.npz") as archive:
        arrays = dict(archive)
    order = np.argsort(arrays["y_test"], kind="stable")
    sorted_ = {**arrays, "x_test": arrays["x_test"][order], "y_test": arrays["y_test"][order]}
    np.savez("data.npz", **sorted_)
    for stage in ("certify", "evaluate"):
        found = ask(stage, "certify.examples=5", "evaluate.examples=5")
        assert found.code == 0, found.err
        assert "examples cover only 1 of 3 classes" in found.err


@pytest.fixture
def own(home, out, cli):
    """A run of the user's network and data, measured in all three ways, and its settings."""
    settings = (f"model.name={home}:Net", "data.name=npz", f"data.path={out / 'data.npz'}",
                "name=own", f"out={out}", "train.epochs=1", "train.batch_size=16",
                "certified_fast.every=0")  # fmt: skip
    import_anew(home)
    config = compose(leaves_of_arguments(settings), methods.get)
    runs.identify(out / "own", "train", to_dict(config))
    train_here(config, out / "own", 1)
    for stage, _, _, more in STAGES:
        found = cli(stage, "own", "--out", out, f"model.name={home}:Net", *FAST, *more)
        assert found.code == 0, found.err
    return out / "own"


def test_report_leaves_out_results_of_another_function(own, home, out, cli):
    named = ("report", "own", "--out", out, f"model.name={home}:Net")
    whole = cli(*named)
    assert (whole.code, "warning" in whole.err) == (0, False), whole.err
    assert [whole.out.count(head) for head in ("| log |", "| run | protocol", "| run | corr")] == [
        1, 1, 1]  # fmt: skip
    corrupted_head = next(line for line in whole.out.splitlines() if "| run | corr" in line)
    assert corrupted_head.endswith("| clean error | error/p_2 |")
    unnamed = cli("report", "own", "--out", out)
    assert unnamed.code == 0
    assert f"add model.name={home}:Net to the command" in unnamed.err
    rewrite(home, SHIFTED)
    import_anew(home)
    found = cli(*named)
    assert found.code == 2
    assert found.err.count("it is of another function") == 3


def test_report_leaves_out_results_of_other_images_and_labels(own, home, out, cli):
    arrays = dict(np.load(out / "data.npz"))
    images = 255 - arrays["x_test"]
    for changed, what in (({"x_test": images}, "images"),
                          ({"y_test": arrays["y_test"][::-1]}, "labels")):  # fmt: skip
        np.savez(out / "data.npz", **arrays | changed)
        found = cli("report", "own", "--out", out, f"model.name={home}:Net")
        assert found.code == 2
        assert found.err.count(f"it is of other {what}") == 3
    np.savez(out / "moved.npz", **arrays)
    (out / "data.npz").unlink()
    gone = cli("report", "own", "--out", out, f"model.name={home}:Net")
    assert (gone.code, "are not compared with its network and data" in gone.err) == (0, True)
    moved = (f"model.name={home}:Net", f"data.path={out / 'moved.npz'}")
    again = cli("report", "own", "--out", out, *moved)
    assert (again.code, "warning" in again.err) == (0, False)


@pytest.mark.parametrize("name", ["error/p_2", "mCE_Lp"])
def test_report_refuses_corruption_figures_that_their_counts_contradict(own, home, out, cli, name):
    if name == "mCE_Lp":
        (earlier,) = (own / "corrupted").glob("*.json")
        earlier.unlink()
        asked = ("corruptions.sets=[C1]", "corruptions.examples=6")
        found = cli("evaluate", "own", "--out", out, f"model.name={home}:Net", *asked)
        assert found.code == 0, found.err
    (path,) = (own / "corrupted").glob("*.json")
    whole = json.loads(path.read_text())
    assert name in whole["metrics"]
    whole["metrics"][name] = 0.01
    path.write_text(json.dumps(whole))
    found = cli("report", "own", "--out", out, f"model.name={home}:Net")
    assert found.code == 2
    assert f"states {name} = 0.0100, but its counts give" in found.err


def test_report_says_so_of_a_log_by_its_path_and_of_a_run_without_checkpoints(own, home, out, cli):
    (log,) = (own / "certified").glob("*.tsv")
    np.savez(out / "data.npz", **dict(np.load(out / "data.npz")) | {"y_test": np.zeros(15, int)})
    named = ("report", log, "--out", out, f"model.name={home}:Net")
    found = cli(*named)
    assert found.code == 0
    assert f"warning: {log} is of other labels" in found.err
    for folder in checkpoint.folders(own):
        shutil.rmtree(folder)
    gone = cli("report", "own", "--out", out, f"model.name={home}:Net")
    assert gone.code == 0
    assert "are not compared with its network and data: own has no checkpoint" in gone.err


def test_report_compares_published_images(own, home, out, cli):
    published_folder = out / "published"
    published(published_folder)
    model = f"model.name={home}:Net"
    settings = (f"corruptions.folder={published_folder}",)
    measured = cli("evaluate", "own", "--out", out, model, *settings)
    assert measured.code == 0, measured.err
    unnamed = cli("report", "own", "--out", out, model)
    assert "give its corruptions.folder=... to compare its published images" in unnamed.err
    named = ("report", "own", "--out", out, model, f"corruptions.folder={published_folder}")
    same = cli(*named)
    assert (same.code, "warning" in same.err) == (0, False)
    published(published_folder, 9)
    other = cli(*named)
    assert "it is of other images or labels (" in other.err


def test_logs_of_two_norms_are_two_reports_and_nothing_of_an_earlier_one_stays(own, home, out, cli):
    model = f"model.name={home}:Net"
    done = cli(
        "certify", "own", "--out", out, model, *FAST, "certify.noise=uniform", "certify.norm=l1"
    )
    assert done.code == 0, done.err
    (out / "report").mkdir(exist_ok=True)
    (out / "report" / "votes_linf.png").write_text("of an earlier report")
    found = cli("report", "own", "--out", out, model, "--json")
    assert found.code == 0, found.err
    plain = json.loads(found.out)
    assert {row["norm"] for row in plain["logs"]} == {"l1", "l2"}
    assert {row["noise"] for row in plain["logs"]} == {"gaussian", "uniform"}
    names = {path.name for path in (out / "report").iterdir()}
    assert {"certified_l1.png", "certified_l2.png", "votes_l1.png"} <= names
    assert "votes_linf.png" not in names


def test_a_network_that_sees_its_batch_is_named(home, out, cli):
    rewrite(
        home,
        """
    def forward(self, x):
        return super().forward(x) - super().forward(x).mean(0)
""",
    )
    import_anew(home)
    for more in (("evaluate.attacks=[]",), ("corruptions.rows=[[2, 0.5]]",)):
        found = cli("evaluate", "plain.pth", f"model.name={home}:Net", "data.name=npz",
                    "data.path=data.npz", "--out", out, *more)  # fmt: skip
        assert found.code == 0, found.err
        assert "warning: the network is not a function of one image: an image's logits" in found.err
