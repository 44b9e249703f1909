"""Rounding is told from another function, whatever the size of the logits."""

import math

import pytest
import torch

from raybust.models.cifar import ResNet
from raybust.numerics.logits import logit_change

LOGITS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1e9])


def same(first, second, share=1e-3):
    change, allowed = logit_change(first, second, share)
    return change <= allowed


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    "shift", [torch.zeros(6), MASK, -math.inf * (MASK < 0).float().nan_to_num(0)]
)
def test_a_change_of_a_hundredth_is_seen_and_rounding_is_not(count, scale, shift):
    shift = shift.nan_to_num(0.0, neginf=-math.inf)
    logits = scale * LOGITS[:count]
    changed, rounded = logits.clone(), logits * (1 + 1e-6)
    changed[0, 2] += 0.01 * scale * (10 if count < 3 else 1)
    assert not same(logits + shift, changed + shift)
    assert same(logits + shift, rounded + shift)
    assert same(logits + shift, logits + shift)


def test_an_offset_of_all_classes_hides_nothing():
    changed = LOGITS.clone()
    changed[7, 1] += 0.1
    assert not same(LOGITS + 1e4, changed + 1e4)
    assert same(LOGITS + 1e4, LOGITS + 1e4 + 1e-3)
    assert same(LOGITS, LOGITS + 5.0)


def test_logits_that_are_not_numbers_differ():
    broken = LOGITS.clone()
    broken[3, 3] = math.nan
    assert not same(LOGITS, broken)
    assert not same(broken, LOGITS)


@pytest.mark.parametrize("gain", [1.0, 1e-4])
def test_batches_of_one_round_otherwise_and_are_the_same(gain):
    """Also where all images give nearly the same logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, images = ResNet(3, 10, 20).eval(), torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        images = 0.5 + gain * (images - 0.5)
        together, alone = network(images), torch.cat([network(one[None]) for one in images])
    assert same(together, alone)
