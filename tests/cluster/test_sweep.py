"""Sweeps with early stopping and failing trials: study, store, leaderboard, CPUs."""

import json
import shutil
import sqlite3
import threading
from dataclasses import asdict, replace
from pathlib import Path

import kit
import optuna
import pytest
from ray.tune import with_parameters
from test_worker import assert_same_weights, undisturbed
from waiting import wait

from raybust import config as configuration
from raybust import methods, track
from raybust.cluster import sweep
from raybust.cluster.retention import Retention
from raybust.cluster.runlog import Job
from raybust.cluster.scheduler import NUMBER
from raybust.cluster.trial import TrialActor
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError, WorkError
from raybust.search.board import board_of
from raybust.search.space import Space
from raybust.search.study import Study
from raybust.stages import tuning

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]

BAD, WILD = 1e-7, 1e9
# `train.keep` changes no metric: trials 0, 1 and 5 are equal, so none of them is stopped.
SPACE = {
    "train.lr": {"choice": [0.05, BAD, WILD], "default": 0.05},
    "train.keep": {"choice": [2, 3, 4], "default": 2},
}
POINTS = [
    {"train.lr": 0.05, "train.keep": 3},
    {"train.lr": BAD, "train.keep": 2},
    {"train.lr": BAD, "train.keep": 3},
    {"train.lr": WILD, "train.keep": 2},
    {"train.lr": 0.05, "train.keep": 4},
]
FIRST = {"train.lr": 0.05, "train.keep": 2}
SETTINGS = (
    "name=search", "tune.trials=6", "tune.metric=validation/accuracy", "tune.reduction=2",
    "tune.finalists=1", "tune.concurrent=2", "evaluate.attacks=[fgsm]", "evaluate.examples=20",
    "evaluate.eps=[0.05]",
)  # fmt: skip


def run(out, *settings, block=SPACE, said=None, resume=True, **values):
    echo = [].append if said is None else said.append
    leaves = [leaf for leaf in kit.leaves(out, *settings, **values) if leaf.key not in block]
    config = configuration.compose(leaves, methods.get)
    return tuning.tune(config, leaves, block, address=None, resume=resume, verbose=False, echo=echo)


def study_of(out, name="search"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{out / name / 'study.db'}")


def actors_of(cluster):
    """Ids of all actors of one-worker trials, past and present."""
    from ray.util.state import list_actors

    everything = list_actors(address=cluster.get_runtime_context().gcs_address, limit=1000)
    return {actor.actor_id for actor in everything if "ResourceTrainable" in actor.class_name}


@pytest.fixture(scope="module")
def earlier_actors(cluster):
    """The actors of other modules' sweeps on this Ray."""
    return actors_of(cluster)


@pytest.fixture(scope="module")
def searched(cluster, new_out, earlier_actors):
    """(out, leaderboard, free CPUs seconds later) of a sweep of six trials."""
    out = new_out("searched")
    board = run(out, *SETTINGS, tune__points=POINTS)
    free = wait(lambda: cluster.available_resources().get("CPU") == 2, 60, "all CPUs are free")
    return out, board, free


def test_the_study_has_every_trial_in_its_true_state(searched):
    trials = study_of(searched[0]).get_trials()
    states = [trial.state.name for trial in trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "FAIL", "COMPLETE"]
    epochs = [[int(epoch) for epoch in t.user_attrs.get("history", ())] for t in trials]
    assert epochs == [[1, 2, 3], [1, 2, 3], [1], [1], [], [1, 2, 3]]
    assert [len(t.intermediate_values) for t in trials] == [0, 0, 1, 1, 0, 0]  # for tpe
    assert trials[0].value == trials[1].value == trials[5].value > 0.5
    assert trials[0].user_attrs["point"] == {"train.lr": 0.05, "train.keep": 2}
    reason = trials[4].user_attrs["reason"]
    assert "nan in epoch 1" in reason
    assert "\n" not in reason


def test_a_diverged_trial_is_not_tried_again(searched):
    journal = kit.lines(searched[0] / "search" / "trials" / "0004" / "journal.jsonl")
    assert [entry["e"] for entry in journal if entry["e"] in ("start", "resume")] == ["start"]


def test_all_cpus_are_free_again(searched):
    assert searched[2]


def test_the_leaderboard_ranks_what_trained_to_its_end(searched):
    out, board, _ = searched
    assert [entry.number for entry in board.entries] == [0, 1, 5]
    assert (board.count("PRUNED"), board.count("FAIL")) == (2, 1)
    best, second = board.entries[:2]
    assert best.log is not None
    assert best.certified["certified/acr"] > 0
    assert 0.5 < best.accuracy <= 1
    assert (best.examples, second.examples) == (20, None)
    assert 0 < best.attacked["attacked/robust_accuracy"] <= best.accuracy
    assert (second.log, second.certified, second.accuracy, second.attacked) == (None,) * 4
    assert best.value == best.metrics["validation/accuracy"]
    journal = kit.journal_metrics(out / "search" / "trials" / "0000")[3]
    assert {k: v for k, v in best.metrics.items() if k not in kit.CLOCKS} == journal
    stored = json.loads((out / "search" / "leaderboard.json").read_text())
    assert stored == json.loads(json.dumps(board.plain()))
    table = (out / "search" / "leaderboard.md").read_text()
    assert "6 trials: 3 trained to the end, 2 stopped early, 1 failed" in table
    assert "test accuracy (20 images)" in table
    assert "clean accuracy of the first 20 test examples; certificates of 30 test" in table
    assert (board.folder / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    assert len(best.log.read_text().splitlines()) == 2 + 30


def test_only_the_weights_of_what_trained_to_its_end_stay_here_and_in_mlflow(searched):
    out, _, _ = searched
    found = kit.runs_of(out)
    for number in range(6):
        folder = out / "search" / runs.TRIALS / f"{number:04d}"
        whole = number in (0, 1, 5)
        files = [sorted(file.name for file in one.iterdir()) for one in checkpoint.folders(folder)]
        kept = [["manifest.json", *["model.safetensors"] * whole]]
        assert files == (kept if number != 4 else [])  # 4 diverged in its first epoch
        stored = kit.artifacts_of(out, found[f"search/{number}"], "checkpoint")
        assert ("checkpoint/model.safetensors" in stored) == whole


def test_mlflow_has_the_sweep_and_each_trial_once(searched):
    found = kit.runs_of(searched[0])
    assert set(found) == {"search", *(f"search/{number}" for number in range(6))}
    parent = found.pop("search")
    assert parent.info.status == "FINISHED"
    assert {"leaderboard.md", "leaderboard.json", "leaderboard.png"} <= kit.artifacts_of(
        searched[0], parent
    )
    assert parent.data.metrics["best/validation/accuracy"] > 0.5
    ends = {}
    for name, child in found.items():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["raybust.sweep"] == "search"
        assert child.data.params["train.lr"] in ("0.05", "1e-07", "1000000000.0")
        ends[name[-1]] = (child.info.status, child.data.tags["raybust.stop_reason"])
        steps = {step for _, step in kit.points_of(searched[0], child)}
        last = {"2": 1, "3": 1, "4": 0}.get(name[-1], 3)
        assert steps - {0} == set(range(1, last + 1)), name
        assert {"config.yaml", "environment.yaml"} <= kit.artifacts_of(searched[0], child)
    assert ends == {
        "0": ("FINISHED", "finished"), "1": ("FINISHED", "finished"),
        "2": ("FINISHED", "pruned"), "3": ("FINISHED", "pruned"),
        "4": ("FAILED", "failed"), "5": ("FINISHED", "finished"),
    }  # fmt: skip
    best = kit.artifacts_of(searched[0], found["search/0"], "certified")
    assert {name.rpartition(".")[2] for name in best} == {"tsv", "png", "md"}
    assert "certified/acr" in found["search/0"].data.metrics
    assert "certified/acr" not in found["search/1"].data.metrics


def test_actors_are_reused(searched, cluster, earlier_actors):
    made = actors_of(cluster) - earlier_actors
    assert 1 <= len(made) <= 2, f"{len(made)} actors for six trials, two at a time"


def test_an_actor_and_a_trainer_train_the_same(searched, trained):
    """A one-worker trial in its actor versus the same configuration in a TorchTrainer."""
    trial, folder = searched[0] / "search" / "trials" / "0000", trained[1]
    different = configuration.difference(
        runs.read_identity(trial).config, runs.read_identity(folder).config
    )
    assert {text.partition(":")[0].partition(".")[0] for text in different} <= {
        "name", "out", "track", "tune", "evaluate",
    }  # fmt: skip
    assert kit.journal_metrics(folder) == kit.journal_metrics(trial)
    assert_same_weights(checkpoint.newest(folder), checkpoint.newest(trial))


def test_the_same_command_repeats_nothing_and_gives_the_same_leaderboard(searched):
    out, board, _ = searched
    trials = out / "search" / "trials"
    before = {path: path.stat().st_mtime_ns for path in trials.rglob("epoch-*/*")}
    ended = [trial.datetime_complete for trial in study_of(out).get_trials()]
    assert run(out, *SETTINGS, tune__points=POINTS).plain() == board.plain()
    assert {path: path.stat().st_mtime_ns for path in trials.rglob("epoch-*/*")} == before
    assert [trial.datetime_complete for trial in study_of(out).get_trials()] == ended


def test_more_trials_go_on_with_a_sweep_that_has_no_name_and_its_new_best_is_in_mlflow(out):
    """A sweep's identity depends neither on the number of trials nor on later measurements."""
    block = {"train.lr": {"choice": [BAD, 0.05], "default": BAD}}
    settings = ("tune.metric=validation/accuracy", "tune.scheduler=none", "train.epochs=1")
    points = [{"train.lr": 0.05}]
    first = run(
        out, *settings, "tune.trials=1", "tune.finalists=0", block=block, tune__points=points
    )
    again = run(
        out, *settings, "tune.trials=2", "tune.finalists=1", "certify.n=100", block=block,
        tune__points=points,
    )  # fmt: skip
    assert again.folder == first.folder
    assert [entry.number for entry in again.entries] == [1, 0]
    assert again.best.value > first.best.value
    stored = kit.runs_of(out)[first.sweep]
    assert stored.data.metrics["best/validation/accuracy"] == again.best.value
    other = block | {"train.keep": {"choice": [2, 3], "default": 2}}
    apart = run(
        out, *settings, "tune.trials=1", "tune.finalists=0", block=other, tune__points=points
    )
    assert apart.folder != first.folder


def test_another_space_under_that_name_is_refused(searched):
    block = SPACE | {"method.sigma": {"float": [0.1, 0.5]}}
    with pytest.raises(RequestError, match=r"search exists|search: exists with another"):
        run(searched[0], *SETTINGS, block=block, tune__points=POINTS)


def test_a_killed_actor_goes_on_from_its_last_checkpoint(out, tmp_path):
    block = {"train.keep": {"choice": [2, 3], "default": 2}}
    settings = (
        "name=killed", "tune.trials=1", "tune.finalists=0", "train.epochs=6", "model.width=24",
        "tune.scheduler=none",
    )  # fmt: skip
    trial, killed = out / "killed" / "trials" / "0000", []

    def kill():
        wait((trial / checkpoint.folder_name(2)).exists, 60, "the second checkpoint")
        for process in kit.descendants(*kit.ACTORS):
            process.kill()
            killed.append(process)

    thread = threading.Thread(target=kill)
    thread.start()
    board = run(out, *settings, block=block)
    thread.join()
    assert killed
    assert [entry.number for entry in board.entries] == [0]
    starts = [e["e"] for e in kit.lines(trial / "journal.jsonl") if e["e"] in ("start", "resume")]
    assert starts == ["start", "resume"]
    config = configuration.from_dict(runs.read_identity(trial).config, methods.get)
    path, metrics = undisturbed(config, tmp_path)
    assert kit.journal_metrics(trial) == metrics
    assert_same_weights(path, checkpoint.newest(trial))


def test_an_actor_trains_nothing_where_a_trial_had_trained_to_its_end(trained, tmp_path):
    """Its run is not resumed either; the end of the sweep closes it if necessary."""
    folder = shutil.copytree(trained[1], tmp_path / "0000")
    before = (folder / runs.JOURNAL).read_bytes()
    identity = runs.read_identity(folder)
    job = Job(identity.config, str(folder), identity.uid, "s/0")
    actor = with_parameters(TrialActor, uri=kit.uri(trained[0]))({"job": asdict(job)})
    last = checkpoint.read_manifest(checkpoint.newest(folder))["metrics"]
    assert actor.step() == {**last, "complete": True, "done": True}
    actor.cleanup()
    assert (folder / runs.JOURNAL).read_bytes() == before


def test_a_sweep_without_a_finished_trial_says_why(out):
    block = {"train.lr": {"choice": [WILD, 2 * WILD]}}
    with pytest.raises(WorkError, match=r"no trial trained to the end.*nan in epoch 1"):
        run(out, "name=lost", "tune.trials=2", "train.epochs=1", block=block)
    track.sync(out / "lost", kit.uri(out), out, deadline_s=120)  # what a loaded machine left
    found = kit.runs_of(out)
    assert found["lost"].info.status == "FAILED"
    assert len(found) == 3


NESTED = (
    "name=nested", "tune.trials=2", "cluster.workers=2", "cluster.cpus_per_worker=0.5",
    "tune.metric=validation/accuracy", "tune.reduction=2", "train.epochs=25",
    "tune.finalists=0", "tune.concurrent=1", "certified_fast.every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def nested(cluster, new_out):
    """(out, leaderboard) of a sweep of two two-worker trials, the second stopped early."""
    out = new_out("nested")
    return out, run_nested(out)


def run_nested(out):
    block = {"train.lr": {"choice": [0.05, BAD], "default": 0.05}}
    return run(out, *NESTED, block=block, tune__points=[{"train.lr": BAD}])


@pytest.mark.slow
def test_trials_of_two_workers(nested, cluster):
    out, board = nested
    assert [entry.number for entry in board.entries] == [0]
    assert [t.state.name for t in study_of(out, "nested").get_trials()] == ["COMPLETE", "PRUNED"]
    manifest = checkpoint.read_manifest(checkpoint.newest(out / "nested" / "trials" / "0000"))
    assert manifest["workers"] == 2
    found = kit.runs_of(out)
    assert set(found) == {"nested", "nested/0", "nested/1"}
    last = max(step for _, step in kit.points_of(out, found["nested/1"]))
    assert last < 25, "it was not stopped"  # workers continue until the stop arrives
    assert found["nested/1"].info.status == "FINISHED"
    assert found["nested/1"].data.tags["raybust.stop_reason"] == "pruned"
    wait(lambda: cluster.available_resources().get("CPU") == 2, 60, "all CPUs are free")


@pytest.mark.slow
def test_a_trial_that_had_trained_to_its_end_when_the_driver_died_is_complete(nested):
    """Its last checkpoint exists, but the study does not know."""
    out, board = nested
    with sqlite3.connect(out / "nested" / "study.db") as study:
        study.execute(
            "update trials set state = 'RUNNING', datetime_complete = null where number = 0"
        )
        study.execute("delete from trial_values")
        keys = "key = 'metrics' or key = 'history'"
        study.execute(f"delete from trial_user_attributes where trial_id = 1 and ({keys})")
    again = run_nested(out)
    states = [trial.state.name for trial in study_of(out, "nested").get_trials()]
    assert states == ["COMPLETE", "PRUNED"]
    assert again.entries[0].value == board.entries[0].value
    assert again.entries[0].metrics == board.entries[0].metrics
    steps = [e["step"] for e in kit.lines(out / "nested/trials/0000/journal.jsonl") if "step" in e]
    assert steps == list(range(1, 26)), "an epoch was trained again"


# Tune's view of the study, without Ray


@pytest.fixture
def searcher(tmp_path):
    leaves = [leaf for leaf in kit.leaves(tmp_path) if leaf.key not in SPACE]
    config = configuration.compose(leaves, methods.get)
    study = Study(config, Space.parse(SPACE), tmp_path, "mine", [FIRST])
    job = Job({}, str(tmp_path), "parent", "s")
    told = []
    plan = sweep.Sweep(config, leaves, study, tmp_path, job)
    retention = Retention(config, study, tmp_path, 0)
    search = sweep.StudySearch(
        plan, lambda record, running: told.append(record), retention, interrupted=[], left=2
    )
    return search, study, told


def result(epoch, value=0.5, **more):
    return {"epoch": epoch, "certified_fast/acr": value, "train/loss": 1.0, **more}


def test_every_trial_knows_what_it_learns_from(searcher):
    """Its own settings of the method do not matter; a worker compares its data with this."""
    search, _, _ = searcher
    plan, plain = search._plan, configuration.to_dict(search._plan.config)
    plain["method"]["sigma"] = 0.9
    search._plan = replace(
        plan,
        job=replace(plan.job, config=plain, inputs="data+init"),
        code_of=lambda config: (config.method.sigma,),
    )
    job = search.suggest("a")["job"]
    assert job["code"] == (job["config"]["method"]["sigma"],)
    assert job["config"]["method"] != plain["method"]
    assert job["inputs"] == "data"
    assert runs.read_identity(Path(job["folder"])).data == "data"


def test_a_trial_that_fails_after_an_epoch_is_failed_not_pruned(searcher):
    search, study, told = searcher
    assert search.suggest("a")["job"]["name"] == "s/0"
    search.on_trial_result("a", result(1))
    search.on_trial_complete("a", result(1, float("nan"), failure="it broke", done=True))
    (record,) = study.records()
    assert (record.state, record.reason, record.epoch) == ("FAIL", "it broke", 1)
    assert told == [record]


@pytest.mark.parametrize(
    ("final", "error", "state"),
    [
        (result(2, complete=True), False, "COMPLETE"),
        (result(2, complete=False), False, "PRUNED"),
        (result(1), False, "PRUNED"),
        (None, False, "PRUNED"),
        (None, True, "FAIL"),
        (result(2, float("nan"), complete=True), False, "FAIL"),
        (result(2, float("inf"), complete=True), False, "FAIL"),
    ],
)
def test_how_a_trial_ends(searcher, final, error, state):
    search, study, told = searcher
    search.suggest("a")
    search.on_trial_result("a", result(1))
    search.on_trial_complete("a", final, error)
    (record,) = study.records()
    assert record.state == state
    assert told == [record]
    assert (record.reason is None) == (state != "FAIL")


def test_a_trial_that_met_a_full_disk_ends_the_sweep_and_stays_open(searcher):
    search, study, told = searcher
    search.suggest("a")
    search.on_trial_result("a", result(1))
    full = "OSError: [Errno 28] No space left on device: 'model.safetensors'"
    with pytest.raises(WorkError, match=r"trial 0: .*No space left"):
        search.on_trial_complete("a", result(1, float("nan"), failure=full, done=True))
    assert [(r.state, r.epoch) for r in study.records()] == [("RUNNING", 1)]
    assert told == []


@pytest.mark.parametrize("begin", ["", "s/0: "], ids=["one worker", "several"])
def test_three_trials_that_lack_the_metric_end_the_sweep(searcher, begin):
    search, study, _ = searcher
    search._left = 9
    for name in "abc":
        search.suggest(name)
        lacking = f"{begin}tune.metric: no epoch reports gaussian/any"
        search.on_trial_complete(name, result(1, float("nan"), failure=lacking, done=True))
    assert search.suggest("d") == "FINISHED"
    assert [record.state for record in study.records()] == ["FAIL"] * 3


def test_a_run_left_open_is_ended_when_nothing_is_left_to_do(searcher):
    """As after a kill between a trial's end and its delivery to MLflow."""
    search, *_ = searcher
    job = Job(**search.suggest("a")["job"])
    search.on_trial_complete("a", result(1, complete=True))
    with track.Journal(Path(job.folder) / runs.JOURNAL) as journal:
        journal.start(job.uid, "raybust", job.name)
    plan = search._plan
    done = replace(plan.config, tune=replace(plan.config.tune, trials=1))
    sweep.run_trials(
        replace(plan, config=done), "sqlite:///nowhere.db", lambda record, running: None
    )
    last = kit.lines(journal.path)[-1]
    assert (last["e"], last["status"], last["reason"]) == ("end", "FINISHED", "finished")


def test_suggestions_end_with_the_budget(searcher):
    search, study, _ = searcher
    jobs = [search.suggest(name) for name in "ab"]
    assert [job["job"]["parent"] for job in jobs] == ["parent", "parent"]
    assert [job[NUMBER] for job in jobs] == [0, 1]
    assert search.suggest("c") == "FINISHED"
    assert len(study.records()) == 2
    assert asdict(study.records()[0])["point"] == {"train.lr": 0.05, "train.keep": 2}


def test_objectives_constraints_and_a_budget_in_passes(cluster, new_out):
    """Two objectives under a constraint that only the good rate meets, equal passes; warm start."""
    out = new_out("front")
    space = {
        "method.name": {"choice": ["gaussian", "standard"], "default": "standard"},
        "method.sigma": {"float": [0.1, 0.5], "when": {"method.name": "gaussian"}},
        "train.lr": {"choice": [0.05, BAD], "default": 0.05},
    }
    points = [{"method.name": name, "train.lr": BAD} for name in space["method.name"]["choice"]]
    said = []
    settings = (
        "name=front", "tune.trials=4", "train.passes=6", "tune.scheduler=none", "tune.finalists=9",
        "tune.objectives=[max certified_fast/acr,max validation/accuracy]",
        "tune.constraints=[validation/accuracy >= 0.5]", "certified_fast.every=0.6",
    )  # fmt: skip
    board = run(out, *settings, block=space, said=said, tune__points=points)
    assert [e.feasible for e in board.entries] == [True, True, False, False]
    assert {e.method for e in board.entries[:2]} == {"standard", "gaussian"}
    for entry in board.entries:
        assert 6 <= entry.metrics["passes/per_image"] < 6.3
        assert entry.history.keys() == {2, 4}, "0.6 of the budget ends in the second of four epochs"
    assert set(board.pareto) <= {e.number for e in board.entries[:2]} == {0, 1}
    assert {e.number for e in board.entries if e.final} == {0, 1}
    page = (out / "front" / "report.html").read_text()
    assert "validation/accuracy &gt;= 0.5" in page
    assert board_of(out / "front").plain() == board.plain()
    warm = run(
        out, *settings[1:], "name=warm", "tune.warm_start=front", "tune.finalists=0", block=space,
        said=said, tune__points=points,
    )  # fmt: skip
    assert "warm start from 4 trials of front" in said
    assert len(warm.entries) + len(warm.others) == 4
    assert len(study_of(out, "warm").get_trials()) == 8


def test_a_constraint_that_nothing_meets_is_told_early(cluster, new_out):
    said = []
    settings = ("name=never", "tune.trials=6", "train.epochs=1", "tune.finalists=1")
    impossible = "tune.constraints=[validation/accuracy >= 1]"
    block = {"seed": {"int": [0, 99]}}
    board = run(
        new_out("never"), *settings, impossible, "tune.scheduler=none", block=block, said=said
    )
    told = [text for text in said if "none of the first 5 trials meets validation/accuracy" in text]
    assert len(told) == 1
    assert "the best has 0." in told[0]
    assert not any(entry.final for entry in board.entries)
    assert any("no finalist" in text for text in said)


def test_a_metric_that_no_epoch_reports_ends_the_sweep_and_says_what_there_is(cluster, new_out):
    out = new_out("lacking")
    settings = ("name=lacking", "tune.trials=30", "tune.metric=gaussian/nothing")
    with pytest.raises(WorkError, match="no epoch reports gaussian/nothing"):
        run(out, *settings, block={"seed": {"int": [0, 99]}})
    assert len(study_of(out, "lacking").get_trials()) <= 6
    assert (out / "lacking" / "report.html").exists()


def test_a_study_that_cannot_be_written_ends_the_sweep_in_one_line(new_out, cluster, monkeypatch):
    out, report, many = new_out("unwritable"), Study.report, []

    def full(self, *values):
        many.append(values)
        if len(many) == 2:
            raise optuna.exceptions.StorageInternalError("disk I/O error")
        report(self, *values)

    block = {"seed": {"int": [0, 99]}}
    monkeypatch.setattr(Study, "report", full)
    with pytest.raises(WorkError, match=r"sweep aborted: .*disk I/O error; rerun the same command"):
        run(out, "name=full", "tune.trials=2", block=block)
    monkeypatch.undo()
    board = run(out, "name=full", "tune.trials=2", block=block)
    assert sorted(entry.number for entry in (*board.entries, *board.others)) == [0, 1]
    assert kit.runs_of(out)["full"].info.status == "FINISHED"
