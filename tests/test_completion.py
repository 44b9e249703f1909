"""The shell's completion, asked as the shells ask it."""

import json
import os
import subprocess
import sys

import pytest


def completed(*words, shell="bash", cwd=None):
    """The completions of the last word; zsh and fish give it as it is, bash split at "="."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment = {**os.environ, **asked, "_RAYBUST_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", "from raybust.cli import main; main()"],
        env=environment, capture_output=True, text=True, cwd=cwd, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    return lines[1::3] if shell == "zsh" else [line.partition(",")[2] for line in lines]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("raybust", "cert"), ["certify"]),
        (("raybust", "train", "method.n"), ["method.name="]),
        (("raybust", "train", "method.name", "=", "gau"), ["gaussian"]),
        (("raybust", "train", "train.optimizer", "="), ["sgd", "adamw"]),
        (("raybust", "train", "data.download", "="), ["true", "false"]),
        (("raybust", "train", "method.name", "=", "pgd", "train.lr"), ["train.lr="]),
        (("raybust", "tune", "quick"), ["quickstart", "quick"]),
        (("raybust", "serve", "mine", "--rep"), ["--replicas"]),
    ],
)
def test_bash(words, found):
    assert completed(*words) == found


def test_zsh_keeps_a_setting_in_one_word():
    asked = completed("raybust", "train", "method.name=gau", shell="zsh")
    assert asked == ["method.name=gaussian"]


def test_runs_and_the_best_of_a_sweep(tmp_path):
    for name, kind in (("mine", "train"), ("many", "sweep"), ("other", "train")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"kind": kind}))
    assert completed("raybust", "certify", "m", cwd=tmp_path) == ["many", "many/best", "mine"]


def test_every_method_is_completed():
    from raybust import methods

    named = completed("raybust", "train", "method.name", "=")
    assert set(named) == set(methods.names())
