"""Accuracy against counting by hand, its interval against the binomial distribution."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import nn

from raybust.config.assess import Evaluate
from raybust.data import Split
from raybust.evaluate import Accuracy, clean_accuracy, correct

CPU = torch.device("cpu")


class Reader(nn.Module):
    """Reads the class from the first pixel, in eighths; counts the batches it sees."""

    def __init__(self):
        super().__init__()
        self.sizes = []
        self.eval()

    def forward(self, images):
        self.sizes.append(len(images))
        return nn.functional.one_hot((images[:, 0, 0, 0] * 8).round().long(), 8).float()


def split(labels, shown):
    images = torch.tensor(shown, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    count = len(labels)
    return Split(images.contiguous(), torch.tensor(labels), torch.arange(count), scale=8.0)


def test_hits_are_in_the_order_of_the_positions_for_every_batch_size():
    part = split([0, 1, 2, 3, 4, 5, 6], [0, 1, 7, 3, 0, 5, 6])
    expected = [True, True, False, True, False, True, True]
    for batch in (1, 2, 3, 7, 100):
        network = Reader()
        hits = correct(network, part, range(7), batch=batch, device=CPU)
        assert hits.tolist() == expected
        assert max(network.sizes) <= batch
        assert sum(network.sizes) == 7
    assert correct(Reader(), part, [4, 0, 2], batch=2, device=CPU).tolist() == [False, True, False]


def test_no_examples_are_no_hits():
    hits = correct(Reader(), split([0], [0]), [], batch=4, device=CPU)
    assert hits.shape == (0,)
    assert hits.dtype == torch.bool


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(AssertionError, match="eval mode"):
        correct(Reader().train(), split([0], [0]), [0], batch=1, device=CPU)


def test_accuracy_and_its_exact_interval():
    shown = [1] * 17 + [2] * 3
    found = clean_accuracy(Reader(), split([1] * 20, shown), Evaluate(batch=6), CPU)
    assert (found.split, found.examples, found.accuracy) == ("test", 20, 0.85)
    # Clopper and Pearson: at either end, what was seen or more extreme has probability 2.5 %.
    assert binom.sf(16, 20, found.low) == pytest.approx(0.025, rel=1e-6)
    assert binom.cdf(17, 20, found.high) == pytest.approx(0.025, rel=1e-6)
    assert str(found) == (
        "clean accuracy 0.8500 on 20 test examples"
        f" (95 % interval {found.low:.4f} to {found.high:.4f})"
    )


@pytest.mark.parametrize(("shown", "low", "high"), [(3, 0.025 ** (1 / 9), 1.0), (4, 0.0, None)])
def test_all_right_and_all_wrong(shown, low, high):
    part = split([3] * 9, [shown] * 9)
    found = clean_accuracy(Reader(), part, Evaluate(), CPU)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 9) if high is None else high, abs=1e-9)


def test_the_number_of_examples_are_as_configured():
    whole = split([1] * 6, [1, 1, 0, 0, 0, 0])
    config = Evaluate(split="validation")
    assert clean_accuracy(Reader(), whole, config, CPU).accuracy == pytest.approx(2 / 6)
    assert clean_accuracy(Reader(), whole, replace(config, examples=2), CPU).accuracy == 1
    assert clean_accuracy(Reader(), whole, replace(config, examples=99), CPU).examples == 6


def test_weights_and_mode_are_as_before():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 8)).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = clean_accuracy(network, split([0] * 5, range(5)), Evaluate(), CPU)
    assert isinstance(found, Accuracy)
    assert not network.training
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_outputs_that_are_not_numbers_are_no_hits():
    """argmax takes NaN for the largest, and would count these images as class 0."""

    class Broken(Reader):
        def forward(self, images):
            logits = super().forward(images)
            logits[1:3, 0] = float("nan")
            return logits

    hits = correct(Broken(), split([0, 0, 1, 0], [0, 0, 1, 0]), range(4), batch=4, device=CPU)
    assert hits.tolist() == [True, False, False, True]
