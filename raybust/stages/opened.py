"""What the functions of the package take as a network, opened: a run, weights, or any module.

Results on data that a program passes, and those of a module, stay out of the runs: they go into a
folder of their own, or into a temporary one that lives as long as the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from raybust import config as configuration
from raybust import data as datasets
from raybust import methods, request
from raybust.config import Config, Leaf
from raybust.data import Dataset
from raybust.disk import runs
from raybust.errors import RequestError
from raybust.identity import agree, fixed_images, outputs_of, weights_digest
from raybust.stages.bars import Echo
from raybust.trained import FOREIGN, SETTABLE, Trained, first_other_class, load_trained

Network = str | Path | Trained | nn.Module
"""A run's name, its folder, SWEEP/7, SWEEP/best, `models:/NAME@best`, a weights file, what `load`
returned, or a module from images (B, C, H, W) in [0, 1] to logits (B, K)."""

_DATA = "data."
_FEWEST = 2
"""Classes of a classifier."""


def open_network(
    model: Network, data: Any, settings: Sequence[str], out: str | Path | None, echo: Echo
) -> tuple[Trained, TemporaryDirectory[str] | None]:
    """Returns a network with the data to measure it on, and the temporary folder of its results, or
    None if they are kept.

    Args:
        model: the network.
        data: (images, labels), a torch dataset, the name or path of a dataset, or None for a run's
            own.
        settings: key=value.
        out: the folder of the runs; for a module or other data that of the results, or None.
        echo: prints the network's notes.

    Raises:
        RequestError: there is no such network, or the data do not fit it.
    """
    if not isinstance(model, nn.Module):
        loaded = isinstance(model, Trained)
        own = [one for one in settings if data is None or not one.startswith(_DATA)]
        trained = open_run(model, own, None if loaded else out)
        for note in trained.notes:
            echo(note)
        if data is None:
            if not len(trained.dataset.test):
                raise RequestError(f"data: {trained.name} was loaded without its data; pass some")
            if loaded and out is not None:
                raise RequestError("out: results of a run go into its folder; leave it out")
            _check_unchanged(trained)
            return trained, None
        dataset = _dataset(data, settings, lambda images: trained.classes, trained.config)
        _check_fit(trained, dataset)
        _print_notes(dataset, echo)
        if loaded and out is not None:
            name = f"{trained.folder.name}-{weights_digest(trained.network)[:8]}"
            folder, home = Path(out).expanduser().absolute() / FOREIGN / name, None
        else:
            home = TemporaryDirectory(prefix="raybust-")
            folder = Path(home.name)
        return replace(trained, dataset=dataset, folder=folder, uid=None), home
    if data is None:
        raise RequestError("data: got None, expected images and labels to measure the module on")
    network = evaluated(model)
    dataset = _dataset(data, settings, lambda images: class_names(network, images))
    given = len(class_names(network, dataset.test.fetch([0])[0]))
    _print_notes(dataset, echo)
    if given != len(dataset.classes):
        raise RequestError(f"model: has {given} classes, but the data have {len(dataset.classes)}")
    if out is not None:
        return of_module(network, dataset, settings, out), None
    home = TemporaryDirectory(prefix="raybust-")
    return of_module(network, dataset, settings, home.name), home


def _print_notes(dataset: Dataset, echo: Echo) -> None:
    for note in filter(None, dataset.notes):
        echo(f"data  {note}")


def open_run(
    model: str | Path | Trained,
    settings: Sequence[str],
    out: str | Path | None = None,
    *,
    with_data: bool = True,
) -> Trained:
    """Returns a trained network with the settings of a call.

    Args:
        model: a run, weights, or what `load` returned.
        settings: key=value.
        out: the folder of the runs.
        with_data: whether to read its dataset; without, its parts are empty.

    Raises:
        RequestError: there is no such run, or it has no checkpoint yet.
    """
    if isinstance(model, Trained):
        given = configuration.leaves_of_arguments(settings)
        for leaf in given:
            if not runs.belongs(leaf.key, SETTABLE) or leaf.key.startswith(_DATA):
                raise RequestError(
                    f"{leaf.key}: cannot change after loading; call raybust.load with it"
                )
        leaves = configuration.leaves_of(configuration.to_dict(model.config), model.name)
        config = configuration.compose([*leaves, *given], methods.get)
        return replace(model, config=config, network=evaluated(model.network))
    where = {"out": None if out is None else str(out)}
    return request.open_trained(str(model), settings, where, with_data=with_data)


def with_sigma(model: Network, settings: tuple[str, ...], sigma: float | None) -> tuple[str, ...]:
    """Returns the settings with sigma.

    Args:
        model: the network.
        settings: key=value.
        sigma: of the call.

    Raises:
        RequestError: a module without sigma, or sigma given twice.
    """
    named = [text for text in settings if text.startswith("certify.sigma=")]
    if sigma is not None:
        if named:
            raise RequestError(
                f"sigma: got sigma={sigma:g} and {named[-1]!r}; leave out one of them"
            )
        return (*settings, f"certify.sigma={float(sigma)!r}")
    bounds = [text for text in settings if text.startswith("certify.bound=")]
    noisy = not bounds or bounds[-1] == "certify.bound=smoothing"
    if isinstance(model, nn.Module) and not named and noisy:
        raise RequestError("sigma: cannot be inferred from a module; pass sigma=0.5, for instance")
    return settings


def of_module(
    network: nn.Module, dataset: Dataset, settings: Sequence[str], folder: str | Path
) -> Trained:
    """Returns a module as a trained network.

    Args:
        network: in eval mode.
        dataset: to measure it on.
        settings: key=value.
        folder: in which the folder of its results is made.
    """
    leaves = [
        *configuration.leaves_of_arguments(settings),
        Leaf("out", str(folder), "out"),
    ]
    config = configuration.compose(leaves, methods.get)
    name = f"{type(network).__name__}-{weights_digest(network)[:8]}"
    home = runs.out_folder(config) / FOREIGN / name
    return Trained(home, config, dataset, network, None, None, training_known=False)


def evaluated(model: nn.Module) -> nn.Module:
    """Returns a copy of a module on the CPU, in eval mode.

    Raises:
        RequestError: it cannot be copied, holds what is no tensor, or stays in training mode.
    """
    try:
        copied = copy.deepcopy(model).cpu().eval()
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise RequestError(f"model: cannot be copied ({text})") from error
    strange = [key for key, value in copied.state_dict().items() if not isinstance(value, Tensor)]
    if strange:
        raise RequestError(
            f"model: {strange[0]} is no tensor; quantized networks are not supported, pass the"
            " floating-point one"
        )
    if copied.training:
        raise RequestError("model: stays in training mode after model.eval()")
    return copied


def class_names(network: nn.Module, images: Tensor) -> list[str]:
    """Returns the numbers of a network's classes, as their names.

    Args:
        network: in eval mode.
        images: (N, C, H, W) in [0, 1].

    Raises:
        RequestError: it does not take these images, or does not give logits.
    """
    shape = tuple(images.shape[1:])
    before = images.clone()
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:
        wrong = next((p.dtype for p in network.parameters() if p.dtype != torch.float32), None)
        hint = f"; its weights are {wrong}: call .float()" if wrong else ""
        raise RequestError(
            f"model: fails on images of (C, H, W) = {shape}: {error}{hint}"
        ) from error
    if not torch.equal(images, before):
        raise RequestError(
            "model: changes its input images in place; start its forward with images ="
            " images.clone()"
        )
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RequestError(
            f"model: gives {found} for {len(images)} images of (C, H, W) = {shape}, expected logits"
            f" ({len(images)}, K)"
        )
    if not logits.isfinite().all():
        raise RequestError("model: gives logits that are not finite on the first image")
    if logits.shape[1] < _FEWEST or not logits.is_floating_point():
        raise RequestError(
            f"model: gives {logits.shape[1]} columns of {logits.dtype} an image, expected one logit"
            f" for each of at least {_FEWEST} classes; turn a single logit z into (0, z)"
        )
    if logits.dtype != torch.float32:
        raise RequestError(
            f"model: gives logits of {logits.dtype}, expected float32; call .float()"
        )
    return [str(number) for number in range(logits.shape[1])]


def _check_unchanged(trained: Trained) -> None:
    """Rejects a network or data that are no longer those of the run: the results would go into it.

    Raises:
        RequestError: weights, function or data differ from those of the run as it is now.
    """
    if trained.uid is None:
        return
    leaves = [
        leaf for leaf in configuration.leaves_of(configuration.to_dict(trained.config), "the run")
        if leaf.key.startswith(_DATA) and leaf.key in SETTABLE
    ]  # fmt: skip
    now, images = (
        load_trained(trained.folder, leaves, trusted=True),
        fixed_images(trained.dataset.shape),
    )
    same = (
        runs.read_identity(trained.folder).uid == trained.uid
        and weights_digest(now.network) == weights_digest(trained.network)
        and agree(outputs_of(now.network, images), outputs_of(trained.network, images))
        and now.dataset.digest == trained.dataset.digest
    )
    if not same:
        raise RequestError(
            f"{trained.name}: is not what its run has now; load it again, or pass its `network` as"
            " a module with data"
        )


def _dataset(
    data: Any,
    settings: Sequence[str],
    classes_for: Callable[[Tensor], Sequence[str]],
    config: Config | None = None,
) -> Dataset:
    """Returns the data that a call names or passes; what it does not say is as in `config`."""
    if isinstance(data, Dataset):
        return data
    if not isinstance(data, (str, Path)):
        return datasets.dataset_of(data, classes_for)
    plain = {} if config is None else configuration.to_dict(config)
    leaves = [
        *(leaf for leaf in configuration.leaves_of(plain, "the run")
          if leaf.key.startswith(_DATA) and leaf.key != "data.path"),
        *(leaf for leaf in configuration.leaves_of_arguments(settings)
          if leaf.key.startswith(_DATA)),
    ]  # fmt: skip
    path = Path(data).expanduser()
    if str(data) not in datasets.names() and path.exists():
        leaves.append(Leaf("data.name", datasets.kind_of(str(path)), "data"))
        leaves.append(Leaf("data.path", str(path), "data"))
    else:
        leaves.append(Leaf("data.name", str(data), "data"))
    return datasets.load(configuration.compose(leaves, methods.get).data)


def _check_fit(trained: Trained, dataset: Dataset) -> None:
    """Rejects data of another shape or with other classes than a network's."""
    for what, ours, theirs in (
        ("images of (C, H, W) =", trained.dataset.shape, dataset.shape),
        ("classes", len(trained.dataset.classes), len(dataset.classes)),
    ):
        if ours != theirs:
            raise RequestError(f"data: has {what} {theirs}, expected {ours} for {trained.name}")
    if first_other_class(trained.classes, dataset.classes) is not None:
        raise RequestError(
            f"data: has the classes {', '.join(dataset.classes)}, expected"
            f" {', '.join(trained.classes)} in that order"
        )
