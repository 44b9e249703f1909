"""`train.ema` and `train.label_smoothing`: their formulas, kills, and several ranks."""

import pytest
import torch
import torch.nn.functional as F
from few import few_digits
from test_train import _ranks, first_batches, make, parameters, same
from torch import nn

from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.mixup import Mixup
from raybust.methods.pgd import Pgd
from raybust.methods.standard import Standard
from raybust.methods.trades import Trades
from raybust.training.average import Average
from raybust.training.fit import fit
from raybust.training.loop import Trainer
from raybust.training.objective import Objective, smoothed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few():
    return few_digits()


def test_the_decays_are_one_tenth_two_elevenths_and_so_on_up_to_the_limit():
    average = Average(nn.Linear(2, 2), 0.995)
    network, found = nn.Linear(2, 2), []
    for _ in range(4000):
        found.append(average.decay())
        average.follow(network, 0.5)
    assert found[:3] == [1 / 10, 2 / 11, 3 / 12]
    rise = [(1 + t) / (10 + t) for t in range(4000)]
    assert found == [min(0.995, value) for value in rise]
    assert found[-1] == 0.995


def test_the_average_is_the_network_in_the_first_fortieth_of_the_run():
    network = nn.Linear(3, 2)
    average = Average(network, 0.9)
    for progress in (0.0, 0.01, 0.0249):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        average.follow(network, progress)
        assert torch.equal(average.network.weight, network.weight)
        assert average.steps == 0
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    average.follow(network, 0.025)
    torch.testing.assert_close(average.network.weight, before + 0.9)
    assert average.steps == 1


def test_constant_weights_stay():
    network = nn.Linear(5, 4)
    average = Average(network, 0.995)
    for _ in range(500):
        average.follow(network, 0.5)
    assert same(parameters(average.network), parameters(network))


def test_a_run_averages_by_the_formula_and_takes_over_batch_norm(few):
    """Against a loop in float64 over the weights that the optimizer left; 20 steps, the first of
    which is the warm-up."""
    config = make("model.name=resnet20", "train.ema=0.6", "train.batch_size=4", "train.epochs=2")
    trainer = Trainer(config, few, CPU)
    expected = {name: p.detach().double() for name, p in trainer.network.named_parameters()}
    step, count = trainer.step, 0

    def watched(images, labels, progress):
        nonlocal count
        loss = step(images, labels, progress)
        decay = 0.0
        if progress >= 0.025:
            decay = min(0.6, (1 + count) / (10 + count))
            count += 1
        for name, value in trainer.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
        return loss

    trainer.step = watched
    for _ in range(2):
        assert trainer.train_epoch() is None
        for name, value in trainer.average.named_parameters():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        buffers = dict(trainer.network.named_buffers())
        assert any("running_var" in name for name in buffers)
        assert same(dict(trainer.average.named_buffers()), buffers)
    assert count == 19
    assert not same(parameters(trainer.network), parameters(trainer.average))


@pytest.mark.slow
def test_two_ranks_average_alike_and_resume_bit_for_bit(tmp_path):
    """Batch norm's statistics differ between ranks until the next step; the first rank's count."""
    code = """
config = configuration.compose(configuration.leaves_of_arguments(settings), methods.get)
dataset, device = data.load(config.data), torch.device("cpu")
middle, ends = Path(out).parent / "middle", []
for resume in (None, middle):
    for progress in fit(config, dataset, device, resume):
        if resume is None and progress.epoch == 1:
            if rank == 0:
                middle.mkdir()
                progress.save(middle)
            dist.barrier()
    trainer = progress.save.__self__
    ends.append({k: v.clone() for k, v in trainer.average.state_dict().items()})
found["ends"] = ends
"""
    settings = ("model.name=resnet20", "data.limit=128", "train.batch_size=32", "train.epochs=2",
                "train.ema=0.9", "train.label_smoothing=0.1", "method.name=standard",
                "certified_fast.every=0")  # fmt: skip
    first, second = _ranks(tmp_path / "two", 2, code, settings)
    for found in (first, second):
        assert same(found["ends"][0], found["ends"][1])
    assert same(first["ends"][0], second["ends"][0])


# Label smoothing


def test_smoothed_labels_are_those_of_pytorch():
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    soft = smoothed(labels, 0.1, 5, torch.float64)
    oracle = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(F.cross_entropy(logits, soft)) == pytest.approx(float(oracle), rel=1e-7)
    assert soft[0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


def loss_of(method, network, images, labels, share, seed=0):
    objective = Objective(network, method)
    objective.prepare(images, labels)
    objective.smoothing = share, 3
    return objective(images, labels, torch.Generator().manual_seed(seed), 0.5)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.fixture
def batch():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    return images, torch.tensor([0, 1, 2, 0, 1, 2])


def test_trades_smooths_its_clean_cross_entropy_alone(network, batch):
    """The whole difference is that of the clean term: attack and divergence do not change."""
    images, labels = batch
    method = Trades(eps=0.1, steps=2)
    plain, soft = (loss_of(method, network, images, labels, share) for share in (0.0, 0.2))
    clean = network(images)
    change = F.cross_entropy(clean, labels, label_smoothing=0.2) - F.cross_entropy(clean, labels)
    assert float((soft - plain).detach()) == pytest.approx(float(change.detach()), rel=1e-9)


def test_pgd_attacks_the_label_and_smooths_the_loss_there(network, batch):
    images, labels = batch
    method = Pgd(eps=0.1, steps=3)
    context = StepContext(torch.Generator().manual_seed(0), 0.5)
    worst = method.worst(network, images, labels, context)
    oracle = F.cross_entropy(network(worst), labels, label_smoothing=0.2)
    found = loss_of(method, network, images, labels, 0.2)
    assert float(found.detach()) == pytest.approx(float(oracle.detach()), rel=1e-6)


def test_mixed_labels_are_sharpened_too(network, batch):
    """Mixup mixes smoothed labels; the attack of its base gets the mixture of the labels."""
    images, labels = batch
    seen = []

    class Watched(Pgd):
        def worst(self, network, images, targets, context):
            seen.append(context.sharp(targets))
            return super().worst(network, images, targets, context)

    for share in (0.0, 0.3):
        loss_of(Mixup(base=Watched(eps=0.1, steps=1)), network, images, labels, share)
    torch.testing.assert_close(seen[1], seen[0], atol=1e-6, rtol=0)


def test_smoothing_in_a_run(few):
    config = make("method.name=standard", "train.label_smoothing=0.1", "train.batch_size=20")
    trainer = Trainer(config, few, CPU)
    images, labels = first_batches(few, config, 1)[0]
    logits = trainer.network(images)
    oracle = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(trainer.step(images, labels, 0.0)) == pytest.approx(
        float(oracle.detach()), rel=1e-6
    )
    assert isinstance(config.method, Standard)


def test_no_smoothing_changes_nothing(few):
    for settings in ((), ("train.label_smoothing=0",)):
        assert not Trainer(make(*settings), few, CPU).objective.smoothing[0]


def test_rounds_refuse_smoothing():
    with pytest.raises(RequestError, match=r"train\.label_smoothing: got 0\.1, expected 0"):
        make("method.name=geodesic", "method.refresh=5", "train.label_smoothing=0.1")


def test_a_checkpoint_of_raybust_0_1_goes_on_with_the_constant_decay(few, tmp_path):
    """It lacks the number of steps; its average did not rise."""
    config = make("train.ema=0.9", "train.epochs=2", "train.batch_size=20")
    progress = next(iter(fit(config, few, CPU)))
    progress.save(tmp_path)
    state = checkpoint.read_state(tmp_path)
    assert state.pop("averaged") == 1  # two steps, of which the first is in the warm-up
    manifest = checkpoint.read_manifest(tmp_path)
    checkpoint.write(tmp_path, checkpoint.read_weights(tmp_path), state, manifest | {"files": {}})
    assert Trainer(config, few, CPU, tmp_path).averaging.decay() == 0.9
