"""Bad input through the real command line: one line, what was seen, what is allowed, exit code 2.

Every row stops before a cluster starts, and leaves nothing behind. The rows at the end need Ray.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from raybust import data, methods
from raybust.cluster import jobs
from raybust.config import Leaf, compose, to_dict
from raybust.disk import checkpoint, runs
from raybust.training.fit import fit

NPZ = ["train", "data.name=npz", "data.path=set.npz"]
FOLDER = ["train", "data.name=image_folder", "data.path=pictures", "data.image_size=16"]
TUNE = ["tune", "space.yaml"]
LR = "train.lr: {float: [0.1, 0.2]}"
SMALL = ["data.limit=40", "train.epochs=1", "train.batch_size=20", "model.width=4"]
SMALL += ["certified_fast.every=0", "certified_fast.examples=2", "certified_fast.n=100"]
NO_AUTOATTACK = [(["evaluate.attacks=[autoattack]"], ["autoattack", "raybust[attacks]"])]
if importlib.util.find_spec("pyautoattack"):
    NO_AUTOATTACK = []


def arrays(**changes):
    """Returns a function that writes a small npz with some arrays changed."""

    def make():
        rng = np.random.default_rng(0)
        found = {
            "x_train": rng.random((40, 8, 8), dtype=np.float32),
            "y_train": np.arange(40) % 4,
            "x_test": rng.random((8, 8, 8), dtype=np.float32),
            "y_test": np.arange(8) % 4,
        } | changes
        np.savez("set.npz", **{key: value for key, value in found.items() if value is not None})

    return make


def text(name, content):
    """Returns a function that writes a text file."""
    return lambda: Path(name).write_text(content)


def space(block, rest=""):
    """Returns a function that writes a search space."""
    return text("space.yaml", f"{rest}\nsearch:\n  {block}\n")


def folders(*names, images=True):
    """Returns a function that writes a tree of images."""

    def make():
        for name in names:
            Path(name).mkdir(parents=True)
            if images:
                Image.new("RGB", (16, 16)).save(f"{name}/one.png")

    return make


def log(rows):
    """Returns a function that writes a certification log, and a file where a folder belongs."""

    def make():
        Path("log.tsv").write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n{rows}\n")
        Path("t.txt").write_text("")

    return make


def broken_sweep():
    """Makes a sweep with a truncated leaderboard."""
    plain = to_dict(compose([], methods.get)) | {"search": {"train.lr": {"float": [0.1, 0.2]}}}
    runs.identify(Path("runs/broken"), "sweep", plain)
    Path("runs/broken/leaderboard.json").write_text('{"sweep": "bro')


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder `runs` with a trained run, a sweep, a run without checkpoint and a torn one."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    values = {"data.limit": 40, "train.epochs": 1, "train.batch_size": 20, "model.width": 4}
    values |= {"certified_fast.every": 0, "certified_fast.examples": 2, "certified_fast.n": 100}
    config = compose([Leaf(key, value, "test") for key, value in values.items()], methods.get)
    folder = root / "digits-run"
    for kind, name in (("train", folder.name), ("sweep", "a-sweep"), ("train", "fresh")):
        runs.identify(root / name, kind, to_dict(config))
    for progress in fit(config, data.load(config.data), torch.device("cpu")):
        checkpoint.commit(folder, checkpoint.folder_name(progress.epoch), progress.save, keep=2)
    shutil.copytree(folder, root / "torn")
    (root / "torn" / "epoch-000001" / checkpoint.WEIGHTS).write_bytes(b"cut")
    (root / "no-run").mkdir()
    (root / "no-run" / "run.json").write_text("{")
    return root


def rows():
    """Yields (arguments, function that writes files or None, words required in the line)."""
    long = "x" * 300
    # Names.
    yield ["trian"], None, ["trian", "Did you mean 'train'"]
    yield ["train", "method.name=gausian"], None, ["method 'gausian'", "mean 'gaussian'"]
    yield ["train", "data.name=digit"], None, ["dataset 'digit'", "Did you mean 'digits'"]
    yield ["train", "model.name=resnet18"], None, ["'preact_resnet18'", "torchvision:resnet18"]
    yield ["train", "data.path=x.npz"], None, ["digits does not read it", "data.name=npz"]
    yield ["train", "method.name=gaussian", "method.sigma=128"], None, ["128/255 = 0.502"]
    yield ["train", "evaluate.eps=8"], None, ["evaluate.eps", "8/255 = 0.03137"]
    yield ["train", "evaluate.eps=8/0"], None, ["evaluate.eps", "'8/0'"]
    yield ["train", "attacked_fast.eps=8/25x"], None, ["attacked_fast.eps", "8/25x"]
    yield ["certify", "a-sweep"], "trained", ["a-sweep/best", "a-sweep/0"]
    yield ["train", "model.name=smal_cnn"], None, ["model 'smal_cnn'", "mean 'small_cnn'", "timm:"]
    yield ["train", "model.name=timm:resnet8"], None, ["timm model 'resnet8'", "resnet18"]
    yield ["train", "model.name=torchvision:resnet19"], None, ["'resnet19'", "resnet18"]
    yield ["train", "model.name=nowhere:make"], None, ["nowhere", "cannot be imported"]
    yield ["train", "model.name=json:make"], None, ["callable", "'make'", "json"]
    yield ["train", "model.name=mine:make"], text("mine.py", "def make(): 1 / 0"), ["mine:make"]
    yield ["train", "model.name=mine:make"], text("mine.py", "make = dict"), ["mine:make", "dict"]
    yield ["methods", "gausian"], None, ["gausian", "Did you mean 'gaussian'"]
    yield ["datasets", "cifar11"], None, ["cifar11", "Did you mean 'cifar1"]
    yield ["models", "timm:convnext_tny"], None, ["timm model", "mean 'convnext_tiny'"]
    yield ["models", "torchvision:resnet51"], None, ["torchvision model", "mean 'resnet50'"]
    yield ["models", "nowhere:make"], None, ["module 'nowhere'", "module:callable"]
    yield ["models", "resnet21"], None, ["resnet21", "Did you mean 'resnet20'"]
    # Keys.
    yield ["train", "train.epoch=3"], None, ["'train.epoch'", "'train.epochs'", "command line"]
    yield ["train", "epochs=3"], None, ["'epochs'", "Did you mean 'train.epochs'"]
    yield ["train", "method.sigma=0.5"], None, ["standard has no sigma", "gaussian", "macer"]
    yield ["train", "method=gaussian"], None, ["method", "method.name"]
    yield ["train", "data=null"], None, ["data", "data.name"]
    yield ["train", "train.epochs.x=3"], None, ["train.epochs.x", "Did you mean 'train.epochs'"]
    yield ["train", "a.yaml"], text("a.yaml", "train: {epocs: 1}"), ["train.epocs", "a.yaml"]
    yield ["train", "seed=1", "3"], None, ["'3'", "key=value"]
    yield ["train", "=3"], None, ["'=3'", "key=value"]
    # Types.
    yield ["train", "train.epochs=many"], None, ["train.epochs", "'many'", "int"]
    yield ["train", "train.epochs=1.5"], None, ["train.epochs", "1.5", "int"]
    yield ["train", "train.epochs=true"], None, ["train.epochs", "True", "int"]
    yield ["train", "train.epochs="], None, ["train.epochs", "None", "int"]
    yield ["train", "train.lr=fast"], None, ["train.lr", "'fast'", "float"]
    yield ["train", "train.compile=maybe"], None, ["train.compile", "'maybe'", "bool"]
    yield ["train", "certify.radii=half"], None, ["certify.radii", "half", "list"]
    yield ["train", "model.mean=[a]"], None, ["model.mean", "'a'", "float"]
    yield ["train", "train.optimizer=adam"], None, ["train.optimizer", "'adam'", "sgd", "adamw"]
    yield ["train", "tune.points=[1]"], None, ["tune.points", "1"]
    yield ["train", "--workers", "two"], None, ["--workers", "two", "integer"]
    yield ["train", "--nmae", "x"], None, ["--nmae", "--name"]
    # Ranges.
    yield ["train", "train.epochs=0"], None, ["train.epochs", "got 0", ">= 1", "command line"]
    yield ["train", "train.lr=0"], None, ["train.lr", "got 0", "> 0"]
    yield ["train", "train.lr=nan"], None, ["train.lr", "nan", "number"]
    yield ["train", "train.lr=inf"], None, ["train.lr", "inf", "finite"]
    yield ["train", "train.momentum=1"], None, ["train.momentum", "got 1", "< 1"]
    yield ["train", "train.milestones=[0.5,1.5]"], None, ["train.milestones", "1.5", "< 1"]
    yield ["train", "certify.alpha=0.7"], None, ["certify.alpha", "0.7", "< 0.5"]
    yield ["train", "data.validation=1"], None, ["data.validation", "got 1", "< 1"]
    yield ["train", "seed=-1"], None, ["seed", "-1", ">= 0"]
    yield ["train", f"train.epochs={10**23}"], None, ["train.epochs", str(10**23), "below 2^63"]
    yield ["train", f"certify.batch=-{10**22}"], None, ["certify.batch", str(10**22), ">= 1"]
    yield ["train", f"train.lr={10**400}"], None, ["train.lr", "float"]
    yield ["train", "model.width=1000000"], None, ["model.width", "1000000", "<= 1024"]
    yield ["train", f"seed={2**64}"], None, ["seed", str(2**64), "<"]
    yield (
        ["train", "method.name=gaussian", "method.sigma=-1"],
        None,
        ["method.sigma", "-1", "> 0", "command line"],
    )
    yield ["train", "--workers", "0"], None, ["cluster.workers", "got 0", "--workers"]
    yield ["train", "a.yaml"], text("a.yaml", "train: {keep: 1}"), ["train.keep", "a.yaml"]
    # Rules across fields.
    yield ["train", "name=a/b"], None, ["name", "'a/b'", "letters"]
    yield ["train", "--name", "../up"], None, ["name", "../up", "--name"]
    yield ["train", "--name", long], None, ["name", long, "at most 200", "--name"]
    yield ["train", "--out", "~nobodyatall/x"], None, ["out", "'~nobodyatall/x'", "no user"]
    yield ["train", "--out", "s3://bucket/runs"], None, ["out", "s3://", "cluster.storage"]
    yield (
        ["train", "train.batch_size=100", "cluster.workers=3"],
        None,
        ["train.batch_size", "100", "multiple of cluster.workers = 3"],
    )
    yield (
        ["train", "train.batch_size=100", "train.batch_classes=10", "cluster.workers=4"],
        None,
        ["train.batch_size", "100", "train.batch_classes", "= 40"],
    )
    yield ["train", "train.batch_classes=0"], None, ["train.batch_classes", "got 0", ">= 1"]
    yield ["train", "certify.n=5"], None, ["certify.n", "got 5", "certifies nothing"]
    yield ["train", "certify.batch=150"], None, ["certify.batch", "150", "multiple of 100"]
    yield ["train", "certify.schedule=sequence"], None, ["certify.schedule", "radius"]
    yield ["train", "certify.schedule=looks"], None, ["certify.schedule", "intent=radii"]
    yield ["train", "tune.metric=accuracy"], None, ["tune.metric", "accuracy", "validation/"]
    yield ["train", "tune.metric=certified_fast/arc"], None, ["certified_fast/arc", "fast/acr'"]
    # The geodesic's own.
    geodesic = ["train", "method.name=geodesic"]
    yield [*geodesic, "method.at=1.5"], None, ["method.at", "got 1.5", "<= 1"]
    yield [*geodesic, "method.space=latnt"], None, ["method.space", "'latnt'", "latent"]
    yield [*geodesic, "method.embedding=run"], None, ["method.embedding", "feature_cost"]
    asked = [*geodesic, "method.space=feature_cost", "method.embedding=nowhere"]
    yield asked, None, ["method.embedding", "'nowhere'", "runs"]
    yield (
        ["train", "train.batch_classes=11", "train.batch_size=110"],
        None,
        ["train.batch_classes", "got 11", "<= 10"],
    )
    yield ["methods", "gaussian", "--theory", "out"], None, ["--theory", "methods geodesic"]
    # Interpolation.
    environment = "${oc.env:HOME}"
    yield ["train", f"data.root={environment}"], None, ["data.root", "oc.env:HOME", "reference"]
    yield (
        ["train", "a.yaml"],
        text("a.yaml", f"name: '{environment}'"),
        ["name", "oc.env", "a.yaml"],
    )
    yield ["train", f"model.mean=['{environment}']"], None, ["model.mean", "oc.env"]
    yield (
        ["train", "a.yaml"],
        text("a.yaml", f"tune: {{points: [{{a: [{{b: '{environment}'}}]}}]}}"),
        ["tune.points", "oc.env", "a.yaml"],
    )
    yield ["train", "out=${oc.decode:x}"], None, ["out", "oc.decode"]
    yield ["train", "train.epochs=${train.epochs}"], None, ["train.epochs", "ecursive"]
    yield ["train", "train.epochs=${no.such}"], None, ["train.epochs", "no.such"]
    yield TUNE, space(f"data.root: {{choice: ['{environment}']}}"), ["data.root", "oc.env"]
    # Settings written as options, or with spaces.
    yield ["train", "--epochs", "5"], None, ["'--epochs'", "write train.epochs=VALUE"]
    yield ["train", "--batch-size=5"], None, ["--batch-size", "write train.batch_size=VALUE"]
    yield ["certify", "x", "--sigma", "1"], None, ["--sigma", "write certify.sigma=VALUE"]
    yield ["train", "--seed", "1"], None, ["--seed", "write seed=VALUE"]
    for spaced in (["train.epochs", "=", "5"], ["train.epochs=", "5"], ["train.epochs", "=5"]):
        yield ["train", *spaced], None, ["'train.epochs", "no spaces around ="]
        yield [*TUNE, *spaced], space("train.lr: {choice: [0.1]}"), ["no spaces around ="]
    # Files.
    yield ["train", "none.yaml"], None, ["none.yaml", "No such file"]
    yield ["train", "."], None, [".", "cannot be read"]
    yield ["train", "a.yaml"], text("a.yaml", "train: [1"), ["a.yaml", "not valid YAML"]
    yield ["train", "a.yaml"], text("a.yaml", "seed: 1\nseed: 2\n"), ["a.yaml", "duplicate", "seed"]
    yield ["train", "a.yaml"], text("a.yaml", "- 1\n- 2\n"), ["a.yaml", "mapping", "list"]
    yield ["train", "a.yaml"], text("a.yaml", "!!python/object/apply:os.getcwd []"), ["a.yaml"]
    for value, word in (
        ("!!int foo", "'foo'"),
        ("!!bool zzz", "'zzz'"),
        ("!!float x", "'x'"),
        ("!!timestamp foo", "does not match its tag"),
        ("!!timestamp 2020-13-45", "month"),
        ("1" * 5000, "5000 digits"),
    ):
        yield ["train", f"seed={value}"], None, ["not valid YAML", f"seed={value[:40]}"]
        words = ["a.yaml: not valid YAML", word]
        yield ["train", "a.yaml"], text("a.yaml", f"seed: {value}"), words
    yield ["train", "a.yaml"], text("a.yaml", "[" * 2000 + "]" * 2000), ["a.yaml", "nested"]
    yield ["train", f"seed={'[' * 2000}{']' * 2000}"], None, ["seed=", "nested"]
    yield ["train", f"a{'.a' * 2000}=1"], None, ["a.a.a", "nested"]
    yield ["train", "a.yaml"], text("a.yaml", "a: &a [*a]"), ["a.yaml", "recursive"]
    yield ["train", f"{long}.yaml"], None, [f"{long}.yaml", "too long"]
    yield ["train", "a.bin"], lambda: Path("a.bin").write_bytes(b"\xff\xfe\xff"), ["a.bin"]
    yield ["train", "space.yaml"], space(LR), ["space.yaml", "raybust tune"]
    # Search spaces.
    yield ["tune", "a.yaml"], text("a.yaml", "seed: 1"), ["a.yaml", "search", "raybust train"]
    yield TUNE, text("space.yaml", "search: {}"), ["search", "block"]
    yield TUNE, space("train.lrr: {float: [0.1, 0.2]}"), ["train.lrr", "Did you mean 'train.lr'"]
    yield TUNE, space("method.sigma: {float: [0.1, 0.2]}"), ["method.sigma", "unknown key"]
    yield TUNE, space("train.lr: {float: [-1, 0.2]}"), ["train.lr", "-1", "> 0"]
    yield TUNE, space("train.lr: {float: [0.1, 0.2], default: 3}"), ["train.lr", "default 3"]
    yield TUNE, space("train.lr: {float: [0.2, 0.1]}"), ["train.lr", "low < high"]
    yield TUNE, space("train.lr: {float: [0.2, .inf]}"), ["train.lr", "inf", "finite"]
    yield TUNE, space("train.lr: {float: [0.2]}"), ["train.lr", "[low, high]"]
    yield TUNE, space("train.lr: {float: 0.2}"), ["train.lr", "0.2", "list"]
    yield TUNE, space("train.lr: 0.2"), ["train.lr", "0.2", "{float: [low, high]}"]
    yield TUNE, space("train.lr: {flaot: [0.1, 1]}"), ["train.lr", "flaot", "{float:"]
    yield TUNE, space("train.epochs: {int: [1.5, 3]}"), ["train.epochs", "1.5", "type int"]
    yield TUNE, space("train.ema: {float: [0, 0.5], log: true}"), ["train.ema", "log", "> 0"]
    yield (
        TUNE,
        space("train.lr: {float: [0.1, 0.2], log: true, step: 0.1}"),
        ["train.lr", "both log and step"],
    )
    yield TUNE, space("train.lr: {float: [0.1, 0.2], log: 'no'}"), ["log", "'no'", "true or false"]
    yield TUNE, space("train.lr: {float: [0.1, 0.2], step: 0}"), ["train.lr", "step", "> 0"]
    yield TUNE, space("train.lr: {float: [0.1, 0.2], step: 1}"), ["train.lr", "step", "at most"]
    yield TUNE, space("train.lr: {float: [0.1, 0.2], dfault: 1}"), ["dfault", "mean 'default'"]
    yield TUNE, space("train.optimizer: {choice: [sgd, adam]}"), ["train.optimizer", "'adam'"]
    yield TUNE, space("train.optimizer: {choice: []}"), ["train.optimizer", "choice", "list"]
    yield (
        TUNE,
        space("train.lr: {float: [0.1, 0.2], when: {method.name: gaussian}}"),
        ["train.lr", "method.name", "not among the keys searched above"],
    )
    yield (
        TUNE,
        space(
            "train.optimizer: {choice: [sgd, adamw]}\n"
            "  train.lr: {float: [0.1, 0.2], when: {train.optimizer: adam}}"
        ),
        ["train.lr", "when", "'adam'", "sgd"],
    )
    yield TUNE, space("train.lr: {float: [0.1, 0.2], when: sgd}"), ["train.lr", "when", "sgd"]
    yield (
        TUNE,
        space(
            "method.name: {choice: [standard, gaussian]}\n"
            "  method.sigma: {float: [0.1, 0.2], when: {method.name: []}}"
        ),
        ["method.sigma", "when: method.name", "got []"],
    )
    yield TUNE, space("cluster.workers: {int: [1, 2]}"), ["cluster.workers", "all trials"]
    yield [*TUNE, "train.lr=0.1"], space(LR), ["train.lr", "also set to 0.1", "command line"]
    yield [*TUNE, "tune.points=[{train.lr: 3}]"], space(LR), ["tune.points", "train.lr", "got 3"]
    yield [*TUNE, "tune.points=[{train.l: 3}]"], space(LR), ["tune.points", "train.l", "train.lr"]
    near = "evaluate.eps=[8/255,0.0313726]"
    yield ["train", near], None, ["evaluate.eps", "0.0313725 twice", "each radius once"]
    yield [*TUNE, "tune.seeds=0"], space(LR), ["tune.seeds", "0", ">= 1"]
    yield [*TUNE, "tune.race_level=0.5"], space(LR), ["tune.race_level", "0.5", "< 0.5"]
    yield (
        [*TUNE, "tune.seeds=3", "tune.sampler=nsga2"],
        space(LR),
        ["tune.seeds", "nsga2", "means over seeds", "got 3", "tpe"],
    )
    yield (
        [*TUNE, "tune.seeds=3"],
        space("seed: {int: [0, 4]}"),
        ["tune.seeds", "got 3", "searches `seed`"],
    )
    yield [*TUNE, "tune.grace=3"], space(LR), ["tune.grace", "3.0", "<= 1"]
    yield [*TUNE, "tune.objectives=[acr]"], space(LR), ["tune.objectives", "'acr'", "max METRIC"]
    yield (
        [*TUNE, "tune.objectives=[max validation/accuracy]"],
        space(LR),
        ["tune.objectives", "'max certified_fast/acr'", "early stopping"],
    )
    yield (
        [*TUNE, "tune.objectives=[max certified_fast/acr,max validation/acuracy]"],
        space(LR),
        ["tune.objectives", "Did you mean 'validation/accuracy'"],
    )
    yield (
        [*TUNE, "tune.constraints=[validation/accuracy > 0.8]"],
        space(LR),
        ["tune.constraints", "METRIC >= NUMBER"],
    )
    yield (
        [*TUNE, "tune.constraints=[attacked_fast/robust_accuracy >= 0.8]"],
        space(LR),
        ["tune.constraints", "attacked_fast.every=0.05"],
    )
    yield (
        [
            *TUNE,
            "tune.constraints=[certified_fast/acr >= 0.1]",
            "certified_fast.every=0",
            "tune.metric=validation/accuracy",
        ],
        space(LR),
        ["certified_fast.every: got 0", "never measures certified_fast/acr"],
    )
    for bound in ("1.2.3", "1e999", "nan", "-inf", "e", "."):
        yield (
            [*TUNE, f"tune.constraints=[validation/accuracy >= {bound}]"],
            space(LR),
            ["tune.constraints", f">= {bound}'", "METRIC >= NUMBER", "finite"],
        )
    for bound in ("validation/accuracy >= 1.5", "attacked_fast/robust_accuracy >= 80",
                  "certified_fast/acr <= -0.1", "certified_fast/accuracy_at/0.5 >= 2"):  # fmt: skip
        yield (
            [*TUNE, f"tune.constraints=[{bound}]", "attacked_fast.every=0.05"],
            space(LR),
            ["tune.constraints", f"'{bound}'", "which no value satisfies", "in [0, "],
        )
    yield (
        [*TUNE, "tune.constraints=[train/loss >= 0.9,train/seconds <= 9,train/loss <= 0.5]"],
        space(LR),
        ["tune.constraints", "'train/loss >= 0.9' and 'train/loss <= 0.5'", "no value satisfies"],
    )
    yield (
        [*TUNE, "tune.constraints=[validation/accuracy <= 0.5,validation/accuracy >= 0.9]"],
        space(LR),
        ["tune.constraints", "<= 0.5' and 'validation/accuracy >= 0.9'", "in [0, 1]"],
    )
    for mode in ("max", "min"):
        both = f"max certified_fast/acr,max validation/accuracy,{mode} validation/accuracy"
        yield (
            [*TUNE, f"tune.objectives=[{both}]"],
            space(LR),
            ["tune.objectives", "validation/accuracy 2 times", "once"],
        )
    yield (
        [*TUNE, "tune.metric=certified/acr"],
        space(LR),
        ["tune.metric", "'certified/acr'", "Did you mean 'certified_fast/acr'"],
    )
    yield (
        [*TUNE, "tune.constraints=[accurcy/validation >= 0.5]"],
        space(LR),
        ["tune.constraints", "'accurcy/validation'", "validation/accuracy"],
    )
    yield (
        [*TUNE, "method.name=geodesic", "tune.metric=geodsic/distance"],
        space(LR),
        ["tune.metric", "'geodsic/distance'", "geodesic/*"],
    )
    yield (
        [*TUNE, "certified_fast.every=30"],
        space(LR),
        ["certified_fast.every: got 30", "100 % of the budget", "tune.scheduler=none"],
    )
    yield (
        [*TUNE, "certify.split=validation"],
        space(LR),
        ["certify.split", "'validation'", "test set", "tune.finalists=0"],
    )
    yield [*TUNE, "tune.sampler=tpee"], space(LR), ["tune.sampler", "'tpee'", "cmaes"]
    yield [*TUNE, "tune.sampler=grid"], space(LR), ["grid", "train.lr", "choose another sampler"]
    yield (
        [*TUNE, "tune.sampler=cmaes", "tune.constraints=[validation/accuracy >= 0.8]"],
        space(LR),
        ["tune.sampler", "cmaes supports no constraints"],
    )
    yield [*TUNE, "tune.warm_start=nothing"], space(LR), ["'nothing'"]
    yield [*TUNE, "train.passes=9", "train.seconds=9"], space(LR), ["train.passes", "`seconds`"]
    yield TUNE, space("include: [none]"), ["none.yaml next to it", "space"]
    yield TUNE, space("include: none"), ["include", "list of file names"]
    yield TUNE, space("include: [../x]"), ["include", "'../x'", "next to it"]
    yield TUNE, space("include: [/etc/x]"), ["include", "'/etc/x'", "next to it"]
    yield TUNE, space("include: [space]"), ["space.yaml", "include each other", "space, space"]
    yield TUNE, space("method.name: {each: [space]}"), ["include each other", "space, space"]
    yield TUNE, space("method.name: {each: [gaussian]}"), ["gaussian.yaml next to it"]
    yield (
        TUNE,
        space("train.lr: {float: [0.1, 0.2]}\n  train.lr@b: {float: [0.1, 0.2]}"),
        ["train.lr@b", "overlaps train.lr", "when"],
    )
    yield (
        [*TUNE, "certified_fast.every=0"],
        space(LR),
        ["every: got 0", "certified_fast.every=0.05"],
    )
    yield (
        ["train", "certified_fast.every=2.5"],
        None,
        ["certified_fast.every", "2.5", "whole epochs"],
    )
    yield [*TUNE, "data.name=npz"], space(LR), ["data.path", "npz"]
    # Data.
    yield ["train", "data.name=npz"], None, ["data.path", "null", "data.path=FILE.npz"]
    yield NPZ, None, ["no file 'set.npz'"]
    yield NPZ, text("set.npz", "no archive"), ["set.npz", "not an npz"]
    yield NPZ, arrays(x_test=None, y_test=None), ["lacks x_test, y_test", "x_train"]
    yield NPZ, arrays(x_train=np.full((40, 8, 8), 1.5)), ["x_train", "1.5", "[0, 1]"]
    yield NPZ, arrays(x_train=np.full((40, 8, 8), np.nan)), ["x_train", "nan", "[0, 1]"]
    yield NPZ, arrays(x_train=np.zeros((40, 8, 8), int)), ["x_train", "int64", "uint8"]
    yield NPZ, arrays(x_train=np.zeros((40, 8, 8, 5, 2))), ["x_train", "shape"]
    yield NPZ, arrays(x_test=np.zeros((8, 9, 9))), ["x_test", "(1, 9, 9)", "same shape"]
    yield NPZ, arrays(y_train=np.arange(40) - 1), ["y_train", "-1", "from 0"]
    yield NPZ, arrays(y_test=np.arange(8)), ["y_test", "0 to 7", "0 to 3"]
    yield NPZ, arrays(y_train=np.arange(39) % 4), ["y_train", "(39,)", "(40,)"]
    yield NPZ, arrays(y_train=np.full(40, "a")), ["y_test", "class '0'", "some of a"]
    yield NPZ, arrays(y_train=np.zeros(40, int), y_test=np.zeros(8, int)), ["one class"]
    yield NPZ, arrays(y_train=np.array([object()] * 40)), ["y_train", "cannot be read"]
    yield ["train", "data.name=image_folder"], None, ["data.path", "folder"]
    yield FOLDER, None, ["no folder 'pictures'"]
    yield FOLDER, folders("pictures"), ["pictures", "no folder 'train'"]
    yield FOLDER, folders("pictures/train"), ["no class folders"]
    dry = [*FOLDER, "--dry-run"]
    yield dry, folders("pictures/a", "pictures/b"), ["2 folders of images (a, b)", "train/CLASS"]
    yield dry, folders("pictures/train/a", "pictures/train/b", "pictures/Test/a"), ["mean 'test'"]
    yield dry, folders("pictures/train/a", "pictures/val/c"), ["class 'c'", "lacks"]
    yield FOLDER, folders("pictures/train/a", "pictures/train/b"), ["val", "test"]
    yield (
        FOLDER,
        folders("pictures/train/a", "pictures/train/b", "pictures/val/a", images=False),
        ["no images", ".png"],
    )
    yield (
        FOLDER,
        folders("pictures/train/a", "pictures/train/b", "pictures/val/c"),
        ["class 'c'", "lacks"],
    )
    yield ["train", "data.name=cifar10"], None, ["cifar10", "data.download=true", "data.root"]
    yield ["train", "model.mean=[0.5,0.5]"], None, ["mean", "2", "1"]
    # Stores and places.
    yield ["train", "track.uri=file:./mlruns"], None, ["track.uri", "file store", "sqlite:///"]
    yield ["train", "track.uri=./mlruns"], None, ["track.uri", "file store", "http"]
    yield ["train", "track.uri=ftp://host"], None, ["track.uri", "unknown", "sqlite:///"]
    memory = "track: {uri: 'sqlite:///:memory:'}"
    yield ["train", "a.yaml"], text("a.yaml", memory), ["track.uri", "expected a file"]
    yield ["train", "--out", "file/runs"], text("file", ""), ["file/runs"]
    yield [*TUNE, "--out", "space.yaml/runs"], space(LR), ["space.yaml/runs"]
    yield (
        ["train", "track.uri=sqlite:///file/x.db"],
        text("file", ""),
        ["track.uri", "cannot be written"],
    )
    yield ["ui", "--port", "-1", "--dry-run"], None, ["--port", "-1", "65535"]
    yield ["ui", "--port", "99999999", "--dry-run"], None, ["--port", "99999999", "65535"]
    yield ["ui"], None, ["nothing to show", "train or tune first"]
    # Runs.
    yield ["certify", "digits-rum"], None, ["digits-rum", "none yet"]
    for name in ("certify", "evaluate", "report"):
        yield [name, long], None, [long, "too long"]
    asked = ["evaluate", "digits-run", "corruptions.names=[fog]"]
    yield asked, "trained", ["corruptions.names", "fog", "corruptions.folder", ".generated"]
    yield ["evaluate", "digits-rum"], "trained", ["'digits-rum'", "Did you mean 'digits-run'"]
    yield ["certify", "a-sweep"], "trained", ["a-sweep", "is a sweep", "a-sweep/0"]
    yield ["certify", "a-sweep/7"], "trained", ["a-sweep/7"]
    yield ["certify", "fresh"], "trained", ["fresh", "no checkpoint", "train it first"]
    yield ["evaluate", "torn"], "trained", ["torn", "no checkpoint"]
    yield ["evaluate", "runs/torn/epoch-000001"], "trained", ["complete checkpoint", "damaged"]
    yield ["evaluate", "no-run"], "trained", ["no-run", "run.json"]
    yield ["certify", "digits-run", "train.lr=1"], "trained", ["train.lr", "is fixed", "certify"]
    yield ["evaluate", "digits-run", "data.name=npz"], "trained", ["data.name", "is fixed"]
    yield ["certify", "digits-run", "certify.sgma=1"], "trained", ["certify.sgma", "certify.sigma"]
    yield ["certify", "digits-run", "certify.sigma=0"], "trained", ["certify.sigma", "> 0"]
    yield ["certify", "0" * 32], "trained", ["0" * 32]
    yield (
        ["evaluate", "broken.safetensors"],
        text("broken.safetensors", "x"),
        ["broken.safetensors"],
    )
    yield ["report", "digits-rum"], "trained", ["'digits-rum'", "Did you mean 'digits-run'"]
    yield ["report", "fresh"], "trained", ["fresh", "no certificates", "raybust certify fresh"]
    yield ["report", "a-sweep"], "trained", ["a-sweep", "run.json", "no block `search`"]
    yield ["report", "runs/no-run"], "trained", ["no-run", "run.json"]
    yield ["report", "certify.radii=[0]"], None, ["certify.radii=[0]", "a log, a run or a sweep"]
    yield ["report", "log.tsv", "--out", "t.txt"], log("0\t1\t1\t0.5\t1\t3"), ["t.txt", "out"]
    for idx in ("0.0", "nan"):
        cell = log(f"{idx}\t1\t1\t0.5\t1\t3")
        yield ["report", "log.tsv"], cell, ["log.tsv", f"idx: got {idx}", "whole number"]
    for radius in ("-5", "inf", "nan"):
        cell = log(f"0\t1\t1\t{radius}\t1\t3")
        yield ["report", "log.tsv"], cell, ["log.tsv", f"radius: got {radius}", ">= 0"]
    for number, column in enumerate(("label", "predict", "correct")):
        cells = ["0", "1", "1", "0.5", "1", "3"]
        cells[(1, 2, 4)[number]] = "1.5"
        yield ["report", "log.tsv"], log("\t".join(cells)), [f"{column}: got 1.5", "whole"]
    again = log("7\t1\t1\t0.5\t1\t3\n7\t1\t1\t0.25\t1\t3")
    yield ["report", "log.tsv"], again, ["log.tsv", "idx: got 7", "twice"]
    yield ["report", "broken"], broken_sweep, ["broken", "leaderboard.json", "cannot be read"]
    yield (
        ["train", "--name", "digits-run", "train.epochs=2"],
        "trained",
        ["digits-run", "train.epochs: 1 -> 2", "--no-resume"],
    )
    yield (
        ["train", "--name", "digits-run", *SMALL, "certify.sigma=1"],
        "trained",
        [
            "digits-run",
            "certify.sigma: None -> 1.0",
            "raybust certify digits-run certify.sigma=...",
        ],
    )
    yield ["train", "--name", "a-sweep"], "trained", ["a-sweep", "is a sweep, not a train"]
    # The barycenter, and the weights that it starts from.
    beckman = ["train", "method.name=beckman"]
    yield [*beckman, "method.views=0"], None, ["method.views", "got 0", ">= 1"]
    yield [*beckman, "method.rho=-0.5"], None, ["method.rho", "got -0.5", "> 0"]
    yield [*beckman, "method.mu=-0.1"], None, ["method.mu", "got -0.1", "> 0"]
    yield [*beckman, "method.theta=-1"], None, ["method.theta", "got -1", ">= 0"]
    yield [*beckman, "method.theta=0.3"], None, ["method.theta", "<= views mu = 0.2", "black"]
    yield [*beckman, "train.init=digits-rum"], "trained", ["init", "'digits-rum'", "runs"]
    yield (
        [*TUNE, *beckman[1:], "train.init=nobody"],
        space(LR),
        ["train.init", "'nobody'", "checkpoint folder"],
    )
    yield [*beckman, "train.init=fresh"], "trained", ["init", "fresh: has no checkpoint"]
    yield (
        [*beckman, "train.init=digits-run", "model.name=resnet20"],
        "trained",
        ["init: digits-run is a small_cnn", "expected a resnet20"],
    )
    yield (
        [*beckman, "train.init=digits-run", "model.width=9"],
        "trained",
        ["init", "not the weights of this network", "of another shape"],
    )


def early():
    """Yields errors reported before a plan is printed or sent to a cluster."""
    # What the finalists are measured by, and `certify` and `evaluate` measure.
    uniform = ["certify.noise=uniform", "certify.norm=l2"]
    for settings, words in (
        (uniform, ["certify.norm", "uniform noise certifies l1, not l2"]),
        (["certify.norm=l0"], ["certify.norm", "gaussian noise certifies l2 and linf"]),
        (
            ["certify.noise=ablation", "certify.keep=9999"],
            ["certify.keep", "got 9999", "1 to 63"],
        ),
        (
            ["certify.precision=tf32", "cluster.gpus_per_worker=0"],
            ["certify.precision", "tf32", "GPU", "float32"],
        ),
        *NO_AUTOATTACK,
        (["evaluate.norm=l2", "evaluate.eps=[9]"], ["evaluate.eps", "got 9", "<= 8"]),
    ):
        yield [*TUNE, *settings], space(LR), words
        stage = settings[0].partition(".")[0]
        yield [stage, "digits-run", *settings], "trained", words
    choice = "data.name: {choice: [digits, mnist]}"
    yield TUNE, space(choice), ["search: data.name", "the same for all trials"]
    choice = "model.name: {choice: [resnet20, resnt20]}"
    yield TUNE, space(choice), ["model 'resnt20'", "Did you mean 'resnet20'"]
    yield [*TUNE, "tune.storage=foo"], space(LR), ["tune.storage", "got 'foo'", "journal:FILE"]
    yield [*TUNE, "tune.storage='journal:'"], space(LR), ["tune.storage", "'journal:'", "database"]
    yield [*TUNE, "tune.storage=sqlit:///x"], space(LR), ["tune.storage", "'sqlit:///x'"]
    yield [*TUNE, "tune.warm_start=nope"], space(LR), ["tune.warm_start", "'nope'"]
    yield [*TUNE, "--out", "space.yaml"], space(LR), ["out", "space.yaml", "cannot be written"]
    yield ["train", "data.name=digitss"], None, ["'digitss'", "Did you mean 'digits'"]
    yield ["train", "model.name=resnt20"], None, ["'resnt20'", "Did you mean 'resnet20'"]
    yield ["train", "model.name=absent.part:make"], None, ["module 'absent'", "timm:NAME"]
    yield ["train", "model.name=:make"], None, ["':make'", "module:callable"]
    yield ["train", "data.name=npz", "data.path=none.npz"], None, ["data.path", "none.npz"]
    yield ["train", "data.name=image_folder"], None, ["data.path", "null", "data.path=FOLDER"]
    yield ["train", "--out", "/dev/null"], None, ["out", "/dev/null", "cannot be written"]
    yield ["train", "track.uri=ftp://x"], None, ["track.uri", "ftp://x", "sqlite:///"]
    yield (
        ["train", "method.name=beckman", "train.init=nobody"],
        None,
        ["train.init", "'nobody'"],
    )
    bare = ["certify", "digits-run", "--cohen", "certify.radius=0.25", "certify.sigma=0.25"]
    yield bare, "trained", ["--cohen", "decide the radii 0.25", "six columns cannot tell"]
    asked = ["evaluate", "digits-run", "corruptions.folder=none"]
    yield asked, "trained", ["none", "corruptions"]


EARLY = list(early())
CASES = [*rows(), *EARLY]


def no_cluster(**options):
    raise AssertionError("Ray was to be started for a bad request")


def tree(folder):
    return sorted((str(p), p.stat().st_size) for p in folder.rglob("*") if p.is_file())


def ids(case):
    number, (arguments, _, words) = case
    return f"{number}-{' '.join(arguments)[:40]}-{words[0][:40]}"


DRY = [([*arguments, "--dry-run"], make, words) for arguments, make, words in EARLY]


@pytest.mark.parametrize("case", list(enumerate([*CASES, *DRY])), ids=ids)
def test_bad_input(case, cli, tmp_path, monkeypatch, request):
    arguments, make, words = case[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/secret/home")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(ray, "init", no_cluster)
    if make == "trained":
        shutil.copytree(request.getfixturevalue("trained"), "runs")
        arrays()()
    elif make is not None:
        make()
    before = tree(tmp_path)
    result = cli(*arguments)
    assert result.code == 2, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("raybust: ")
    assert "Traceback" not in result.err
    assert "/secret/home" not in result.err + result.out
    assert result.out == ""
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    passing = re.compile(r"__pycache__|\.lock$")  # a lock is empty, and its file stays
    left = [entry for entry in tree(tmp_path) if not passing.search(entry[0])]
    assert left == before, "something was written"


THERE = [
    ["train", "data.name=npz", "data.path=/there/set.npz"],
    ["train", "model.name=there.nets:make"],
    ["train", "method.name=beckman", "train.init=there"],
    ["train", "out=/dev/null/there"],
    ["train", "track.uri=sqlite:////dev/null/x.db"],
    [*TUNE, "tune.warm_start=there"],
    [*TUNE, "evaluate.attacks=[autoattack]", "certify.precision=tf32"],
    ["certify", "there", "certify.norm=l0"],
]


@pytest.mark.parametrize("arguments", THERE, ids=" ".join)
def test_what_only_the_cluster_knows_is_left_to_it(arguments, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space(LR)()
    sent = []
    monkeypatch.setattr(jobs, "submit", lambda address, typed, echo, detach: sent.append(typed))
    job = ["--address", "http://127.0.0.1:9"]
    if not any(word.startswith("out=") for word in arguments):
        job += ["--out", "/there/runs"]
    result = cli(*arguments, *job)
    assert (result.code, result.err) == (0, "")
    assert sent == [[*arguments, *job]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "data.name=digitss"], "Did you mean 'digits'"),
        (["train", "model.name=resnt20"], "Did you mean 'resnet20'"),
        (["train", "data.name=npz"], "data.path: got null"),
        (["train", "track.uri=ftp://x"], "track.uri"),
        ([*TUNE, "tune.storage=foo"], "tune.storage"),
        ([*TUNE, "certify.norm=l0"], "certify.norm"),
        ([*TUNE, "evaluate.norm=l2", "evaluate.eps=[9]"], "evaluate.eps"),
    ],
    ids=str,
)
def test_what_is_wrong_anywhere_is_not_submitted(arguments, words, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space(LR)()
    monkeypatch.setattr(jobs, "submit", no_cluster)
    result = cli(*arguments, "--address", "http://127.0.0.1:9")
    assert result.code == 2
    assert words in result.err
    assert "--address" not in result.err


def test_there_are_enough_cases():
    assert len(CASES) >= 45
    assert len({" ".join(words) + " ".join(a) for a, _, words in CASES}) == len(CASES)


def test_all_problems_at_once_with_their_sources(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("train: {lr: -1, epochs: 0}\nseed: -2\n")
    result = cli("train", "a.yaml", "data.limit=0", "--workers", "0")
    assert result.code == 2
    for text in (
        "train.lr: got -1.0, expected > 0 (a.yaml)",
        "train.epochs: got 0, expected >= 1 (a.yaml)",
        "seed: got -2, ",
        "data.limit: got 0, expected >= 1 (command line)",
        "cluster.workers: got 0, expected >= 1 (--workers)",
    ):
        assert text in result.err
    assert len(result.err.splitlines()) == 1


def test_no_rule_is_held_against_a_default_in_place_of_a_wrong_value(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("train", "train.lr=-1", "train.batch_size=96", "cluster.workers=3")
    assert "train.lr" in result.err
    assert "batch_size" not in result.err


def command(folder, *arguments, timeout=120):
    """Runs the command in its own process; returns the process and its seconds."""
    started = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", "raybust", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done, time.monotonic() - started


def test_nobody_at_a_jobs_url(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done, seconds = command(tmp_path, "train", *SMALL, "--out", "/runs", "--address", url)
    assert done.returncode == 2, done.stderr
    assert url in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1
    assert seconds < 30
    assert not any(tmp_path.iterdir())
