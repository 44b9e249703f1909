"""Networks by name: those of the field for small images, torchvision's, timm's, the user's own.

Installed packages register networks in the entry-point group `raybust.models`: each entry-point
name is a model name and each value a callable as `external.call` takes it.

`build` puts the normalization in front, so a network takes images in [0, 1], and makes sure that
the whole gives logits. Stage after data and before method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raybust import plugins
from raybust.config.inputs import Model
from raybust.errors import RequestError, unknown
from raybust.models import cifar, external
from raybust.models.adapt import adapt
from raybust.models.ensemble import Ensemble
from raybust.models.external import LIBRARIES, check_installed, must_be_named, names_of
from raybust.models.fronted import Fronted
from raybust.models.library import Pretrained, is_pretrained, pretrained
from raybust.models.normalize import Normalize, Normalized
from raybust.models.weights import load_weights
from raybust.numerics.modes import evaluating

__all__ = [
    "FORMS",
    "LIBRARIES",
    "Ensemble",
    "Fronted",
    "Normalize",
    "Normalized",
    "Pretrained",
    "build",
    "check",
    "check_installed",
    "complete",
    "describe",
    "is_pretrained",
    "load_weights",
    "must_be_named",
    "names",
    "names_of",
    "notes_of",
    "pretrained",
]

Shape = tuple[int, int, int]


class _Entry(NamedTuple):
    """A built-in network: what makes it from (shape, number of classes, section), and its paper."""

    make: Callable[[Shape, int, Model], nn.Module]
    source: str


def _small_cnn(shape: Shape, num_classes: int, config: Model) -> nn.Module:
    return cifar.small_cnn(shape, num_classes, config.width)


def _lenet(shape: Shape, num_classes: int, config: Model) -> nn.Module:
    return cifar.lenet(shape, num_classes)


def _resnet(shape: Shape, num_classes: int, config: Model, *, depth: int) -> nn.Module:
    return cifar.ResNet(shape[0], num_classes, depth)


def _preact_resnet18(shape: Shape, num_classes: int, config: Model) -> nn.Module:
    return cifar.PreActResNet(shape[0], num_classes, stem=64, widths=(64, 128, 256, 512), blocks=2)


def _wide(shape: Shape, num_classes: int, config: Model, *, depth: int, factor: int) -> nn.Module:
    widths = tuple(factor * width for width in (16, 32, 64))
    return cifar.PreActResNet(
        shape[0], num_classes, stem=16, widths=widths, blocks=(depth - 4) // 6
    )


_ZAGORUYKO = "Zagoruyko and Komodakis, 2016, arXiv:1605.07146"
_WIDE = re.compile(r"wrn([1-9]\d{0,2})_([1-9]\d{0,2})")
_HE = "He, Zhang, Ren and Sun, 2016, arXiv:1512.03385"
_BUILT_IN = {
    "small_cnn": _Entry(_small_cnn, "raybust; no normalization layers, for quick runs"),
    "lenet": _Entry(_lenet, "LeCun, Bottou, Bengio and Haffner, 1998, LeNet-5"),
    "resnet20": _Entry(partial(_resnet, depth=20), _HE),
    "resnet56": _Entry(partial(_resnet, depth=56), _HE),
    "resnet110": _Entry(partial(_resnet, depth=110), _HE),
    "preact_resnet18": _Entry(_preact_resnet18, "He, Zhang, Ren and Sun, 2016, arXiv:1603.05027"),
    "wrn28_10": _Entry(partial(_wide, depth=28, factor=10), _ZAGORUYKO),
}

FORMS = {
    "wrnDEPTH_WIDTH": f"wide residual networks, such as wrn34_10; {_ZAGORUYKO}",
    "torchvision:NAME": "torchvision's; `raybust models torchvision:NAME` lists them",
    "timm:NAME": "timm's; `raybust models timm:NAME` lists them",
    "module:callable": "yours, given num_classes, in_channels, image_size where it takes them",
}
"""What `model.name` may be beside a built-in name."""


_ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "softplus": nn.Softplus}
_SHALLOWEST = 10
"""Depth of a wide residual network with one block a stage."""
_GROUP = "raybust.models"


def names() -> list[str]:
    """Returns the names of the built-in networks, from small to large, then those of packages."""
    return list(dict.fromkeys([*_BUILT_IN, *plugins.points(_GROUP)]))


def check(name: str, *, local: bool = True) -> None:
    """Rejects a name that no network has, without building the network.

    Args:
        name: `model.name`. A network from an installed package is imported, to check that it can
            be. For module:callable, only the module's existence is checked.
        local: whether the network is built on this machine, which then needs its module.

    Raises:
        RequestError: there is no such network, or it cannot be imported.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        point = _plugged(name)
        if point is None and _built_in(name) is None:
            theirs = [f"{kind}:{name}" for kind in LIBRARIES if name in external.names_of(kind)]
            raise unknown("model", name, (*names(), *theirs, *FORMS))
        if point is not None and local:
            _load(point)
    elif kind in LIBRARIES:
        external.check_name(kind, rest)
    elif local:
        external.check_module(name)


def build(
    config: Model,
    *,
    shape: Shape,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalized:
    """Returns a network for images in [0, 1], untrained, in training mode.

    Weights are drawn from torch's global generator: seed it for the same weights.

    Args:
        config: name, width and activation.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.
        mean: mean of each channel of the data.
        std: standard deviation of each channel, > 0.

    Returns:
        A module from images (B, C, H, W) to logits (B, K), with the parts `normalize` and
        `network`.

    Raises:
        RequestError: the name is unknown, the network cannot be made for that shape or with that
            activation, or it does not give finite logits (2, K) for two zero images.
    """
    network = _network(config, shape, num_classes)
    if config.activation != "relu":
        _activate(network, config)
    return complete(network, config.name, shape=shape, num_classes=num_classes, mean=mean, std=std)


def complete(
    network: nn.Module,
    name: str,
    *,
    shape: Shape,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Normalized:
    """Returns a network behind its normalization, adapted to give logits and checked; see `build`.

    Args:
        network: from normalized images (B, C, H, W) to logits (B, K).
        name: `model.name`, for notes and errors.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.
        mean: mean of each channel of the data.
        std: standard deviation of each channel, > 0.

    Raises:
        RequestError: it does not give finite logits (2, K) for two zero images.
    """
    notes = [*external.tag_notes(name), *adapt(network, shape, num_classes)]
    model = Normalized(Normalize(mean, std), network)
    model.notes = tuple(f"model {name}: {note}" for note in notes)
    _check(model, name, shape, num_classes)
    return model


def notes_of(network: nn.Module) -> tuple[str, ...]:
    """Returns what was adapted when a network was built, a line each."""
    parts = (part.notes for part in network.modules() if isinstance(part, Normalized))
    return next(parts, ())


def describe(name: str) -> dict[str, Any]:
    """Returns what one should know of a network: `name`, `source`, `parameters` and `multiply_adds`
    (of convolutions and linear layers, per image), both for `images` and `classes`: ImageNet's for
    torchvision and timm, CIFAR-10's for the others.

    Raises:
        RequestError: no such network, or it cannot be made.
    """
    kind, colon, _ = name.partition(":")
    point, own = _plugged(name), None if colon else _built_in(name)
    theirs, yours = kind in LIBRARIES, bool(colon) and kind not in LIBRARIES
    shape, classes = ((3, 224, 224), 1000) if theirs else ((3, 32, 32), 10)
    # Allocates no memory for weights, except for third-party callables, which may inspect theirs.
    device = torch.device("cpu" if yours or point else "meta")
    with torch.random.fork_rng(devices=[]), device:
        network = _network(Model(name=name), shape, classes).eval()
        with external.one_line(f"model '{name}' on images of {external.size(shape)}"):
            total = _multiply_adds(network, torch.zeros(1, *shape))
    source = plugins.summary(point, _load(point)) if point else kind
    return {
        "name": name,
        "source": own.source if own else source,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": total,
        "images": external.size(shape),
        "classes": classes,
    }


def _network(config: Model, shape: Shape, num_classes: int) -> nn.Module:
    check(config.name)
    kind, colon, name = config.name.partition(":")
    if not colon:
        point = _plugged(config.name)
        if point is not None:
            return external.call(_load(point), plugins.described(point), shape, num_classes)
        own = _built_in(config.name)
        assert own is not None, "checked above"
        return own.make(shape, num_classes, config)
    if kind == "torchvision":
        return external.from_torchvision(name, shape, num_classes)
    if kind == "timm":
        return external.from_timm(name, shape, num_classes)
    return external.from_callable(config.name, shape, num_classes)


def _built_in(name: str) -> _Entry | None:
    """Returns the built-in network of a name, or None.

    Raises:
        RequestError: a wide residual network of a depth that is not 6 n + 4.
    """
    wide = _WIDE.fullmatch(name)
    if wide is None or name in _BUILT_IN:
        return _BUILT_IN.get(name)
    depth, factor = map(int, wide.groups())
    if depth < _SHALLOWEST or depth % 6 != 4:
        raise RequestError(
            f"model.name: got {name!r}, expected a depth of 6 n + 4, such as wrn28_{factor} or"
            f" wrn34_{factor}"
        )
    return _Entry(partial(_wide, depth=depth, factor=factor), _ZAGORUYKO)


def _plugged(name: str) -> EntryPoint | None:
    """Returns the entry point of a name that an installed package registers, or None."""
    own = [*_BUILT_IN, name] if _WIDE.fullmatch(name) else _BUILT_IN
    return plugins.find(_GROUP, name, own)


def _activate(network: nn.Module, config: Model) -> None:
    """Replaces the ReLUs of a built-in network.

    Raises:
        RequestError: the network is not built in.
    """
    if ":" in config.name or _plugged(config.name) is not None:
        raise RequestError(
            f"model.activation: got {config.activation!r}, expected relu for {config.name}: only"
            " built-in networks take another one"
        )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, _ACTIVATIONS[config.activation]())


def _load(point: EntryPoint) -> Callable[..., Any]:
    """Returns the callable of an entry point."""
    make = plugins.load(point)
    if not callable(make):
        raise RequestError(
            f"{plugins.described(point)} is a {type(make).__name__}, expected a callable that"
            " returns a torch.nn.Module"
        )
    return make


def _check(model: nn.Module, name: str, shape: Shape, num_classes: int) -> None:
    """Makes sure that two zero images give finite logits (2, K); leaves every mode as it was."""
    what = f"model '{name}' on images of {external.size(shape)}"
    expected = f"finite logits of shape (2, {num_classes}) for two images"
    with evaluating(model), torch.no_grad(), external.one_line(what, expected):
        logits = model(torch.zeros(2, *shape))
    if not isinstance(logits, Tensor):
        seen = f"a {type(logits).__name__}"
    elif logits.shape != (2, num_classes):
        seen = f"shape {tuple(logits.shape)}"
    elif not logits.isfinite().all():
        seen = "values that are not finite"
    else:
        return
    raise RequestError(f"{what} gives {seen}, expected {expected}")


def _multiply_adds(network: nn.Module, image: Tensor) -> int:
    """Returns multiplications of convolutions and linear layers in a forward pass of one image."""
    counts: list[int] = []

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        counts.append(output.numel() * weight[0].numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    network(image)
    return sum(counts)
