"""The shell's completion, asked as the shells ask it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(*words, shell="bash", cwd=None):
    """The completions of the last word; zsh and fish give it as it is, bash split at "="."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    environment = {**os.environ, **asked, "_RAYBUST_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", "from raybust.cli import main; main()"],
        env=environment, capture_output=True, text=True, cwd=cwd, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
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
        (("raybust", "tune", "quick"), ["quick", "quickstart"]),
        (("raybust", "serve", "mine", "--rep"), ["--replicas"]),
        (("raybust", "train", "model.name", "=", "resnet1"), ["resnet110"]),
        (("raybust", "train", "data.name", "=", "im"), ["image_folder"]),
        (("raybust", "train", "method.name", "=", "gaussian", "method.s"), ["method.sigma="]),
        (("raybust", "train", "method.s"), []),
        (("raybust", "train", "data.path", "=", "../da"), ["../da"]),
        (("raybust", "train", "train.lr", "="), []),
    ],
)
def test_bash(words, found):
    assert completed(*words) == found


def pressed(line, cwd):
    """The words of a line after the tab key, in an interactive bash."""
    pexpect = pytest.importorskip("pexpect")
    command = Path(sys.executable).with_name("raybust")
    if not command.exists():
        pytest.skip("needs the installed command")
    environment = {**os.environ, "PS1": "ready> ", "PATH": f"{command.parent}:{os.environ['PATH']}"}
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], env=environment, cwd=cwd, encoding="utf-8",
        timeout=60, dimensions=(24, 200),
    )  # fmt: skip
    shell.sendline('eval "$(_RAYBUST_COMPLETE=bash_source raybust)"; PS1="set"" up> "')
    shell.expect("set up> ")
    shell.send(f"{line}\t")
    shell.send(" END")
    shell.expect("END")
    shell.close(force=True)
    return shell.before.split()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("tune quick", "quickstart"),
        ("tune zz", "zz_mine.yaml"),
        ("train data.path=zz", "data.path=zz_mine.yaml"),
        ("train model.name=resnet1", "model.name=resnet110"),
        ("train method.name=gaussian method.s", "method.sigma="),
    ],
)
def test_the_tab_key_of_an_interactive_bash(line, completed, tmp_path):
    (tmp_path / "zz_mine.yaml").touch()
    assert pressed(f"raybust {line}", tmp_path)[-1] == completed


def test_zsh_keeps_a_setting_in_one_word():
    asked = completed("raybust", "train", "method.name=gau", shell="zsh")
    assert asked == ["method.name=gaussian"]
    asked = completed("raybust", "train", "method.name=gaussian", "method.s", shell="zsh")
    assert asked == ["method.sigma="]


def test_runs_and_the_best_of_a_sweep(tmp_path):
    for name, kind in (("mine", "train"), ("many", "sweep"), ("other", "train")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps({"kind": kind}))
    assert completed("raybust", "certify", "m", cwd=tmp_path) == ["many", "many/best", "mine"]


def test_every_method_is_completed():
    from raybust import methods

    named = completed("raybust", "train", "method.name", "=")
    assert set(named) == set(methods.names())
