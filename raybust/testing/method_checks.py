"""Requirements on one training step of every method, as plain functions of a `Method` instance.

`check_step` runs all of them. Each raises an AssertionError that says what is wrong. Requirements
on a method's class are in `raybust.testing.class_checks`.
"""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from raybust import methods
from raybust.config import Config, MethodTypes, compose, from_dict, leaves_of, to_dict
from raybust.methods import Method
from raybust.testing.step import BATCH, Step, batch, network_for


def lookup(method: Method) -> MethodTypes:
    """Returns a `methods.get` that also finds this method, which need not be registered."""
    return lambda name: type(method) if name == method.key else methods.get(name)


def check_step(method: Method) -> None:
    """Runs every check of one step."""
    for check in STEP_CHECKS:
        check(method)


def check_loss_and_gradient(method: Method) -> None:
    """The loss is a finite scalar of the images' dtype and its gradient reaches every parameter."""
    for dtype in (torch.float32, torch.float64):
        step = Step(method, dtype)
        loss = step.loss()
        assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}"
        assert loss.dtype == dtype, f"the loss is {loss.dtype} on images {dtype}"
        assert loss.isfinite(), "the loss is not finite"
        assert step.probe.dtypes <= {dtype}, f"the network got {step.probe.dtypes}, not {dtype}"
        assert step.probe.devices <= {step.images.device}
        loss.backward()
        for name, parameter in step.network.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"


def check_precisions_agree(method: Method) -> None:
    """A method that draws no random numbers has the same loss in float32 and float64."""
    single, double = Step(method, torch.float32), Step(method, torch.float64)
    losses = single.loss().item(), double.loss().item()
    if not single.drew:
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def check_targets(method: Method) -> None:
    """Labels and their one-hot probabilities give the same loss; softer probabilities change it."""
    hard, one_hot, soft = (Step(method, torch.float64, soft=s) for s in (None, 0.0, 0.4))
    value = hard.loss().item()
    assert value == pytest.approx(one_hot.loss().item(), rel=1e-9), "one-hot targets differ"
    loss = soft.loss()
    assert loss.isfinite()
    assert loss.item() != value, "probabilities are treated as labels"
    loss.backward()
    gradient = soft.probe.head.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()


def check_randomness(method: Method, converges: bool = False) -> None:
    """All randomness comes from the generator: the same seed gives the same loss, another seed a
    different one, and global random states do not change.

    Args:
        method: method under test.
        converges: whether different seeds may give the same loss, as for an attack that ends in the
            same corner of its ball from every start.
    """
    first, again, other = (Step(method, torch.float64, seed) for seed in (0, 0, 1))
    states = torch.get_rng_state(), _numpy_state(), random.getstate()
    losses = [step.loss().item() for step in (first, again, other)]
    assert losses[0] == losses[1], "the same seed gives a different loss"
    assert torch.equal(states[0], torch.get_rng_state()), "draws from torch's global generator"
    assert states[1] == _numpy_state(), "draws from numpy's global generator"
    assert states[2] == random.getstate(), "draws from Python's global generator"
    assert first.drew or losses[0] == losses[2], "uses randomness from outside the generator"
    assert converges or not first.drew or losses[0] != losses[2], "the loss ignores the draws"


def _numpy_state() -> str:
    return str(np.random.get_state())  # noqa: NPY002


def check_inputs_untouched(method: Method) -> None:
    """The method leaves images and targets unchanged and requires no gradient of them."""
    for soft in (None, 0.4):
        step = Step(method, soft=soft)
        images, targets = step.images.clone(), step.targets.clone()
        step.loss().backward()
        assert torch.equal(images, step.images), "the images were changed"
        assert torch.equal(targets, step.targets), "the targets were changed"
        assert not step.images.requires_grad
        assert step.images.grad is None


def check_network_untouched(method: Method) -> None:
    """The method leaves weights, modes, flags, gradients and buffers unchanged; only batch norm's
    statistics may move, once per training pass."""
    for train in (True, False):
        step = Step(method, train=train)
        frozen = step.probe.norm.bias.requires_grad_(False)  # a flag that must survive
        for parameter in step.network.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        state = copy.deepcopy(step.network.state_dict())
        modes = [module.training for module in step.network.modules()]
        step.loss()
        assert modes == [module.training for module in step.network.modules()], "a mode changed"
        for name, parameter in step.network.named_parameters():
            assert parameter.requires_grad == (parameter is not frozen), f"{name}: flag changed"
            assert parameter.grad is not None, f"{name}: its gradient was removed"
            assert (parameter.grad == 0.5).all(), f"{name}: its gradient was touched"
        moved = _changed(state, step.network.state_dict())
        statistics = {name for name in moved if "running_" in name or "num_batches" in name}
        assert moved == statistics, f"changed: {moved - statistics}"
        assert train or not moved, "statistics moved although the network was in eval mode"
        batches = step.probe.norm.num_batches_tracked
        count = 0 if batches is None else int(batches)
        assert count <= max(1, step.probe.training_calls), "an attack moved batch norm's statistics"


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def check_passes(method: Method) -> None:
    """Each image takes at least one forward and one backward pass through the given network."""
    step = Step(method)
    step.loss().backward()
    assert step.network.forward_passes >= BATCH, "passes bypass the given network"
    assert step.network.backward_passes >= BATCH, "passes bypass the given network"


def check_metrics(method: Method) -> None:
    """Logged metrics are finite scalars, detached from the graph."""
    step = Step(method)
    step.loss()
    for name, value in step.context.metrics.items():
        value = torch.as_tensor(value)
        assert value.numel() == 1, f"metric {name} is not a scalar"
        assert value.isfinite().all(), f"metric {name} is not finite"
        assert not value.requires_grad, f"metric {name} is not detached"


def check_setup(method: Method) -> None:
    """`setup` leaves the network unchanged."""
    images, labels, classes = batch(method)
    network, _ = network_for(method, classes)
    state = copy.deepcopy(network.network.state_dict())
    modes = [module.training for module in network.modules()]
    method.setup(network.network, images, labels)
    assert modes == [module.training for module in network.modules()], "setup changed a mode"
    changed = _changed(state, network.network.state_dict())
    assert not changed, f"setup changed {changed}"
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def check_round(method: Method) -> None:
    """A round leaves network, images and global generators unchanged. What it found is a finite
    tensor, from which the same stored state follows without a pass through the network."""
    if not method.round_epochs():
        return
    step = Step(method)
    state, images = copy.deepcopy(step.network.state_dict()), step.images.clone()
    modes = [module.training for module in step.network.modules()]
    before = torch.get_rng_state()
    first = step.begun()
    passes = step.network.forward_passes
    again = step.begun(first.found)
    assert step.network.forward_passes == passes, "what is known is found again"
    assert torch.equal(before, torch.get_rng_state()), "draws from torch's global generator"
    assert torch.equal(images, step.images), "the images were changed"
    assert modes == [module.training for module in step.network.modules()], "a mode changed"
    assert not _changed(state, step.network.state_dict()), "the network was changed"
    assert all(p.grad is None and p.requires_grad for p in step.network.parameters())
    assert first.found.isfinite().all()
    assert not first.found.requires_grad
    losses = []
    for stored in (first.stored, again.stored):
        other = Step(method)
        other.context.stored = stored
        losses.append(other.loss().item())
    assert losses[0] == losses[1], "the stored state does not follow from what was found"


def check_noise(method: Method) -> None:
    """`noise` returns a positive float or None."""
    sigma = method.noise()
    assert sigma is None or (isinstance(sigma, float) and 0 < sigma < math.inf)


def check_round_trip(method: Method) -> None:
    """A configuration with the method survives a round trip through plain data and YAML."""
    config = Config(method=method)
    plain = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    assert from_dict(plain, lookup(method)) == config
    assert plain["method"]["name"] == method.key
    composed = compose(leaves_of(plain, "file"), lookup(method))
    assert composed == config


STEP_CHECKS = (
    check_loss_and_gradient,
    check_precisions_agree,
    check_targets,
    check_randomness,
    check_inputs_untouched,
    check_network_untouched,
    check_passes,
    check_metrics,
    check_setup,
    check_round,
    check_noise,
    check_round_trip,
)
"""All checks of one step."""
