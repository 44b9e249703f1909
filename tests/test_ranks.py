"""Several ranks: metrics of unequal ranks, random layers, the parts of a batch."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raybust import config as configuration
from raybust import data, methods
from raybust.disk import checkpoint
from raybust.testing import run_ranks
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.training.ranks import Ranks

CPU = torch.device("cpu")
SMALL = (
    "model.width=4", "train.batch_size=64", "data.limit=200", "certified_fast.n=100",
    "method.name=gaussian", "train.epochs=1",
)  # fmt: skip
RANDOM_NETWORK = """
from torch import nn

def dropout(num_classes, in_channels, image_size):
    side = image_size if isinstance(image_size, int) else image_size[0]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * side**2, 16), nn.Dropout(0.5),
        nn.Linear(16, num_classes),
    )
"""


def make(*settings):
    return configuration.compose(
        configuration.leaves_of_arguments([*SMALL, *settings]), methods.get
    )


def load(folder, world):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _validate(rank, folder, settings):
    config = make(*settings)
    trainer = Trainer(config, data.load(config.data), CPU)
    trainer.train_epoch()
    (folder / f"{rank}.json").write_text(json.dumps(trainer.validate()))


@pytest.mark.slow
def test_a_rank_without_examples_takes_part(tmp_path):
    """Three ranks share one example of the cheap certificate and two of the cheap attack."""
    settings = ("certified_fast.examples=1", "certified_fast.moment=true",
                "attacked_fast.every=1", "attacked_fast.examples=2", "train.batch_size=66",
                "attacked_fast.eps=0.01")  # fmt: skip
    run_ranks(_validate, tmp_path, tmp_path, settings, world=3, seconds=60)
    first, *others = load(tmp_path, 3)
    for other in others:
        for key, value in first.items():
            assert "second" in key or other[key] == value, key
    assert {"certified_fast/acr", "certified_fast/moment_acr"} <= first.keys()
    assert all(math.isfinite(value) for value in first.values())
    assert first["attacked_fast/robust_accuracy"] in (0, 0.5, 1)


def _means(rank, folder):
    """Rank 0 logs `b` and `often`, rank 1 logs `a` and `often`, in another order and other numbers
    of steps."""
    if rank == 0:
        parts = {"often": (torch.tensor(3.0), 3), "b": (torch.tensor(100.0), 1)}
    else:
        parts = {"a": (torch.tensor(1.0), 1), "often": (10.0, 1)}
    found = Ranks.current(CPU).means(parts)
    assert Ranks.current(CPU).means({}) == {}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_metrics_that_few_ranks_log_are_their_means(tmp_path):
    run_ranks(_means, tmp_path, tmp_path, seconds=60)
    first, second = load(tmp_path, 2)
    assert first == second == {"a": 1.0, "b": 100.0, "often": 13 / 4}


def _masks(rank, folder):
    config = make()
    trainer = Trainer(config, data.load(config.data), CPU)
    layer, found = nn.Dropout(0.5), []
    trainer.objective.register_forward_hook(lambda *_: found.append(layer(torch.ones(64)).tolist()))
    trainer.train_epoch()
    (folder / f"{rank}.json").write_text(json.dumps(found[0]))


@pytest.mark.slow
def test_each_rank_draws_its_own_masks(tmp_path):
    run_ranks(_masks, tmp_path, tmp_path, seconds=60)
    first, second = load(tmp_path, 2)
    assert first != second


def test_a_network_with_dropout_resumes_bit_for_bit(tmp_path, monkeypatch):
    (tmp_path / "random_network.py").write_text(RANDOM_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    config = make("train.epochs=3", "model.name=random_network:dropout", "certified_fast.every=0")
    dataset = data.load(config.data)
    torch.manual_seed(1)
    for progress in fit(config, dataset, CPU):
        folder = tmp_path / str(progress.epoch)
        folder.mkdir()
        progress.save(folder)
    torch.manual_seed(99)
    torch.rand(3)
    for progress in fit(config, dataset, CPU, tmp_path / "1"):
        if progress.epoch == 3:
            progress.save(tmp_path)
    whole, resumed = (checkpoint.read_weights(path) for path in (tmp_path / "3", tmp_path))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


# The parts of a batch


def test_a_batch_in_parts_is_the_whole_batch():
    """Without batch norm and noise the gradient is the same, so the weights are."""
    dataset = data.load(make().data)
    weights = []
    for parts in (1, 4):
        config = make("method.name=standard", f"train.accumulate={parts}", "train.clip_norm=1")
        trainer = Trainer(config, dataset, CPU)
        trainer.network.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        weights.append(trainer)
    one, four = weights
    four.network.load_state_dict(one.network.state_dict())
    for trainer in weights:
        trainer.optimizer.param_groups.clear()
        trainer.optimizer.add_param_group(
            {"params": list(trainer.network.parameters()), "weight_decay": 0.0}
        )
    for step, (images, labels) in zip(range(3), one.batches.epoch(0), strict=False):
        losses = [float(trainer.step(images, labels, step / 3)) for trainer in weights]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for key, value in one.network.state_dict().items():
        torch.testing.assert_close(four.network.state_dict()[key], value)
    assert one._sums["train/gradient_norm"][1] == four._sums["train/gradient_norm"][1] == 3


def _in_parts(rank, folder, parts):
    config = make("method.name=standard", f"train.accumulate={parts}")
    trainer = Trainer(config, data.load(config.data), CPU)
    trainer.train_epoch()
    total = [float(p.double().abs().sum()) for p in trainer.network.parameters()]
    (folder / f"{rank}.json").write_text(json.dumps(total))


@pytest.mark.slow
def test_ranks_agree_on_a_batch_in_parts(tmp_path):
    run_ranks(_in_parts, tmp_path, tmp_path, 2, seconds=60)
    first, second = load(tmp_path, 2)
    assert first == second


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(Exception, match=r"multiple of the 1 workers times 3 parts"):
        Trainer(make("train.accumulate=3"), data.load(make().data), CPU)


# Out of memory


def test_a_run_that_does_not_fit_ends_with_one_line(monkeypatch):
    config = make()
    monkeypatch.setattr(Trainer, "step", _out_of_memory)
    (end,) = fit(config, data.load(config.data), CPU)
    assert end.failure == (
        "out of device memory: small_cnn with batches of 64 images in 1 part (CUDA out of memory);"
        " lower train.batch_size or set train.accumulate=2"
    )
    assert end.done


def _out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def _one_does_not_fit(rank, folder):
    if rank == 1:
        Trainer.step = _out_of_memory
    config = make()
    try:
        list(fit(config, data.load(config.data), CPU))
    except Exception as error:
        (folder / f"{rank}.json").write_text(json.dumps([type(error).__name__, str(error)]))
    if rank == 1:
        dist.destroy_process_group()
        raise SystemExit(0)


@pytest.mark.slow
def test_a_rank_that_does_not_fit_ends_the_others(tmp_path):
    with pytest.raises(Exception, match=r"."):
        run_ranks(_one_does_not_fit, tmp_path, tmp_path, seconds=20)
    kind, text = json.loads((tmp_path / "1.json").read_text())
    assert (kind, text.startswith("out of device memory")) == ("WorkError", True)
