"""Requirements on every network, as plain functions, and `NetworkConformance`, which runs them.

A network is built as in a training run: behind its normalization and adapted to give logits.

Legend: B images of C x H x W, K classes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from raybust import models
from raybust.config.inputs import Model
from raybust.disk import checkpoint
from raybust.models import external
from raybust.numerics.logits import logit_change

CLASSES = 7
"""Number K of classes in the tests."""
BATCH = 4
"""Number B of images in a batch."""

Network = str | Callable[..., nn.Module]
"""A value of `model.name`, or a callable for an entry point of `raybust.models`."""
Shape = tuple[int, int, int]


def built(network: Network, shape: Shape, seed: int = 0) -> models.Normalized:
    """Builds a network as a training run does.

    Args:
        network: network under test.
        shape: (C, H, W) of an image.
        seed: seed of the weights.
    """
    mean, std = [0.4] * shape[0], [0.3] * shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(network, str):
            return models.build(
                Model(name=network), shape=shape, num_classes=CLASSES, mean=mean, std=std
            )
        name = getattr(network, "__name__", "network")
        made = external.call(network, f"'{name}'", shape, CLASSES)
        return models.complete(made, name, shape=shape, num_classes=CLASSES, mean=mean, std=std)


def _images(shape: Shape, count: int = BATCH) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def check_logits(network: Network, shape: Shape) -> None:
    """Logits are finite float32 tensors (B, K) in train and eval mode."""
    model, images = built(network, shape), _images(shape)
    for mode in (True, False):
        logits = model.train(mode)(images)
        where = "train" if mode else "eval"
        assert logits.shape == (BATCH, CLASSES), f"{where} mode: logits {tuple(logits.shape)}"
        assert logits.dtype == torch.float32, f"{where} mode: logits are {logits.dtype}"
        assert logits.isfinite().all(), f"{where} mode: logits are not finite"


def check_modes(network: Network, shape: Shape) -> None:
    """`train` and `eval` reach every module, and eval mode is deterministic, also after switching
    to train mode and back."""
    model, images = built(network, shape), _images(shape)
    model(images)  # moves batch norm's statistics away from their initial values
    assert all(module.training for module in model.modules()), "a new network is in train mode"
    with torch.no_grad():
        first, again = (model.eval()(images) for _ in range(2))
        stays = [name for name, module in model.named_modules() if module.training]
        assert not stays, f"in train mode after eval(): {', '.join(stays)}"
        stays = [name for name, module in model.train().named_modules() if not module.training]
        assert not stays, f"in eval mode after train(): {', '.join(stays)}"
        later = model.eval()(images)
    assert torch.equal(first, again), "random in eval mode"
    assert torch.equal(first, later), "other logits after train() and eval()"


def check_state_dict(network: Network, shape: Shape) -> None:
    """A network that loads the checkpoint of another one gives the same logits bit for bit, and so
    does a deep copy, which `train.ema` makes."""
    model, other, images = built(network, shape), built(network, shape, seed=1), _images(shape)
    model(images)
    copied = copy.deepcopy(model).eval()
    with TemporaryDirectory() as name:
        checkpoint.write(Path(name), model.state_dict(), {}, {})
        other.load_state_dict(checkpoint.read_weights(Path(name)))
    with torch.no_grad():
        logits = model.eval()(images)
        assert torch.equal(other.eval()(images), logits), "the state dict is incomplete"
        assert torch.equal(copied(images), logits), "a deep copy gives other logits"


def check_gradients(network: Network, shape: Shape) -> None:
    """A finite, nonzero gradient reaches every parameter in train mode, and every image in eval
    mode, as attacks require."""
    model, images = built(network, shape), _images(shape)
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"
    images.requires_grad_()
    model.eval()(images).square().sum().backward()
    assert images.grad is not None, "no gradient reaches the images"
    assert images.grad.isfinite().all(), "the gradient of the images is not finite"
    assert (images.grad.flatten(1).abs().sum(1) > 0).all(), "the gradient of an image is zero"


def check_independence(network: Network, shape: Shape) -> None:
    """In eval mode the logits of an image do not depend on the rest of its batch (to rounding)."""
    model, images = built(network, shape), _images(shape)
    model(images)
    model.eval()
    with torch.no_grad():
        logits = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        turned = model(images.flip(0)).flip(0)
        beside = model(torch.cat([images[:1], 1 - images[1:]]))[:1]
    beside = torch.cat([beside, logits[1:]])
    for other, where in ((alone, "alone"), (turned, "in another order"), (beside, "beside others")):
        change, allowed = logit_change(logits, other, 1e-3)
        assert change <= allowed, f"logits depend on the batch: they differ {where}"


def check_seed(network: Network, shape: Shape) -> None:
    """The same seed of torch's global generator gives the same weights."""
    first, again = (built(network, shape).state_dict() for _ in range(2))
    differ = [name for name, value in first.items() if not torch.equal(value, again[name])]
    assert not differ, f"not the same with the same seed: {', '.join(differ)}"


NETWORK_CHECKS = (
    check_logits,
    check_modes,
    check_state_dict,
    check_gradients,
    check_independence,
    check_seed,
)
"""All checks of a network."""


class NetworkConformance:
    """All checks of a network, which a subclass names.

        class TestMine(NetworkConformance):
            network = make_mine

    Attributes:
        network: callable for an entry point, or a value of `model.name`.
        shapes: (C, H, W) of the images to test it with. Remove a shape that it does not support.
    """

    network: ClassVar[Any]
    shapes: ClassVar[tuple[Shape, ...]] = ((1, 8, 8), (3, 32, 32))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Creates every test for every shape."""
        if "shape" in metafunc.fixturenames:
            names = [external.size(shape) for shape in self.shapes]
            metafunc.parametrize("shape", self.shapes, ids=names)

    def _network(self) -> Network:
        """Returns the attribute `network` without binding a function to the instance."""
        found = inspect.getattr_static(type(self), "network")
        network: Network = found.__func__ if isinstance(found, staticmethod) else found
        return network

    def test_logits(self, shape: Shape) -> None:
        """See `check_logits`."""
        check_logits(self._network(), shape)

    def test_modes(self, shape: Shape) -> None:
        """See `check_modes`."""
        check_modes(self._network(), shape)

    def test_state_dict(self, shape: Shape) -> None:
        """See `check_state_dict`."""
        check_state_dict(self._network(), shape)

    def test_gradients(self, shape: Shape) -> None:
        """See `check_gradients`."""
        check_gradients(self._network(), shape)

    def test_independence(self, shape: Shape) -> None:
        """See `check_independence`."""
        check_independence(self._network(), shape)

    def test_seed(self, shape: Shape) -> None:
        """See `check_seed`."""
        check_seed(self._network(), shape)
