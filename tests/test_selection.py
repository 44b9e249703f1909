"""`train.select`: which epoch's network a run uses, on disk, after kills, and by its metrics."""

import itertools
import json
import shutil

import pytest
import torch
from few import few_digits

from raybust import config as configuration
from raybust import data, methods
from raybust.config.measured import SELECTED, standing
from raybust.disk import checkpoint, runs
from raybust.disk.strip import strip
from raybust.errors import RequestError
from raybust.reporting.columns import columns_of
from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord
from raybust.track import Journal
from raybust.track.journal import standing_of
from raybust.trained import load_trained
from raybust.training import loop
from raybust.training.fit import fit
from raybust.training.selection import Selection

CPU = torch.device("cpu")
KEY = "validation/accuracy"
SCRIPT = (1.0, 3.0, 2.0, 2.0, 3.0)


def make(*settings):
    given = [
        "method.name=gaussian", "model.width=4", "train.batch_size=20", "certified_fast.every=0",
        f"train.epochs={len(SCRIPT)}", f"train.select={KEY}", *settings,
    ]  # fmt: skip
    return configuration.compose(configuration.leaves_of_arguments(given), methods.get)


@pytest.fixture(scope="module")
def few():
    return few_digits()


@pytest.fixture
def scripted(monkeypatch):
    """Validation reports the script's values, one an epoch."""

    def measure(network, *args, epoch, **spent):
        network.eval()
        return {KEY: SCRIPT[epoch - 1]}

    monkeypatch.setattr(loop, "measure", measure)


class KilledError(Exception):
    """In place of a SIGKILL."""


def run(root, few, *settings, die=None):
    """Trains or resumes a run as `train_here` does; returns its epochs.

    `die` is the epoch in which it is killed, and after which of the two writes (0, 1 or 2).
    """
    config, found = make(*settings), []
    for progress in fit(config, few, CPU, checkpoint.newest(root)):
        found.append(progress)
        name = checkpoint.folder_name(progress.epoch)
        for done, write in enumerate(
            (
                lambda p=progress: p.keep_selected(root, config.train.keep),
                lambda p=progress, n=name: checkpoint.commit(root, n, p.save, config.train.keep),
            )
        ):
            if die == (progress.epoch, done):
                raise KilledError
            write()
        if die == (progress.epoch, 2):
            raise KilledError
    return found


@pytest.fixture
def epochs(tmp_path, few, scripted):
    """The weights after each epoch of an undisturbed run."""
    run(tmp_path / "all", few, "train.keep=9", "train.select=last")
    return {
        checkpoint.epoch_of(one): checkpoint.read_weights(one)
        for one in checkpoint.folders(tmp_path / "all")
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_best_epoch_is_used_outside_of_those_that_are_kept(tmp_path, few, epochs):
    """The metric is 1, 3, 2, 2, 3: epoch 2, the first of equal ones, and the last stays."""
    run(tmp_path, few)
    assert [checkpoint.epoch_of(one) for one in checkpoint.folders(tmp_path)] == [5, 4]
    used = checkpoint.used(tmp_path)
    assert checkpoint.epoch_of(used) == 2
    assert same(checkpoint.read_weights(used), epochs[2])
    assert not same(epochs[2], epochs[5])  # else this shows nothing
    assert same(checkpoint.read_weights(checkpoint.newest(tmp_path)), epochs[5])
    assert sorted(path.name for path in used.iterdir()) == ["manifest.json", "model.safetensors"]


def test_the_last_epoch_is_used_unless_a_metric_is_named(tmp_path, few, scripted):
    states = run(tmp_path, few, "train.select=last")
    assert checkpoint.used(tmp_path) == checkpoint.newest(tmp_path)
    assert not (tmp_path / checkpoint.SELECTED).exists()
    assert all(state.standing == state.metrics for state in states)
    assert not any(SELECTED in state.metrics for state in states)


@pytest.mark.parametrize("die", list(itertools.product((1, 2, 3, 4), (0, 1, 2))))
def test_the_best_epoch_survives_a_kill_bit_for_bit(tmp_path, few, epochs, die):
    with pytest.raises(KilledError):
        run(tmp_path, few, die=die)
    if checkpoint.newest(tmp_path) is not None:  # measurable between kill and resume
        used = checkpoint.used(tmp_path)
        assert same(checkpoint.read_weights(used), epochs[checkpoint.epoch_of(used)])
    states = run(tmp_path, few)
    used = checkpoint.used(tmp_path)
    assert checkpoint.epoch_of(used) == 2
    assert same(checkpoint.read_weights(used), epochs[2])
    assert states[-1].standing[KEY] == 3.0


def test_a_torn_newest_checkpoint_leaves_the_epoch_that_the_one_before_names(tmp_path, few, epochs):
    with pytest.raises(KilledError):
        run(tmp_path, few, die=(2, 2))
    (checkpoint.newest(tmp_path) / "model.safetensors").write_bytes(b"torn")
    used = checkpoint.used(tmp_path)
    assert checkpoint.epoch_of(used) == 1
    assert same(checkpoint.read_weights(used), epochs[1])
    run(tmp_path, few)
    assert same(checkpoint.read_weights(checkpoint.used(tmp_path)), epochs[2])


def test_a_run_counts_by_the_metrics_of_the_epoch_that_it_uses(tmp_path, few, scripted):
    states = run(tmp_path, few)
    assert [state.metrics[KEY] for state in states] == list(SCRIPT)
    assert [state.standing[KEY] for state in states] == [1, 3, 3, 3, 3]
    assert [state.metrics[SELECTED] for state in states] == [1, 2, 2, 2, 2]
    last, chosen = states[-1], states[1]
    for key in ("epoch", "passes/forward", "train/seconds"):
        assert last.standing[key] == last.metrics[key]
    assert last.standing["train/loss"] == chosen.metrics["train/loss"] != last.metrics["train/loss"]
    assert checkpoint.standing_of(checkpoint.newest(tmp_path)) == last.standing


def test_a_journal_gives_the_same_metrics_as_the_run(tmp_path, few, scripted):
    states = run(tmp_path, few)
    with Journal(tmp_path / runs.JOURNAL) as journal:
        journal.start("key", "experiment", "name")
        for state in states:
            journal.metrics(state.metrics, step=state.epoch)
    assert standing_of(tmp_path / runs.JOURNAL) == [(s.epoch, s.standing) for s in states]


def test_only_epochs_with_every_measurement_compete():
    chosen = Selection("attacked_fast/robust_accuracy")
    script = [(0.1, False), (0.2, True), (0.9, False), (float("nan"), True), (0.3, True)]
    found = []
    for epoch, (value, whole) in enumerate(script, 1):
        metrics = {"attacked_fast/robust_accuracy": value}
        chosen.consider(epoch, metrics, whole=whole)
        found.append(metrics[SELECTED])
    assert found == [1, 2, 2, 2, 5]


def test_measurements_that_are_rare_choose_among_their_epochs(few):
    config = make(
        "train.epochs=4", "attacked_fast.every=2", "train.select=attacked_fast/robust_accuracy",
        "attacked_fast.examples=10",
    )  # fmt: skip
    states = list(fit(config, few, CPU))
    assert [int(state.metrics[SELECTED]) for state in states][:2] == [1, 2]
    assert states[-1].metrics[SELECTED] in (2, 4)
    best = max(s.metrics.get("attacked_fast/robust_accuracy", 0) for s in states)
    assert states[-1].standing["attacked_fast/robust_accuracy"] == best


def test_what_is_spent_is_that_of_the_last_epoch():
    now = {"epoch": 9.0, "passes/forward": 90.0, "train/seconds": 5.0, "a": 1.0, SELECTED: 3.0}
    then = {"epoch": 3.0, "passes/forward": 30.0, "train/seconds": 2.0, "a": 2.0, SELECTED: 3.0}
    assert standing(now, then) == {**now, "a": 2.0}
    assert standing(now, {}) == now


@pytest.fixture
def trained(tmp_path, scripted):
    """A run on all digits in which epoch 2 is the best of five, by the script."""
    folder = tmp_path / "chosen"
    config = make(f"out={tmp_path}", "train.batch_size=500", "data.limit=500")
    runs.identify(folder, "train", configuration.to_dict(config))
    for progress in fit(config, data.load(config.data), CPU):
        progress.keep_selected(folder, 2)
        name = checkpoint.folder_name(progress.epoch)
        checkpoint.commit(folder, name, progress.save, keep=2)
    return folder


def test_a_run_is_measured_with_the_epoch_that_it_uses(trained):
    found = load_trained(trained, [])
    weights = checkpoint.read_weights(trained / checkpoint.SELECTED / "epoch-000002")
    assert same(dict(found.network.state_dict()), weights)
    last = trained / "epoch-000005"
    (note,) = [line for line in found.notes if "epoch" in line]
    assert note == f"chosen uses epoch 2, the best by {KEY}; the last one is {last}"
    other = load_trained(last, [])
    assert same(dict(other.network.state_dict()), checkpoint.read_weights(last))


def test_a_chosen_epoch_that_is_torn_is_an_error(trained):
    shutil.rmtree(trained / checkpoint.SELECTED / "epoch-000002")
    with pytest.raises(RequestError, match=r"selected/epoch-000002 is torn .*epoch-000005"):
        load_trained(trained, [])


@pytest.mark.parametrize("kept", [True, False])
def test_a_trial_that_ended_keeps_both_epochs_without_what_resuming_needs(trained, kept):
    strip(trained, weights=kept)
    names = ["manifest.json", *["model.safetensors"] * kept]
    places = [trained / "epoch-000005", trained / checkpoint.SELECTED / "epoch-000002"]
    for place in places:
        assert sorted(path.name for path in place.iterdir()) == names
    assert checkpoint.folders(trained) == places[:1]
    assert checkpoint.used(trained) == places[1]
    before = json.loads((places[1] / "manifest.json").read_text())
    strip(trained, weights=kept)
    assert json.loads((places[1] / "manifest.json").read_text()) == before


def test_the_leaderboard_shows_which_epoch_is_used(tmp_path):
    entries = tuple(
        TrialRecord(number, "pgd", "COMPLETE", {}, 0.5, {KEY: 0.5, **chosen}, values=values)
        for number, chosen, values in (
            (0, {SELECTED: 7.0}, ((0.5,),)),
            (1, {SELECTED: 6.5}, ((0.5,), (0.5,))),
        )
    )
    board = Leaderboard("s", KEY, "max", entries, (), tmp_path)
    (column,) = [one for one in columns_of(board) if one.head == "epoch used"]
    assert [column.cell(entry) for entry in entries] == ["7", "mean 6.5"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.select=validation/acuracy"], ["train.select", "validation/accuracy"]),
        (["train.select=train/loss"], ["train.select", "'train/loss'"]),
        (["train.select=certified_fast/acr"], ["certified_fast.every=0.05"]),
        (["train.select=attacked_fast/robust_accuracy"], ["attacked_fast.every=0.05"]),
        (
            ["certified_fast.every=1", "train.select=certified_fast/abstention"],
            ["certified_fast/abstention"],
        ),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(settings, words):
    with pytest.raises(RequestError) as caught:
        make(*settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.slow
def test_the_commands_take_the_same_epoch(tmp_path, cli):
    """With a constant rate that is too large, the best of eight epochs is not the last."""
    settings = [
        "model.width=4", "train.epochs=8", "train.lr=1.5", "train.schedule=constant",
        "certified_fast.every=0", "evaluate.attacks=[]", f"track.uri=sqlite:///{tmp_path}/m.db",
    ]  # fmt: skip
    done = cli(
        "train", "method.name=gaussian", *settings, f"train.select={KEY}", "--name", "best",
        "--out", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    journal = standing_of(tmp_path / "best" / runs.JOURNAL)
    chosen = int(journal[-1][1][SELECTED])
    assert chosen < 8, "choose another seed: this one shows nothing"
    assert f"checkpoint  {tmp_path}/best/selected/epoch-{chosen:06d}" in done.out
    assert f"last epoch  {tmp_path}/best/epoch-000008" in done.out
    assert f"validation accuracy {journal[-1][1][KEY]:.4f}" in done.out
    found = cli("evaluate", "best", "--out", tmp_path, "evaluate.split=validation")
    assert found.code == 0, found.err
    assert f"uses epoch {chosen}" in found.out + found.err
    assert f"{journal[-1][1][KEY]:.4f}" in found.out, found.out
