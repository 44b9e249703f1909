"""The loop against closed forms and hand-written oracles, then resume bit for bit, then DDP."""

import copy
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from few import few_digits
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.data import Batches, Split
from raybust.disk import checkpoint
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.training.objective import Objective, assemble
from raybust.training.optimizer import schedule
from raybust.training.ranks import Ranks
from raybust.training.validation import measure

GOLDEN = Path(__file__).parent / "golden.json"
MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist.npz"
CPU = torch.device("cpu")
CLOCKS = ("train/seconds", "train/images_per_second", "train/waited", "validation/seconds")
SMALL = (
    "model.width=4",
    "train.batch_size=64",
    "certified_fast.examples=10",
    "certified_fast.n=100",
)


def make(*settings):
    return configuration.compose(
        configuration.leaves_of_arguments([*SMALL, *settings]), methods.get
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """For tiny networks, more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return data.load(make().data)


@pytest.fixture(scope="module")
def few():
    return few_digits()


def parameters(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def timeless(metrics):
    """The metrics that are not times."""
    assert all(metrics[key] > 0 for key in CLOCKS if key in metrics)
    return {key: value for key, value in metrics.items() if key not in CLOCKS}


def flat(network):
    return torch.cat([value.detach().reshape(-1) for value in network.parameters()])


def same(left, right):
    """Compares nested containers bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def first_batches(dataset, config, count):
    batches = Batches(
        dataset.train,
        batch_size=config.train.batch_size,
        device=CPU,
        seed=config.seed,
        augment=dataset.augment,
    )
    return [batch for _, batch in zip(range(count), batches.epoch(0), strict=False)]


# Learning rates


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (("train.schedule=constant",), {0: 1, 0.3: 1, 0.999: 1}),
        (("train.schedule=cosine",), {0: 1, 0.5: 0.5, 1 / 3: 0.75, 2 / 3: 0.25}),
        (
            ("train.schedule=step", "train.milestones=[0.25,0.75]", "train.gamma=0.2"),
            {0: 1, 0.249: 1, 0.25: 0.2, 0.749: 0.2, 0.75: 0.04, 0.99: 0.04},
        ),
        (
            ("train.schedule=one_cycle",),
            {0: 1 / 25, 0.15: (1 + 1 / 25) / 2, 0.3: 1, 0.65: 0.5, 1 - 1e-9: 0},
        ),
        (
            ("train.schedule=cosine", "train.warmup=0.2"),
            {0: 0.01, 0.1: 0.505 * (1 + math.cos(0.1 * math.pi)) / 2, 0.5: 0.5},
        ),
        (
            ("train.schedule=constant", "train.warmup=0.5"),
            {0: 0.01, 0.125: 0.2575, 0.4: 0.802, 0.5: 1},
        ),
    ],
)
def test_schedules_against_closed_forms(settings, values):
    train = make(*settings).train
    for progress, factor in values.items():
        assert schedule(train, progress) == pytest.approx(factor, abs=1e-12)


def test_one_cycle_is_that_of_pytorch(few):
    # PyTorch's counts steps - 1 intervals and ends at 1/10,000 of its start instead of 0.
    train, steps = make("train.schedule=one_cycle").train, 100_001
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, cycle_momentum=False, final_div_factor=1e12
    )
    for step in (0, 7, 15_000, 29_000, 50_000, 99_999):
        oracle.last_epoch = step - 1
        oracle._step_count = step
        oracle.step()
        assert schedule(train, step / (steps - 1)) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=5e-5
        )


def test_the_rate_of_each_step_is_that_of_its_share_of_the_run(digits, monkeypatch):
    config = make("train.lr=0.5", "train.epochs=2", "train.batch_size=500")
    rates = []
    trainer = Trainer(config, digits, CPU)
    step = trainer.optimizer.step
    monkeypatch.setattr(
        trainer.optimizer,
        "step",
        lambda: (rates.append({group["lr"] for group in trainer.optimizer.param_groups}), step()),
    )
    for _ in range(2):
        assert trainer.train_epoch() is None
    total = 2 * trainer.batches.steps
    assert total == 2 * (len(digits.train) // 500)
    assert rates == [{0.5 * (1 + math.cos(math.pi * i / total)) / 2} for i in range(total)]


# One step


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_a_hand_written_loop(momentum):
    """Nesterov momentum, weight decay on matrices and kernels only, in double precision."""
    config = make(
        "train.clip_norm=null",
        "method.name=standard", "data.augment=none", "train.lr=0.1", "train.epochs=1",
        f"train.momentum={momentum}", "train.weight_decay=0.03",
    )  # fmt: skip
    dataset = data.load(config.data)
    trainer = Trainer(config, dataset, CPU)
    trainer.network.double()
    torch.manual_seed(config.seed)
    network = assemble(config, dataset).double()
    assert same(parameters(network), parameters(trainer.network))
    speed = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    total = len(dataset.train) // 64
    for number, (images, labels) in enumerate(first_batches(dataset, config, 5)):
        images = images.double()
        trainer.step(images, labels, number / total)
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        rate = 0.1 * (1 + math.cos(math.pi * number / total)) / 2
        with torch.no_grad():
            named = network.named_parameters()
            for (name, weight), gradient in zip(named, gradients, strict=True):
                decay = 0.03 if weight.ndim > 1 else 0.0
                slope = gradient + decay * weight
                speed[name] = momentum * speed[name] + slope
                weight -= rate * (slope + momentum * speed[name])
    for name, value in network.state_dict().items():
        found = trainer.network.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_on_matrices_and_kernels_only(few, optimizer):
    config = make(
        "model.name=resnet20", f"train.optimizer={optimizer}", "train.lr=0.1",
        "train.weight_decay=0.5", "train.schedule=constant", "train.momentum=0",
    )  # fmt: skip
    trainer = Trainer(config, few, CPU)
    before = {name: value.detach().clone() for name, value in trainer.network.named_parameters()}
    trainer.wrapped = _Still(trainer.network)
    trainer.step(*first_batches(few, config, 1)[0], 0.0)
    kinds = set()
    for name, value in trainer.network.named_parameters():
        factor = 0.95 if value.ndim > 1 else 1.0
        kinds.add(value.ndim)
        torch.testing.assert_close(value.detach(), factor * before[name], msg=name)
    assert kinds == {1, 2, 4}


class _Still(nn.Module):
    """A loss whose gradient is zero everywhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, labels, generator, progress):
        return sum((0.0 * p).sum() for p in self.network.parameters())


def test_clipping_bounds_the_gradient(digits):
    plain = ("train.lr=1", "train.momentum=0", "train.weight_decay=0", "train.schedule=constant")
    moves = {}
    for bound in (None, 0.01, 1e6):
        config = make(*plain, f"train.clip_norm={bound or 'null'}")
        trainer = Trainer(config, digits, CPU)
        before = flat(trainer.network)
        trainer.step(*first_batches(digits, config, 1)[0], 0.0)
        after = flat(trainer.network)
        moves[bound] = before - after
    assert moves[None].norm() > 0.1
    assert moves[0.01].norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(
        moves[0.01] / 0.01, moves[None] / moves[None].norm(), atol=1e-3, rtol=0
    )
    assert torch.equal(moves[1e6], moves[None])


def test_without_a_moving_average_the_network_itself_is_kept(few):
    trainer = Trainer(make(), few, CPU)
    assert trainer.average is trainer.network


def test_bf16_on_a_cpu_gives_float32_logits_and_weights(digits):
    config = make("train.precision=bf16")
    trainer = Trainer(config, digits, CPU)
    inner, outer = [], []
    trainer.network.register_forward_hook(lambda *call: inner.append(call[-1].dtype))
    trainer.objective.network.register_forward_hook(lambda *call: outer.append(call[-1].dtype))
    assert trainer.step(*first_batches(digits, config, 1)[0], 0.0).dtype == torch.float32
    assert (inner, outer) == ([torch.bfloat16], [torch.float32])
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    plain = Trainer(make("train.precision=auto"), digits, CPU)
    assert plain.objective.network.autocast is None


def test_batches_are_balanced_where_it_is_asked_for(digits):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Asking(methods.get("standard")):
        balanced_classes = 4

    asked = make("train.batch_classes=8")
    for config, classes in ((asked, 8), (dataclasses.replace(make(), method=Asking()), 4)):
        for _, labels in Trainer(config, digits, CPU).batches.epoch(0):
            counts = labels.bincount(minlength=10).tolist()
            assert sorted(counts) == [0] * (10 - classes) + [64 // classes] * classes


def test_passes_are_counted_per_image(digits):
    progress = list(fit(make("method.name=standard", "train.epochs=2"), digits, CPU))
    images = len(digits.train) // 64 * 64
    for epoch, state in enumerate(progress, 1):
        assert state.metrics["passes/forward"] == epoch * images
        assert state.metrics["passes/backward"] == epoch * images


def test_the_average_loss_of_an_epoch_and_the_accuracy_are_those_of_a_plain_loop(digits):
    config = make("method.name=standard", "data.augment=none", "train.epochs=1")
    (progress,) = fit(config, digits, CPU)
    trainer = Trainer(config, digits, CPU)
    batches = first_batches(digits, config, trainer.batches.steps)
    losses = [float(trainer.step(*batch, i / len(batches))) for i, batch in enumerate(batches)]
    assert progress.metrics["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    images, labels = digits.validation.fetch(range(len(digits.validation)))
    hits = trainer.network.eval()(images).argmax(1) == labels
    assert progress.metrics["validation/accuracy"] == pytest.approx(float(hits.double().mean()))
    assert 0.5 < progress.metrics["validation/accuracy"] <= 1


def test_the_cheap_certificate_comes_when_it_is_due(few):
    found = {}
    for every in (0, 1, 2):
        config = make("train.epochs=3", f"certified_fast.every={every}")
        found[every] = [
            state.epoch for state in fit(config, few, CPU) if "certified_fast/acr" in state.metrics
        ]
    assert found == {0: [], 1: [1, 2, 3], 2: [2, 3]}


def test_the_cheap_certificate_comes_at_shares_of_the_budget(few, tmp_path):
    """Ten epochs: a quarter ends in the third, a half with the fifth, three quarters in the eighth;
    a resumed run measures in the same epochs."""
    config = make("train.epochs=10", "certified_fast.every=0.25")

    def measured(resume=None):
        for state in fit(config, few, CPU, resume):
            if state.epoch == 6 and resume is None:
                folder = tmp_path / "epoch-000006"
                folder.mkdir(exist_ok=True)
                state.save(folder)
            if "certified_fast/acr" in state.metrics:
                yield state.epoch

    assert list(measured()) == [3, 5, 8, 10]
    assert list(measured(tmp_path / "epoch-000006")) == [8, 10]
    often = make("train.epochs=3")
    assert ["certified_fast/acr" in state.metrics for state in fit(often, few, CPU)] == [True] * 3


# Divergence


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(digits):
    states = list(fit(make("train.lr=1e6", "train.epochs=3"), digits, CPU))
    assert len(states) == 1
    assert states[0].done
    message = states[0].failure
    assert "nan" in message
    assert "epoch 1" in message
    assert "no checkpoint was kept" in message
    assert "train.lr (now 1e+06)" in message


def test_divergence_keeps_the_last_good_checkpoint(few, tmp_path):
    config = make("train.epochs=4", "train.batch_size=40")
    run, messages = fit(config, few, CPU), []
    for progress in run:
        if progress.failure is not None:
            messages.append(progress.failure)
            continue
        checkpoint.commit(tmp_path, checkpoint.folder_name(progress.epoch), progress.save, 2)
        if progress.epoch == 2:
            trainer = progress.save.__self__
            next(trainer.network.parameters()).data.fill_(float("nan"))
    assert len(messages) == 1
    assert "epoch 3" in messages[0]
    assert "the checkpoint of epoch 2 was kept" in messages[0]
    kept = checkpoint.newest(tmp_path)
    assert checkpoint.epoch_of(kept) == 2
    assert all(v.isfinite().all() for v in checkpoint.read_weights(kept).values())


# Resume

HARD = ("train.epochs=4", "train.batch_size=20", "train.ema=0.9", "data.augment=crop_flip")


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (1, ("method.name=gaussian", "train.schedule=one_cycle")),
        (2, ("method.name=gaussian", "train.optimizer=adamw", "train.clip_norm=1")),
        (2, ("method.name=gaussian", "model.name=resnet20", "certified_fast.examples=2")),
        (
            3,
            (
                "method.name=standard",
                "model.name=resnet20",
                "train.ema=0",
                "certified_fast.every=0",
            ),
        ),
        (2, ("method.name=gaussian", "train.ema=0", "train.precision=bf16")),
        (2, ("method.name=gaussian", "train.passes=7")),
        (2, ("method.name=multi_norm", "method.steps=1", "train.label_smoothing=0.1")),
    ],
    ids=["sgd", "adamw", "resnet20", "resnet20 without average", "bf16", "passes", "memory"],
)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(few, tmp_path, settings, stop):
    config = make(*HARD, *settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def run(root, resume=None, last=4):
        metrics = []
        for progress in fit(config, few, CPU, resume):
            folder = checkpoint.folder_name(progress.epoch)
            path = checkpoint.commit(root, folder, progress.save, 9)
            metrics.append(progress.metrics)
            if progress.epoch == last:
                return path, metrics
        raise AssertionError("the loop ended early")

    torch.manual_seed(1)
    end, expected = run(whole)
    middle, first = run(parts, last=stop)
    torch.manual_seed(99)  # a new process has another global state
    torch.rand(7)
    resumed, second = run(parts, resume=middle)
    assert same(checkpoint.read_weights(resumed), checkpoint.read_weights(end))
    assert same(checkpoint.read_state(resumed), checkpoint.read_state(end))
    assert list(map(timeless, first + second)) == list(map(timeless, expected))
    assert not same(checkpoint.read_weights(resumed), checkpoint.read_weights(middle))


def test_a_finished_run_has_nothing_left_to_do(few, tmp_path):
    config = make("train.epochs=1")
    for progress in fit(config, few, CPU):
        progress.save(tmp_path)
    assert list(fit(config, few, CPU, tmp_path)) == []


def test_training_depends_on_the_seed_alone(few):
    def train(*settings):
        trainer = Trainer(make("train.batch_size=20", *settings), few, CPU)
        trainer.train_epoch()
        return parameters(trainer.network)

    torch.manual_seed(5)
    one = train()
    torch.manual_seed(6)
    assert same(train(), one)
    assert not same(train("seed=1"), one)


# Budgets


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        (("method.name=standard",), 2),
        (("method.name=gaussian",), 2),
        (("method.name=pgd", "method.steps=3", "method.warmup=0"), 8),
        (("method.name=macer", "method.sigma=0.25", "method.k=4"), 8),
    ],
    ids=["standard", "gaussian", "pgd", "macer"],
)
def test_a_budget_of_passes_is_the_same_work_for_every_method(few, settings, each):
    """The step that reaches the budget is the last, wherever it falls in an epoch."""
    config = make("train.passes=21", "train.batch_size=10", "certified_fast.every=0", *settings)
    states = list(fit(config, few, CPU))
    metrics = states[-1].metrics
    passes = metrics["passes/forward"] + metrics["passes/backward"]
    assert metrics["passes/per_image"] == passes / 40
    assert 21 * 40 <= passes < 21 * 40 + each * 10
    assert [state.done for state in states] == [False] * (len(states) - 1) + [True]
    assert len(states) == math.ceil(21 / each)


def test_the_schedule_follows_the_share_of_the_passes(few):
    config = make("train.passes=4", "train.batch_size=10", "method.name=standard")
    trainer, shares = Trainer(config, few, CPU), []
    step = trainer.step
    trainer.step = lambda images, labels, share: shares.append(share) or step(images, labels, share)
    while not trainer.done:
        assert trainer.train_epoch() is None
    assert shares == [i / 8 for i in range(8)]


def test_a_budget_in_seconds_ends_the_run(few):
    config = make("train.seconds=0.2", "train.batch_size=10", "certified_fast.every=0")
    states = list(fit(config, few, CPU))
    assert states[-1].metrics["train/seconds"] >= 0.2
    assert all(state.metrics["train/seconds"] < 0.2 for state in states[:-1])


def test_the_cheap_attack_is_that_of_the_evaluation(digits):
    """PGD from the image itself, always measured at the end, whatever the interval."""
    attack = ("attacked_fast.every=2", "attacked_fast.examples=40", "attacked_fast.eps=0.05")
    config = make("train.epochs=3", "method.name=standard", "certified_fast.every=0", *attack)
    states = list(fit(config, digits, CPU))
    key = "attacked_fast/robust_accuracy"
    assert [key in state.metrics for state in states] == [False, True, True]
    network = states[-1].save.__self__.average
    chosen = torch.arange(40) * len(digits.validation) // 40
    images, labels = digits.validation.fetch(chosen)
    found = images.clone()
    for _ in range(10):
        found.requires_grad_(True)
        loss = F.cross_entropy(network(found), labels, reduction="sum")
        move = 0.0125 * torch.autograd.grad(loss, found)[0].sign()
        found = torch.clamp(found.detach() + move, images - 0.05, images + 0.05).clamp(0, 1)
    robust = (network(found).argmax(1) == labels) & (network(images).argmax(1) == labels)
    assert states[-1].metrics[key] == pytest.approx(float(robust.double().mean()))
    assert 0.05 < states[-1].metrics[key] < states[-1].metrics["validation/accuracy"]


# The golden run


def golden_losses(digits):
    """Ten steps of `gaussian` on digits, all in double precision including weights and noise, so
    that rounding differences between machines do not show in ten digits."""
    torch.set_default_dtype(torch.float64)
    try:
        config = make("method.name=gaussian", "train.lr=0.05", "train.clip_norm=null", "seed=0")
        trainer = Trainer(config, digits, CPU)
        trainer.generator.manual_seed(0)
        return [
            float(trainer.step(images.double(), labels, i / 100))
            for i, (images, labels) in enumerate(first_batches(digits, config, 10))
        ]
    finally:
        torch.set_default_dtype(torch.float32)


def test_golden_losses(digits):
    """If these numbers change, training has changed: regenerate them only for a reason stated in
    the commit."""
    stored = json.loads(GOLDEN.read_text())["gaussian on digits"]
    assert len(stored) == 10
    assert golden_losses(digits) == pytest.approx(stored, rel=1e-10)


# Several processes

_GROUP = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from raybust import config as configuration, data, methods
from raybust.disk import checkpoint
from raybust.training.fit import fit
from raybust.training.loop import Trainer
store, rank, world, out, *settings = sys.argv[1:]
torch.set_num_threads(1)
rank, world = int(rank), int(world)
if world > 1:
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
found = {}
"""
# Gloo's threads now and then abort an interpreter that ends ("terminate called without an active
# exception"): what the test is about is done by then, so the process leaves without teardown.
_END = """
torch.save(found, out)
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
import os
os._exit(0)
"""
_STEPS = """
for name in ("standard small_cnn", "gaussian small_cnn", "gaussian resnet20"):
    method, model = name.split()
    leaves = configuration.leaves_of_arguments(
        [f"method.name={method}", f"model.name={model}", *settings])
    config = configuration.compose(leaves, methods.get)
    trainer = Trainer(config, data.load(config.data), torch.device("cpu"))
    losses = []
    for i, (images, labels) in enumerate(trainer.batches.epoch(0)):
        if i == (20 if model == "small_cnn" else 3):
            break
        loss = trainer.step(images, labels, i / 50)
        losses.append(trainer.ranks.mean(loss))
    trainer.metrics = {"validation/seconds": 0.0}
    metrics = trainer.validate()
    del metrics["validation/seconds"]
    found[name] = {
        "losses": losses, "weights": trainer.network.state_dict(), "metrics": metrics}
"""
# A run whose ranks take differently many images through the network, whole and in two parts.
_PARTS = """
config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
dataset, device = data.load(config.data), torch.device("cpu")
middle = Path(out).parent / "middle"
found["whole"], found["parts"], found["counts"] = [], [], []
for progress in fit(config, dataset, device):
    found["whole"].append(progress.metrics)
    if progress.epoch == 2:
        if rank == 0:
            middle.mkdir()
            progress.save(middle)
        dist.barrier()
whole = progress
for progress in fit(config, dataset, device, middle):
    found["parts"].append(progress.metrics)
if rank == 0:
    ends = [Path(out).parent / name for name in ("end", "end again")]
    for end, last in zip(ends, (whole, progress)):
        end.mkdir()
        last.save(end)
    found["weights"] = [checkpoint.read_weights(end) for end in ends]
trainer = Trainer(config, dataset, device)
trainer.train_epoch()
found["counts"] = trainer.objective.network.forward_passes
"""


def _ranks(folder, world, code=_STEPS, settings=()):
    folder.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _GROUP + code + _END, folder / "store", str(rank), str(world),
             folder / f"{rank}.pt", *SMALL, "train.lr=0.05", *settings],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.slow
def test_two_workers_do_what_one_does(tmp_path):
    """The same global batch: losses over 20 steps agree to 1e-5, both ranks hold the same
    weights, and metrics are the same on every rank."""
    (one,) = _ranks(tmp_path / "one", 1)
    two = _ranks(tmp_path / "two", 2)
    standard = "standard small_cnn"
    assert len(one[standard]["losses"]) == 20
    assert two[0][standard]["losses"] == pytest.approx(one[standard]["losses"], abs=1e-5)
    for key, value in one[standard]["weights"].items():
        torch.testing.assert_close(two[0][standard]["weights"][key], value, atol=1e-4, rtol=1e-3)
    for name, result in two[0].items():
        assert same(result["metrics"], two[1][name]["metrics"]), name
        assert same(result["weights"], two[1][name]["weights"]), name
        assert all(map(math.isfinite, result["losses"]))
    key = "validation/accuracy"
    assert two[0][standard]["metrics"][key] == pytest.approx(
        one[standard]["metrics"][key], abs=0.01
    )
    gaussian = "gaussian small_cnn"
    assert two[0][gaussian]["losses"] != one[gaussian]["losses"]  # each rank draws its own noise
    assert two[0][gaussian]["losses"][-1] < two[0][gaussian]["losses"][0]


@pytest.mark.slow
def test_ranks_of_unequal_work_share_one_budget_and_resume_bit_for_bit(tmp_path):
    settings = (
        "method.name=geodesic", "method.warmup=0", "data.limit=300", "train.batch_size=64",
        "train.passes=60",
    )  # fmt: skip
    first, second = _ranks(tmp_path / "two", 2, _PARTS, settings)
    assert first["counts"] != second["counts"]  # else this shows nothing
    for name in ("whole", "parts"):
        mine, others = ([timeless(m) for m in rank[name]] for rank in (first, second))
        assert mine == others
    assert first["whole"][0]["passes/forward"] == first["counts"] + second["counts"]
    assert 60 <= first["whole"][-1]["passes/per_image"] < 75
    assert [timeless(m) for m in first["parts"]] == [timeless(m) for m in first["whole"][2:]]
    end, again = first["weights"]
    assert same(end, again)


def test_a_metric_is_the_mean_over_the_steps_that_have_it(few):
    """The geodesic terms start within the second epoch."""
    config = make(
        "method.name=geodesic", "method.location=fixed", "method.at=0.25", "method.penalty=0",
        "method.warmup=0.375", "train.batch_size=10", "train.epochs=4",
    )  # fmt: skip
    trainer = Trainer(config, few, CPU)
    trainer.train_epoch()
    assert "geodesic/location" not in trainer.metrics
    trainer.train_epoch()
    assert trainer.metrics["geodesic/location"] == pytest.approx(0.25)


def test_the_moment_estimate_is_there_when_asked_for(digits):
    asked = make("method.name=gaussian", "train.epochs=1", "certified_fast.moment=true")
    (end,) = fit(asked, digits, CPU)
    (plain,) = fit(make("method.name=gaussian", "train.epochs=1"), digits, CPU)
    assert end.metrics["certified_fast/moment_acr"] > 0
    assert "certified_fast/moment_acr" not in plain.metrics
    assert end.metrics["certified_fast/acr"] == plain.metrics["certified_fast/acr"]


# The objective


def test_the_objective_hands_on_what_the_method_logs_and_leaves_no_graph(digits):
    config = make("method.name=standard")
    torch.manual_seed(0)
    objective = Objective(assemble(config, digits), config.method)
    images, labels = digits.train.fetch(range(8))
    loss = objective(images, labels, torch.Generator(), 0.0)
    oracle = F.cross_entropy(objective.network.network(images), labels)
    assert torch.equal(loss, oracle)
    with torch.no_grad():
        objective(images, labels, torch.Generator(), 0.0)
    assert objective.network.forward_passes == 16
    assert objective.network.backward_passes == 0
    loss.backward()
    assert objective.network.backward_passes == 8


def test_probabilities_are_targets_too(digits):
    config = make("method.name=standard")
    objective = Objective(assemble(config, digits), config.method)
    images, labels = digits.train.fetch(range(8))
    hard = objective(images, labels, torch.Generator(), 0.0)
    soft = objective(images, F.one_hot(labels, 10).float(), torch.Generator(), 0.0)
    torch.testing.assert_close(soft, hard)


def test_a_front_module_is_part_of_the_network_and_of_its_checkpoint(few, tmp_path):
    class Shifted(type(make("method.name=standard").method)):
        def front(self):
            return nn.Conv2d(1, 1, 1)

    config = make("train.epochs=1")
    config = configuration.Config(**{**vars(config), "method": Shifted()})
    trainer = Trainer(config, few, CPU)
    weights = copy.deepcopy(trainer.network.state_dict())
    assert "front.weight" in weights
    trainer.train_epoch()
    assert not torch.equal(trainer.network.state_dict()["front.weight"], weights["front.weight"])


def test_a_split_smaller_than_the_batch_is_one_batch(few):
    trainer = Trainer(make("train.batch_size=64"), few, CPU)
    assert (trainer.batches.steps, trainer.batches.batch_size) == (1, 40)
    assert isinstance(few.train, Split)


@pytest.mark.parametrize("part", ["weight", "statistics"])
def test_an_update_that_breaks_the_network_is_seen_before_it_is_kept(part):
    """The loss of the last step is finite; the updated network is not."""
    name = "small_cnn" if part == "weight" else "resnet20"
    changed = make("train.epochs=2", f"model.name={name}")
    dataset = data.load(changed.data)
    trainer = Trainer(changed, dataset, CPU)
    step, calls = trainer.step, []

    def breaking(images, labels, progress):
        loss = step(images, labels, progress)
        calls.append(None)
        if len(calls) == trainer.batches.steps:
            held = trainer.network.state_dict()
            key = next(k for k in held if k.endswith("weight" if part == "weight" else "_mean"))
            with torch.no_grad():
                held[key].view(-1)[0] = float("inf")
        return loss

    trainer.step = breaking
    failure = trainer.train_epoch()
    assert "the network became NaN or infinite in epoch 1" in failure
    assert trainer.epoch == 0


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        (("train.batch_size=128",), 0.05),
        (("train.optimizer=adamw", "train.batch_size=128"), 0.002),
        (("train.batch_size=32",), 0.025),
        (("train.batch_size=32", "train.lr=0.4"), 0.4),
    ],
)
def test_the_default_rate_follows_optimizer_and_batch(settings, rate):
    assert make(*settings).train.rate == pytest.approx(rate)


@pytest.mark.skipif(not MNIST.exists(), reason="needs the shared data")
def test_defaults_train_where_unclipped_steps_end_at_chance():
    """Issue of a first run: with the default rate and no clipping, accuracy stays at 0.11."""
    settings = ["data.name=npz", f"data.path={MNIST}", "data.limit=4000", "train.epochs=2",
                "train.batch_size=128", "model.width=32",
                "method.name=gaussian", "method.sigma=0.5", "certified_fast.every=0"]  # fmt: skip
    found = {}
    for more in ((), ("train.clip_norm=null",)):
        config = make(*settings, *more)
        (*_, last) = fit(config, data.load(config.data), CPU)
        found[more] = last.metrics["validation/accuracy"]
    assert found[()] > 0.6
    assert found["train.clip_norm=null",] < 0.2


class Reads(nn.Module):
    """Reads the label from the brightness of an image; says 0 where it is 6 or more."""

    def forward(self, images):
        label = (images.mean((1, 2, 3)) * 10).round().long()
        said = F.one_hot(torch.where(label < 6, label, 0), 10).float() * 100
        return said + 0 * images.sum()


@pytest.mark.parametrize("examples", [31, 60, 61, 100, 118, 119, 500])
def test_the_fast_measures_see_all_classes_of_a_sorted_part(examples):
    labels = torch.arange(120) // 12
    images = (labels / 10).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    part = data.Split(images, labels, torch.arange(120), 1.0)
    config = make("method.name=gaussian", "method.sigma=0.01",
                  f"certified_fast.examples={examples}", "certified_fast.n=100",
                  "attacked_fast.every=1", f"attacked_fast.examples={examples}",
                  "attacked_fast.eps=0.001")  # fmt: skip
    found = measure(Reads(), part, config, Ranks.current(CPU), epoch=1, before=0, spent=1)
    for name in ("validation/accuracy", "certified_fast/accuracy_at/0",
                 "attacked_fast/robust_accuracy"):  # fmt: skip
        assert found[name] == pytest.approx(0.6, abs=0.03), name


@pytest.mark.parametrize("total", [1, 2, 7, 119, 1000])
def test_spread_positions_are_distinct_and_even(total):
    for count in {1, 2, total // 2 + 1, total, total + 5}:
        found = data.spread(total, count)
        assert len(set(found)) == len(found) == min(count, total)
        gaps = {after - before for before, after in itertools.pairwise(found)}
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert found[0] == 0
        assert found[-1] < total


def test_training_is_not_resumed_on_data_whose_classes_have_other_names(cli, tmp_path):
    draw = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": values
        for part, count in (("train", 60), ("test", 20))
        for kind, values in (
            ("x", draw.integers(0, 256, (count, 8, 8), np.uint8)),
            ("y", np.arange(count) % 3),
        )
    }
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    command = (
        "train", "data.name=npz", f"data.path={path}", "train.epochs=1", "--name", "own",
        "--out", tmp_path,
    )  # fmt: skip
    assert cli(*command).code == 0
    np.savez(path, **arrays, class_names=np.array(["a", "b", "c"]))
    done = cli(*command)
    assert done.code == 2
    assert "class 0 was '0' when it began, but is 'a' in the data now" in done.err
    np.savez(path, **arrays)
    assert cli(*command).code == 0
