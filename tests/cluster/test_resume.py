"""Kill -9 and Ctrl-C of `raybust tune`, as by a user: rerunning the command resumes."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import kit
import optuna
import psutil
import pytest
from waiting import names, wait

from raybust.disk import checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TRIALS, EPOCHS = 6, 16
SPACE = f"""
name: interrupted
method: {{name: gaussian, sigma: 0.25}}
model: {{width: 16}}
train: {{epochs: {EPOCHS}, batch_size: 128}}
certified_fast: {{examples: 20, n: 100}}
certify: {{examples: 20, n: 200}}
evaluate: {{attacks: []}}
tune: {{trials: {TRIALS}, scheduler: none, finalists: 1, metric: validation/accuracy}}
search:
  train.lr: {{float: [0.02, 0.2], log: true, default: 0.05}}
"""


class Command:
    """`raybust` in its own process."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "raybust", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
            # Processes that a script starts with & ignore Ctrl-C, as would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def stop(self, number):
        children = psutil.Process(self.process.pid).children(recursive=True)
        agents = {pid for pid, name in names(children).items() if "Agent" in name}
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        _, alive = psutil.wait_procs([c for c in children if c.pid not in agents], timeout=30)
        assert alive == [], f"left behind: {[process.cmdline()[:1] for process in alive]}"
        for child in children:  # after kill -9, Ray's agents notice only later
            with contextlib.suppress(psutil.Error):
                child.kill()
        return self.process.returncode, out, err


class Sweep(Command):
    """`raybust tune`."""

    def __init__(self, out, *arguments):
        space = out / "space.yaml"
        space.write_text(SPACE)
        self.trials, self.database = out / "interrupted/trials", out / "interrupted/study.db"
        super().__init__("tune", space, "--out", out, *arguments)

    def reaches(self, finished):
        """Waits until a number of trials are finished and another one, which has checkpoints, still
        has half of its epochs to go."""

        def reached():
            assert self.process.poll() is None, self.process.communicate()[1]
            states = states_of(self.database)
            done = [number for number, state in states.items() if state == "COMPLETE"]
            open_ = [number for number, state in states.items() if state == "RUNNING"]
            newest = {n: checkpoint.newest(self.trials / f"{n:04d}") for n in open_}
            begun = [
                number
                for number, path in newest.items()
                if path is not None and checkpoint.epoch_of(path) <= EPOCHS // 2
            ]
            return len(done) >= finished and begun

        return wait(reached, 120, f"{finished} finished trials and one in the middle")


def states_of(database):
    """Number to state of the study's trials; creates nothing if there is no study yet."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return dict(connection.execute("select number, state from trials order by number"))
    except sqlite3.OperationalError:
        return {}


def marks(out):
    """What must not change about a finished trial: its value, its end, its checkpoint."""
    study = optuna.load_study(
        study_name="interrupted", storage=f"sqlite:///{out / 'interrupted/study.db'}"
    )
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE":
            newest = checkpoint.newest(out / "interrupted/trials" / f"{trial.number:04d}")
            written = (newest / checkpoint.WEIGHTS).stat().st_mtime_ns
            found[trial.number] = (trial.value, trial.datetime_complete, newest.name, written)
    return found


@pytest.fixture(scope="module")
def history(new_out):
    """Observations of one sweep after a kill, an interrupt and the end."""
    out, seen = new_out("interrupted"), {}
    command = Sweep(out)
    seen["open at kill"] = command.reaches(1)
    seen["kill"] = command.stop(signal.SIGKILL)
    seen["marks at kill"] = marks(out)
    command = Sweep(out)
    command.reaches(len(seen["marks at kill"]) + 1)
    seen["interrupt"] = command.stop(signal.SIGINT)
    seen["marks at interrupt"] = marks(out)
    started = time.monotonic()
    command = Sweep(out, "--json")
    stdout, stderr = command.process.communicate(timeout=180)
    seen["end"] = (command.process.returncode, stdout, stderr)
    seen["seconds"] = time.monotonic() - started
    return out, seen


def test_a_kill_leaves_no_process_and_loses_no_finished_trial(history):
    seen = history[1]
    assert seen["kill"][0] == -signal.SIGKILL
    assert len(seen["marks at kill"]) >= 1
    assert seen["open at kill"]


def assert_interrupted(code, _, err):
    assert code == 130
    assert err.splitlines()[-1] == "raybust: interrupted; rerun the same command to resume"
    assert "Traceback" not in err


def test_ctrl_c_is_one_line_and_exit_code_130(history):
    assert_interrupted(*history[1]["interrupt"])


def test_ctrl_c_of_a_training_run_too_and_the_same_command_resumes(new_out):
    out = new_out("ctrl-c")
    asked = ("train", "method.name=gaussian", "method.sigma=0.25", "model.width=24",
             "train.epochs=12", "train.batch_size=128", "certified_fast.examples=20",
             "certified_fast.n=100", "--name", "one", "--out", out)  # fmt: skip
    command = Command(*asked)
    wait(lambda: checkpoint.newest(out / "one"), 120, "a checkpoint")
    assert_interrupted(*command.stop(signal.SIGINT))
    reached = checkpoint.epoch_of(checkpoint.newest(out / "one"))
    assert reached < 12
    command = Command(*asked)
    _, stderr = command.process.communicate(timeout=180)
    assert command.process.returncode == 0, stderr
    assert f"one: resuming at epoch {reached}," in stderr
    assert checkpoint.epoch_of(checkpoint.newest(out / "one")) == 12


def test_finished_trials_are_not_repeated(history):
    out, seen = history
    final = marks(out)
    for moment in ("marks at kill", "marks at interrupt"):
        assert seen[moment].items() <= final.items()
    assert len(seen["marks at kill"]) < len(seen["marks at interrupt"]) < TRIALS


def test_the_same_command_completes_the_sweep(history):
    out, seen = history
    code, stdout, stderr = seen["end"]
    assert code == 0, stderr
    assert states_of(out / "interrupted/study.db") == dict.fromkeys(range(TRIALS), "COMPLETE")
    board = json.loads(stdout)  # nothing else goes to stdout
    assert sorted(entry["trial"] for entry in board["entries"]) == list(range(TRIALS))
    assert board["others"] == []
    values = [entry["value"] for entry in board["entries"]]
    assert values == sorted(values, reverse=True)
    assert f"{len(seen['marks at interrupt'])} of {TRIALS} trials are finished" in stderr


def test_an_interrupted_trial_went_on_from_its_checkpoint(history):
    out, seen = history
    for number in seen["open at kill"]:
        journal = kit.lines(out / "interrupted/trials" / f"{number:04d}" / "journal.jsonl")
        events = [entry for entry in journal if entry["e"] in ("start", "resume", "metrics")]
        assert "resume" in [entry["e"] for entry in events]
        steps = [entry["step"] for entry in events if entry["e"] == "metrics"]
        assert steps == list(range(1, EPOCHS + 1)), "an epoch was repeated or out of order"


def test_mlflow_has_every_trial_once_and_no_point_twice(history):
    out, _ = history
    found = kit.runs_of(out)
    assert set(found) == {"interrupted", *(f"interrupted/{number}" for number in range(TRIALS))}
    parent = found.pop("interrupted")
    assert parent.info.status == "FINISHED"
    for name, child in found.items():
        assert child.info.status == "FINISHED", name
        assert child.data.tags["raybust.stop_reason"] == "finished"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        steps = {step for key, step in kit.points_of(out, child) if key == "train/loss"}
        assert steps == set(range(1, EPOCHS + 1)), name
        inside = kit.artifacts_of(out, child, "checkpoint")
        assert inside == {"checkpoint/model.safetensors", "checkpoint/manifest.json"}


def test_a_resumed_trial_ends_like_an_undisturbed_one(history, tmp_path):
    from test_worker import assert_same_weights, undisturbed

    from raybust import config as configuration
    from raybust import methods
    from raybust.disk import runs

    out, seen = history
    trial = out / "interrupted/trials" / f"{seen['open at kill'][0]:04d}"
    config = configuration.from_dict(runs.read_identity(trial).config, methods.get)
    path, metrics = undisturbed(config, tmp_path)
    assert kit.journal_metrics(trial) == metrics
    assert_same_weights(path, checkpoint.newest(trial))
