"""External networks: torchvision's and timm's by name, the user's own by module and callable.

Both libraries are imported on demand, torchvision (which timm also imports) through
`raybust.vision`. Weights are never downloaded. Errors raised by a library or the user's code while
building a network become one-line messages.
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
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybust import vision
from raybust.errors import RequestError, unknown

LIBRARIES = ("torchvision", "timm")
"""Allowed prefixes before the colon of a name, besides a user's module."""

_FORMS = "(a model is a built-in name, torchvision:NAME, timm:NAME or module:callable)"


def names_of(library: str) -> list[str]:
    """Returns the names of torchvision's or timm's classifiers."""
    models = vision.torchvision().models
    if library == "torchvision":
        return list(models.list_models(module=models))
    import timm

    return list(timm.list_models())


def check_name(library: str, name: str) -> None:
    """Checks that a library has a model of this name.

    Raises:
        RequestError: the name is unknown; the message lists the closest names.
    """
    known = names_of(library)
    bare, dot, tag = name.partition(".")
    if library == "timm" and bare in known and dot:
        tags = _tags(bare)
        if tag not in tags:
            raise unknown_among(f"weight tag of timm:{bare}", tag, tags or ["(none)"])
        return
    if name not in known:
        raise unknown_among(f"{library} model", name, known)


def tag_notes(name: str) -> list[str]:
    """Returns a note if a name includes a weight tag, since its weights are not loaded."""
    library, _, model = name.partition(":")
    if library != "timm" or "." not in model:
        return []
    tag = model.partition(".")[2]
    return [f"the weights of tag '{tag}' are not loaded; training starts from scratch"]


def _tags(bare: str) -> list[str]:
    import timm

    return [full.partition(".")[2] for full in timm.list_pretrained(f"{bare}.*")]


def check_module(name: str) -> None:
    """Checks that the package of "package.module:function" exists, without importing it.

    Raises:
        RequestError: the package is neither in the working directory nor installed.
    """
    package = name.partition(":")[0].partition(".")[0]
    _check_shadow(name, package)
    with _working_directory_importable():
        known = package in sys.modules or (package and importlib.util.find_spec(package))
        if not known:
            raise RequestError(f"'{name}': module '{package}' cannot be imported {_FORMS}")


def check_installed(name: str, source: str) -> None:
    """Rejects the code of a network that a file names, unless it is an installed package: whoever
    wrote the file could otherwise choose what runs.

    Args:
        name: of the network; names without a module pass.
        source: the run or folder whose file names it.

    Raises:
        RequestError: "module:callable" of the standard library or of the working directory.
    """
    if not must_be_named(name):
        return
    raise RequestError(
        f"{source}: its network is '{name}', which is no installed package; a file does not choose"
        f" what code runs: add model.name={name} to the command if you trust that module"
    )


def must_be_named(name: str) -> bool:
    """Returns whether a network is code that only the command line may choose: "module:callable",
    unless the module is of an installed package."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library not in LIBRARIES and not _is_installed(library.partition(".")[0])


def _is_installed(package: str) -> bool:
    """Returns whether a package can be imported without the working directory on the path."""
    if not package or package in sys.stdlib_module_names:
        return False
    own, before = Path.cwd(), sys.path
    sys.path = [entry for entry in before if entry and Path(entry).resolve() != own]
    try:
        return any(
            finder.find_spec(package, None) is not None
            for finder in sys.meta_path
            if hasattr(finder, "find_spec")
        )
    finally:
        sys.path = before


def _check_shadow(name: str, package: str) -> None:
    """Rejects a module in the working directory that shadows one of the standard library."""
    file = next((path for path in (f"{package}.py", package) if os.path.exists(path)), None)
    if package in sys.stdlib_module_names and file is not None:
        raise RequestError(
            f"'{name}': {file} in the working directory shadows a standard library module that"
            " other packages import; rename it"
        )


def from_torchvision(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns an untrained torchvision classifier.

    Args:
        name: a name accepted by `check_name`.
        shape: (C, H, W) of an image; if C is not 3, the first convolution is replaced.
        num_classes: number K of logits.

    Raises:
        RequestError: the model cannot be built for this shape.
    """
    models = vision.torchvision().models
    keywords: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # with auxiliary heads, training returns a tuple
        keywords = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        keywords = {"image_size": shape[1]}
    with one_line(f"torchvision:{name} cannot be built for images of {size(shape)}"):
        network: nn.Module = models.get_model(
            name, weights=None, num_classes=num_classes, **keywords
        )
    if shape[0] != 3:
        _replace_first_convolution(network, shape[0])
    return network


def from_timm(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns an untrained timm classifier.

    Args:
        name: a name accepted by `check_name`.
        shape: (C, H, W) of an image; H and W are passed to models that accept them.
        num_classes: number K of logits.

    Raises:
        RequestError: the model cannot be built for this shape.
    """
    vision.torchvision()
    import timm

    keywords: dict[str, Any] = {
        "pretrained": False,
        "num_classes": num_classes,
        "in_chans": shape[0],
    }
    with one_line(f"timm:{name} cannot be built for images of {size(shape)}"):
        try:
            network: nn.Module = timm.create_model(name, img_size=side(shape), **keywords)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **keywords)
    return network


def from_callable(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Returns the network built by the user's callable.

    Args:
        name: "package.module:function"; the working directory is searched first.
        shape: (C, H, W) of an image.
        num_classes: number K of logits.

    Raises:
        RequestError: the module cannot be imported or has no such callable; see also `call`.
    """
    module_name, _, attribute = name.partition(":")
    check_module(name)
    with _working_directory_importable():
        with one_line(f"'{name}': module '{module_name}' cannot be imported {_FORMS}"):
            module = importlib.import_module(module_name)
        make = getattr(module, attribute, None)
        if not callable(make):
            kind = f"callable of module '{module_name}'"
            raise unknown_among(kind, attribute, _callables(module))
        return call(make, f"'{name}'", shape, num_classes)


def call(
    make: Callable[..., Any], what: str, shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Returns the network built by a callable.

    The callable receives whichever of the keywords num_classes, in_channels and image_size (H, or
    (H, W) if they differ) it accepts.

    Args:
        make: a callable of the user or of an installed package.
        what: prefix of error messages, for instance "'my_nets:make'".
        shape: (C, H, W) of an image.
        num_classes: number K of logits.

    Raises:
        RequestError: the callable raises or does not return a torch.nn.Module.
    """
    with one_line(f"{what} fails"):
        keywords = _accepted(
            make, num_classes=num_classes, in_channels=shape[0], image_size=side(shape)
        )
        network = make(**keywords)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise RequestError(f"{what} returned type {kind}, expected a torch.nn.Module")
    return network


def unknown_among(kind: str, name: str, allowed: Iterable[str]) -> RequestError:
    """Returns an `errors.unknown` error that lists only the closest of many allowed names."""
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
    """Converts any exception in the block to "what: type: first line; expected ..."."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = str(error).strip().partition("\n")[0]
        seen = f"{what}: {type(error).__name__}: {text}".rstrip(": ")
        raise RequestError(f"{seen}; expected {expected}" if expected else seen) from error


def size(shape: tuple[int, int, int]) -> str:
    """Formats a shape, for instance 3x32x32."""
    return "x".join(map(str, shape))


def side(shape: tuple[int, int, int]) -> int | tuple[int, int]:
    """Returns H for square images, else (H, W)."""
    return shape[1] if shape[1] == shape[2] else shape[1:]


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Gives the first convolution `channels` input channels and He initialization."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    conv.in_channels = channels
    conv.weight = nn.Parameter(torch.empty(conv.out_channels, channels, *conv.kernel_size))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _accepted(make: Callable[..., Any], **keywords: Any) -> dict[str, Any]:
    """Returns the keywords that a callable accepts."""
    if isinstance(make, type) and inspect.getattr_static(make, "__init__") is nn.Module.__init__:
        return {}  # nn.Module's signature takes any keywords, but it rejects them
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in keywords.items() if key in named}


def _callables(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Puts the working directory first on the import path within the block, as `python -m`
    does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
