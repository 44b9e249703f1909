"""The conformance checks: what holds for every method, as plain functions of a `Method` instance.

`check_step` runs all checks of one step; `check_class` those of the class and its fields;
`check_space` those of a search space. Legend: 8 images of 1 x 8 x 8, K classes.
"""

import copy
import dataclasses
import math
import random
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from raybust import methods
from raybust.config import Config, compose, expand, from_dict, leaves_of, read_yaml, to_dict
from raybust.errors import RequestError
from raybust.methods import Method, StepContext
from raybust.search.space import Space
from raybust.train.objective import CountedNetwork

BATCH = 8


class Probe(nn.Module):
    """A small network with batch normalization that notes how it is called."""

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 64, classes)
        self.register_buffer("constant", torch.ones(3))
        self.dtypes, self.devices, self.training_calls = set(), set(), 0
        self.register_forward_pre_hook(_note)  # a hook, so that torch.fx can trace the network

    def forward(self, images):
        return self.head(self.norm(self.features(images)).relu().flatten(1))


def _note(probe, arguments):
    (images,) = arguments
    if isinstance(images, torch.Tensor):
        assert images.shape[1:] == (1, 8, 8)
        assert images.isfinite().all()
        probe.dtypes.add(images.dtype)
        probe.devices.add(images.device)
        probe.training_calls += torch.is_grad_enabled() and probe.head.weight.requires_grad


def lookup(method):
    """Returns `methods.get` that also knows the method, which may be defined anywhere."""
    return lambda name: type(method) if name == method.key else methods.get(name)


def batch(method, dtype=torch.float32):
    """Returns images and labels, each class in equal numbers."""
    classes = max(2, method.balanced_classes or 4)
    images = torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return images.to(dtype), torch.arange(BATCH) % classes, classes


def network_for(method, classes, dtype=torch.float32):
    """Returns the network that the method sees, its front included, and the probe inside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        probe = Probe(classes)
        front = method.front()
    whole = probe if front is None else nn.Sequential(front, probe)
    return CountedNetwork(whole.to(dtype)).train(), probe


class Step:
    """One step of a method with all that surrounds it, reproducible."""

    def __init__(self, method, dtype=torch.float32, seed=0, soft=None, train=True):
        self.method = method
        self.images, labels, classes = batch(method, dtype)
        self.network, self.probe = network_for(method, classes, dtype)
        self.prepared = method.setup(self.network.network, self.images, labels)
        self.network.train(train)
        self.targets = labels
        if soft is not None:
            one_hot = F.one_hot(labels, classes).to(dtype)
            self.targets = (1 - soft) * one_hot + soft / classes
        self.generator = torch.Generator().manual_seed(seed)
        self.before = self.generator.get_state()
        self.network.forward_passes = self.network.backward_passes = 0
        self.probe.training_calls = 0
        self.context = StepContext(self.generator, 0.5, self.prepared)

    def loss(self):
        return self.method.loss(self.network, self.images, self.targets, self.context)

    @property
    def drew(self):
        """Whether the generator was used."""
        return not torch.equal(self.before, self.generator.get_state())


def check_step(method):
    """Every check of one step of one method."""
    for check in STEP_CHECKS:
        check(method)


def check_loss_and_gradient(method):
    """The loss is a finite scalar of the images' dtype, its gradient reaches every parameter."""
    for dtype in (torch.float32, torch.float64):
        step = Step(method, dtype)
        loss = step.loss()
        assert loss.shape == ()
        assert loss.dtype == dtype
        assert loss.isfinite()
        assert step.probe.dtypes <= {dtype}
        assert step.probe.devices <= {step.images.device}
        loss.backward()
        for name, parameter in step.network.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"


def check_precisions_agree(method):
    """Where no randomness is drawn, float32 and float64 give the same loss."""
    single, double = Step(method, torch.float32), Step(method, torch.float64)
    losses = single.loss().item(), double.loss().item()
    if not single.drew:
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def check_targets(method):
    """Labels equal their one-hot probabilities; other probabilities work and make a difference."""
    hard, one_hot, soft = (Step(method, torch.float64, soft=s) for s in (None, 0.0, 0.4))
    value = hard.loss().item()
    assert value == pytest.approx(one_hot.loss().item(), rel=1e-9)
    loss = soft.loss()
    assert loss.isfinite()
    assert loss.item() != value
    loss.backward()
    assert soft.probe.head.weight.grad.isfinite().all()


def check_randomness(method, converges=False):
    """The generator alone decides: same seed same loss, another seed another, nothing global.

    Args:
        method: the method.
        converges: whether another seed may give the same loss, as an attack does that ends in the
            same corner of its ball wherever it starts.
    """
    first, again, other = (Step(method, torch.float64, seed) for seed in (0, 0, 1))
    states = torch.get_rng_state(), _numpy_state(), random.getstate()
    losses = [step.loss().item() for step in (first, again, other)]
    assert losses[0] == losses[1]
    assert torch.equal(states[0], torch.get_rng_state()), "draws from torch's global generator"
    assert states[1] == _numpy_state(), "draws from numpy's global generator"
    assert states[2] == random.getstate(), "draws from Python's global generator"
    assert first.drew or losses[0] == losses[2], "randomness that is not the generator's"
    assert converges or not first.drew or losses[0] != losses[2], "the draws change nothing"


def _numpy_state():
    return str(np.random.get_state())  # noqa: NPY002


def check_inputs_untouched(method):
    """Images and targets stay as they are and want no gradient."""
    for soft in (None, 0.4):
        step = Step(method, soft=soft)
        images, targets = step.images.clone(), step.targets.clone()
        step.loss().backward()
        assert torch.equal(images, step.images)
        assert torch.equal(targets, step.targets)
        assert not step.images.requires_grad
        assert step.images.grad is None


def check_network_untouched(method):
    """Weights, modes, flags and gradients stay; buffers too, batch norm's statistics apart."""
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
            assert (parameter.grad == 0.5).all(), f"{name}: its gradient was touched"
        moved = {
            name
            for name, value in step.network.state_dict().items()
            if not torch.equal(value, state[name])
        }
        statistics = {name for name in moved if "running_" in name or "num_batches" in name}
        assert moved == statistics, f"changed: {moved - statistics}"
        assert train or not moved, "statistics moved although the network was in eval mode"
        count = int(step.probe.norm.num_batches_tracked)
        assert count <= max(1, step.probe.training_calls), "an attack moved batch norm's statistics"


def check_passes(method):
    """At least one forward and one backward pass per image, all through the counted network."""
    step = Step(method)
    step.loss().backward()
    assert step.network.forward_passes >= BATCH
    assert step.network.backward_passes >= BATCH


def check_metrics(method):
    """What is logged is scalar, finite and holds no graph."""
    step = Step(method)
    step.loss()
    for name, value in step.context.metrics.items():
        value = torch.as_tensor(value)
        assert value.numel() == 1, name
        assert value.isfinite().all(), name
        assert not value.requires_grad, name


def check_setup(method):
    """`setup` is reproducible and leaves the network as it was."""
    images, labels, classes = batch(method)
    network, _ = network_for(method, classes)
    state = copy.deepcopy(network.network.state_dict())
    modes = [module.training for module in network.modules()]
    method.setup(network.network, images, labels)
    assert modes == [module.training for module in network.modules()]
    for name, value in network.network.state_dict().items():
        assert torch.equal(value, state[name]), f"setup changed {name}"
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def check_noise(method):
    """The sigma of certification is positive, or there is none."""
    sigma = method.noise()
    assert sigma is None or (isinstance(sigma, float) and 0 < sigma < math.inf)


def check_round_trip(method):
    """A configuration with the method survives plain data and YAML."""
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
    check_noise,
    check_round_trip,
)


def variants(cls):
    """Yields (field, value, method) for each other choice, and each flag turned over; those that a
    rule across fields refuses are left out. An attack takes two steps only."""
    hints = get_type_hints(cls)
    short = {"steps": 2} if "steps" in hints else {}
    default = cls()
    for field in dataclasses.fields(cls):
        choices = get_args(hints[field.name])
        flag = bool in (hints[field.name], *choices)
        if not flag and not (choices and isinstance(choices[0], str)):
            continue
        for value in (True, False) if flag else choices:
            if value in (None, getattr(default, field.name)):
                continue
            try:
                yield field.name, value, cls(**short, **{field.name: value})
            except RequestError:
                continue


def check_class(cls):
    """The class is a documented, frozen, keyword-only dataclass with checked fields."""
    assert issubclass(cls, Method)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "dataclass's own docstring"
    method = cls()
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        assert field.kw_only, f"{field.name} is positional"
        if field.name == "base":
            assert isinstance(method.base, Method)
            continue
        assert field.metadata.get("doc", "").strip().endswith("."), f"{field.name}: no sentence"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, getattr(method, field.name))
        check_domain(cls, field, hints[field.name])
    with pytest.raises(TypeError):
        cls(object())


def check_domain(cls, field, hint):
    """Each value outside the field's domain is refused with an error that names the field."""
    for value in outside(field, hint):
        with pytest.raises(RequestError) as refused:
            cls(**{field.name: value})
        assert any(text.startswith(f"{field.name}: got ") for text in refused.value.problems)


def outside(field, hint):
    """Returns values that a field must refuse."""
    arguments = get_args(hint)
    if arguments and isinstance(arguments[0], str):
        return ["no such choice"]
    numbers = {hint, *arguments} & {int, float}
    if not numbers:
        return []
    step = {"gt": 0, "lt": 0, "ge": -1, "le": 1}
    bounds = {
        key: bound for key in step if math.isfinite(bound := field.metadata.get(key, math.nan))
    }
    values = [bound + step[key] for key, bound in bounds.items()]
    values += [math.nan] if float in numbers else []
    return [(value,) if isinstance(field.default, tuple) else value for value in values]


def check_space(path, key, find=methods.get):
    """A search space parses, fits the schema, searches its method, and samples to configurations.

    Args:
        path: the YAML file.
        key: the method's name.
        find: name of a method to its class.
    """
    tree = read_yaml(path)
    block = expand(tree.pop("search"), Path(path))
    leaves = leaves_of(tree, str(path))
    config = compose(leaves, find)
    space = Space.parse(block)
    space.check(leaves, find)
    names = {config.method.key}
    names.update(v for d in space.domains if d.key == "method.name" for v in d.values)
    assert key in names
    assert config.tune.trials >= 1
    for domain in space.domains:
        assert domain.kind == "choice" or domain.default is not None, f"{domain.key}: no default"
