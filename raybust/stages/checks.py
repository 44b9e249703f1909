"""Checks before a plan is printed, a job submitted or a session opened: names, paths and URIs, and
the protocols that measure a trained network.

With a jobs URL the command runs on that cluster: `local` is then False, and what only the cluster
knows (its folders, runs and packages) is checked there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybust import config as configuration
from raybust import data, devices, methods, models, track
from raybust.certification import make_bound_protocol, make_protocol
from raybust.config import Config, Leaf
from raybust.config.assess import OF_NOISE
from raybust.corruptions import check_corruptions
from raybust.data import Dataset
from raybust.disk import checkpoint, runs
from raybust.errors import RequestError
from raybust.evaluate import check_classes, make_attack_protocol
from raybust.track.uri import sqlite_file
from raybust.training import initial
from raybust.training.objective import smoothing_sigma

if TYPE_CHECKING:
    from raybust.search.space import Space


def check_training(config: Config, *, local: bool) -> None:
    """Checks a run's names, paths and URIs without reading data.

    Args:
        config: of the run, or of a sweep.
        local: whether the driver runs on this machine.

    Raises:
        RequestError: a name is unknown, a required path is missing, or a location is unusable.
    """
    data.check(config.data, local=local)
    models.check(config.model.name, local=local)
    check_places(config, local=local)
    if local:
        initial.check(config)


def check_sweep(
    leaves: Sequence[Leaf], block: Any, *, address: str | None = None, local: bool = True
) -> tuple[Config, Space]:
    """Returns a sweep's configuration and space after all checks that need no data.

    Args:
        leaves: the fixed configuration.
        block: the block `search` of the file.
        address: of a Ray cluster; None for the embedded one.
        local: whether the driver runs on this machine.
    """
    from raybust.search.goals import check_goals
    from raybust.search.sampler import check_sampler
    from raybust.search.space import Space

    config = configuration.compose(leaves, methods.get)
    space = Space.parse(block)
    space.check(leaves, methods.get)
    for point in config.tune.points:
        space.check_point(point)
    check_kind(leaves)
    check_sampler(config, space)
    check_goals(config, space)
    check_search(config, space, address=address, local=local)
    return config, space


def check_search(config: Config, space: Space, *, address: str | None, local: bool) -> None:
    """Checks a sweep's names, paths and URIs, and its finalists' protocols.

    Args:
        config: of the sweep.
        space: its networks' names are checked.
        address: of a Ray cluster; None for the embedded one.
        local: whether the driver runs on this machine.

    Raises:
        RequestError: as `check_training`, or the finalists could not be measured.
    """
    for domain in space.domains:
        for value in domain.values if domain.key == "model.name" else ():
            models.check(str(value), local=local)
    check_training(config, local=local)
    if local and config.tune.warm_start is not None:
        try:
            runs.find(config.tune.warm_start, runs.out_folder(config))
        except RequestError as error:
            raise RequestError(f"tune.warm_start: {error}") from None
    facts = data.describe(config.data.name)
    if facts["shape"] is not None:  # otherwise known once the sweep has read the data
        device = device_before(config, address)
        check_finalists(config, facts["shape"], facts["classes"], device=device, local=local)


def check_places(config: Config, *, local: bool = True) -> None:
    """Checks, without writing, that results and runs can be stored, and rejects passwords that
    would be stored with them."""
    out = runs.out_folder(config)
    for key, uri, instead in (
        ("track.uri", config.track.uri, "the URI in $MLFLOW_TRACKING_URI"),
        ("tune.storage", config.tune.storage, "the password in ~/.pgpass or $PGPASSWORD"),
    ):
        if uri and track.safe_uri(uri) != uri:
            raise RequestError(
                f"{key}: got {track.safe_uri(uri)} with a password, which run.json and MLflow would"
                f" store; put {instead}"
            )
    if config.tune.storage is not None:
        from raybust.search.database import check_form

        check_form(config.tune.storage)
    if not local:
        if config.track.uri:
            track.resolve_uri(config.track, out)
        return
    runs.check_writable(out)
    file = sqlite_file(track.resolve_uri(config.track, out))
    if file is not None:
        runs.check_writable(file.parent, "track.uri")


def device_before(config: Config, address: str | None) -> str:
    """Returns the device type of Ray's tasks before a session is open. If only the cluster knows,
    returns that of a GPU, for which fewer requests are rejected."""
    gpus = config.cluster.gpus_per_worker
    if gpus is not None:
        return devices.of_tasks(gpus)
    return devices.local().type if address is None else devices.of_tasks(1)


def check_finalists(
    config: Config, shape: tuple[int, int, int], classes: int, *, device: str, local: bool = True
) -> None:
    """Checks the protocols of a sweep's finalists, if it has any.

    Args:
        config: sections `certify` and `evaluate` are checked.
        shape: (C, H, W) of an image.
        classes: K.
        device: device type of the tasks.
        local: whether this machine's packages run the attacks.

    Raises:
        RequestError: the finalists could not be certified or attacked.
    """
    if config.tune.finalists:
        check_certify(config, shape, device)
        check_attacks(config, shape, classes, device=device, local=local)


def check_certify(config: Config, shape: tuple[int, int, int], device: str) -> None:
    """Rejects an impossible certification; see `make_protocol` and `make_bound_protocol`."""
    section = config.certify
    if section.bound != "smoothing":
        make_bound_protocol(section, shape=shape, classes=2, device=device, dataset="")
        return
    sigma = smoothing_sigma(config)
    make_protocol(section, sigma=sigma, shape=shape, device=device, dataset="")


def check_kind(leaves: Sequence[Leaf]) -> None:
    """Rejects settings of noise given together with bounds in place of smoothing, which would not
    use them. What a run stored is not looked at.

    Raises:
        RequestError: names the setting.
    """
    given = {leaf.key: leaf for leaf in leaves}
    bound = given.get("certify.bound")
    if bound is None or bound.value == "smoothing":
        return
    for name in OF_NOISE:
        leaf = given.get(f"certify.{name}")
        if leaf is not None and (name, leaf.value) not in _FITTING:
            raise RequestError(
                f"{leaf.key}: got {leaf.value}, but certify.bound={bound.value} uses no noise:"
                f" leave it out, or set certify.bound=smoothing ({leaf.source})"
            )


_FITTING = (("norm", "linf"), ("precision", "float32"))
"""Settings of smoothing that say what bounds do anyway."""


def check_attacks(
    config: Config, shape: tuple[int, int, int], classes: int, *, device: str, local: bool = True
) -> None:
    """Rejects impossible attacks; see `make_attack_protocol`."""
    section = config.evaluate
    if not local:
        attacks = tuple(name for name in section.attacks if name != "autoattack")
        section = dataclasses.replace(section, attacks=attacks)
    if section.attacks:
        make_attack_protocol(section, shape=shape, total=1, device=device, dataset="")
        check_classes(section.attacks, classes)


def check_evaluate(config: Config, dataset: Dataset, device: str) -> None:
    """Rejects an impossible evaluation under corruption or attack."""
    section = config.corruptions
    if section.asked:
        check_corruptions(getattr(dataset, section.split), section, dataset.classes)
    else:
        check_attacks(config, dataset.shape, len(dataset.classes), device=device)


def check_class_names(folder: Path, dataset: Dataset) -> None:
    """Rejects data whose classes have other names than when a run, or the first trial of a sweep,
    began.

    Raises:
        RequestError: names the first such class.
    """
    trials = sorted((folder / runs.TRIALS).glob("*")) if (folder / runs.TRIALS).is_dir() else []
    newest = next(filter(None, map(checkpoint.newest, [folder, *trials])), None)
    if newest is None:
        return
    before = checkpoint.read_manifest(newest)["classes"]
    for number, (was, now) in enumerate(zip_longest(before, dataset.classes)):
        if was != now:
            raise RequestError(
                f"{folder.name}: class {number} was {was!r} when it began, but is {now!r} in the"
                " data now; restore the names, choose another --name, or --no-resume to start over"
            )
