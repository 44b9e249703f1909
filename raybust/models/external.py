"""Networks of others: torchvision's and timm's by name, the user's own by module and callable.

Both libraries are imported when they are asked for, torchvision (which timm imports too) through
`raybust.vision`. Weights are never downloaded here. What a library or the user's code raises while
it makes a network becomes one line for the user.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from raybust import vision
from raybust.errors import RequestError, unknown

LIBRARIES = ("torchvision", "timm")
"""What may stand before the colon of a name, beside a module of the user's."""

_FORMS = "(a model is a built-in name, torchvision:NAME, timm:NAME or module:callable)"


def names_of(library: str) -> list[str]:
    """Returns the names of the classifiers of torchvision or timm."""
    models = vision.torchvision().models
    if library == "torchvision":
        return list(models.list_models(module=models))
    import timm

    return list(timm.list_models())


def check_name(library: str, name: str) -> None:
    """Refuses a name that a library does not have.

    Raises:
        RequestError: with the closest names.
    """
    known = names_of(library)
    bare, dot, tag = name.partition(".")
    if library == "timm" and bare in known and dot:
        tags = _tags(bare)
        if tag not in tags:
            raise unknown_among(f"weights' tag of timm:{bare}", tag, tags or ["(none)"])
        return
    if name not in known:
        raise unknown_among(f"{library} model", name, known)


def tag_notes(name: str) -> list[str]:
    """Returns a note where a name has the tag of weights, which are not loaded."""
    library, _, rest = name.partition(":")
    if library != "timm" or "." not in rest:
        return []
    tag = rest.partition(".")[2]
    return [f"the weights of the tag '{tag}' are not loaded; training starts from scratch"]


def _tags(bare: str) -> list[str]:
    import timm

    return [full.partition(".")[2] for full in timm.list_pretrained(f"{bare}.*")]


def check_module(name: str) -> None:
    """Refuses "package.module:function" where there is no such package; imports nothing.

    Raises:
        RequestError: it is neither in the working directory nor installed.
    """
    package = name.partition(":")[0].partition(".")[0]
    _check_shadow(name, package)
    with _working_directory_importable():
        known = package in sys.modules or (package and importlib.util.find_spec(package))
        if not known:
            raise RequestError(f"'{name}': module '{package}' cannot be imported {_FORMS}")


def _check_shadow(name: str, package: str) -> None:
    """Refuses a module of the working directory that has the name of one of Python's."""
    file = next((path for path in (f"{package}.py", package) if os.path.exists(path)), None)
    if package in sys.stdlib_module_names and file is not None:
        raise RequestError(
            f"'{name}': {file} in the working directory has the name of a module of Python's, which"
            " others import; rename it"
        )


def from_torchvision(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns a classifier of torchvision, untrained.

    Args:
        name: a name that `check_name` knows.
        shape: (C, H, W) of an image; where C is not 3 the first convolution is replaced.
        num_classes: number K of logits.

    Raises:
        RequestError: it cannot be made for that shape.
    """
    models = vision.torchvision().models
    keywords: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # their auxiliary heads make training return a tuple
        keywords = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        keywords = {"image_size": shape[1]}
    with one_line(f"torchvision:{name} cannot be made for images of {size(shape)}"):
        network: nn.Module = models.get_model(
            name, weights=None, num_classes=num_classes, **keywords
        )
    if shape[0] != 3:
        _replace_first_convolution(network, shape[0])
    return network


def from_timm(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns a classifier of timm, untrained.

    Args:
        name: a name that `check_name` knows.
        shape: (C, H, W) of an image; models that want to know H and W are told.
        num_classes: number K of logits.

    Raises:
        RequestError: it cannot be made for that shape.
    """
    vision.torchvision()
    import timm

    keywords: dict[str, Any] = {
        "pretrained": False,
        "num_classes": num_classes,
        "in_chans": shape[0],
    }
    with one_line(f"timm:{name} cannot be made for images of {size(shape)}"):
        try:
            network: nn.Module = timm.create_model(name, img_size=side(shape), **keywords)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **keywords)
    return network


def from_callable(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns what the user's callable makes.

    Args:
        name: "package.module:function"; the working directory is searched first.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.

    The callable gets those of the keywords num_classes, in_channels and image_size (H, or (H, W)
    where they differ) that it accepts.

    Raises:
        RequestError: the module cannot be imported, it has no such callable, the callable raises or
            returns something that is not a torch.nn.Module.
    """
    module_name, _, attribute = name.partition(":")
    check_module(name)
    with _working_directory_importable():
        with one_line(f"'{name}': module '{module_name}' cannot be imported {_FORMS}"):
            module = importlib.import_module(module_name)
        make = getattr(module, attribute, None)
        if not callable(make):
            raise unknown_among(f"callable of module '{module_name}'", attribute, _offers(module))
        with one_line(f"'{name}' fails"):
            keywords = _accepted(
                make, num_classes=num_classes, in_channels=shape[0], image_size=side(shape)
            )
            network = make(**keywords)
    if not isinstance(network, nn.Module):
        raise RequestError(
            f"'{name}' returns a {type(network).__name__}, expected a torch.nn.Module"
        )
    return network


def unknown_among(kind: str, name: str, allowed: Iterable[str]) -> RequestError:
    """Returns `errors.unknown` for a name among so many that only the few closest are told."""
    names = sorted(allowed)
    if len(names) <= 12:
        return unknown(kind, name, names)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.0)
    hint = f" Did you mean '{close[0]}'?" if difflib.get_close_matches(name, close[:1]) else ""
    return RequestError(
        f"unknown {kind} '{name}'.{hint} The closest of {len(names)}: {', '.join(close)}."
    )


@contextmanager
def one_line(what: str, expected: str = "") -> Iterator[None]:
    """Turns whatever code of others raises inside into "what: type: first line; expected ..."."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = str(error).strip().partition("\n")[0]
        seen = f"{what}: {type(error).__name__}: {text}".rstrip(": ")
        raise RequestError(f"{seen}; expected {expected}" if expected else seen) from error


def size(shape: tuple[int, int, int]) -> str:
    """Returns a shape in words, for instance 3x32x32."""
    return "x".join(map(str, shape))


def side(shape: tuple[int, int, int]) -> int | tuple[int, int]:
    """Returns H of a square image, (H, W) of any other."""
    return shape[1] if shape[1] == shape[2] else shape[1:]


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Gives the first convolution `channels` input channels and He's initialization."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    conv.in_channels = channels
    conv.weight = nn.Parameter(torch.empty(conv.out_channels, channels, *conv.kernel_size))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _accepted(make: Callable[..., Any], **keywords: Any) -> dict[str, Any]:
    """Returns those of the keywords that a callable accepts."""
    if isinstance(make, type) and inspect.getattr_static(make, "__init__") is nn.Module.__init__:
        return {}  # its signature takes anything, it itself does not
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in keywords.items() if key in named}


def _offers(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Puts the working directory first on the import path, as `python -m` does, for the time of
    the user's code."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
