"""The functions of the package: every part of the pipeline in a line of Python.

`import raybust` loads none of it; the first use of a name does. The functions call what the command
line calls, so their rows are equal bit for bit. Provisional until version 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from raybust import config as configuration
from raybust import data as datasets
from raybust import request
from raybust.errors import RequestError
from raybust.reporting.differences import Differences
from raybust.search.leaderboard import Leaderboard
from raybust.stages import attacked, certified, checks, corrupted, predicted, reports, training
from raybust.stages.bars import silent
from raybust.stages.certified import Certified
from raybust.stages.compared import Margins, compare_results
from raybust.stages.measurement import Measurement, Options
from raybust.stages.opened import (
    Network,
    class_names,
    evaluated,
    of_module,
    open_network,
    open_run,
    with_sigma,
)
from raybust.stages.predicted import Predictions
from raybust.stages.reports import Report
from raybust.trained import Trained


def load(run: str | Path, *settings: str, out: str | Path | None = None) -> Trained:
    """Returns a trained network with its `classes`, `sigma`, `dataset` and `config`.

    Args:
        run: a run's name, its folder, SWEEP/7, SWEEP/best, a weights file, or `models:/NAME@best`,
            whose data are not read.
        settings: key=value as on the command line; for a weights file the whole configuration.
        out: the folder of the runs; default: runs.

    Raises:
        RequestError: there is no such run, or it has no checkpoint yet.
    """
    return open_run(run, settings, out, with_data=not str(run).startswith("models:/"))


def train(
    *settings: str,
    name: str | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Trained:
    """Trains one network and returns it; the same call again resumes, or returns what is trained.

    Args:
        settings: key=value as on the command line, or first the path of a YAML file.
        name: of the run.
        out: the folder of the runs; default: runs.
        address: of a Ray cluster; None for this machine.
        workers: DDP workers.
        resume: False sets an earlier run of that name aside.
        quiet: print nothing.

    Raises:
        RequestError: the request is invalid; nothing was started.
        WorkError: training failed; the last good checkpoint is kept.
    """
    given = {"name": name, "out": out and str(out), "workers": workers}
    leaves, _ = request.read_leaves(settings, given)
    config = request.compose(leaves)
    checks.check_training(config, local=True)
    echo = _echo(quiet)
    folder = training.train(config, address=address, resume=resume, verbose=False, echo=echo)
    return open_run(folder, [f"model.name={config.model.name}"], out)


def tune(
    space: str | Path,
    *settings: str,
    name: str | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Leaderboard:
    """Runs a sweep and returns its leaderboard; the same call again resumes.

    Args:
        space: the path of a search space, or the name of a packaged one: "quickstart".
        settings: key=value as on the command line.
        name: of the sweep.
        out: the folder of the runs; default: runs.
        address: of a Ray cluster; None for this machine.
        workers: DDP workers of a trial.
        resume: False sets an earlier sweep of that name aside.
        quiet: print nothing.

    Raises:
        RequestError: the request is invalid; nothing was started.
        WorkError: no trial finished, or no finalist could be measured.
    """
    given = {"name": name, "out": out and str(out), "workers": workers}
    leaves, block = request.read_leaves((str(space), *settings), given)
    if block is None:
        raise RequestError(f"{space}: has no `search` block; add one, or use `train`")
    from raybust.stages import tuning

    config, _ = checks.check_sweep(leaves, block, address=address)
    return tuning.tune(
        config, leaves, block, address=address, resume=resume, verbose=False, echo=_echo(quiet)
    )


def certify(
    model: Network,
    data: Any = None,
    *settings: str,
    sigma: float | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Certified:
    """Certifies a network by smoothing, or with "certify.bound=best" by bounds; returns `rows`.

    Args:
        model: the network.
        data: what to certify on: (images, labels), a torch dataset, or the name or path of a
            dataset. A run's own test set is the default.
        settings: key=value as on the command line: "certify.n=1000".
        sigma: standard deviation of the noise in pixels in [0, 1]; required for a module if noisy.
        out: the folder of the runs; for a module, or what `load` returned on other data, that of
            the results, which else exist only as long as the returned object.
        name: of the result.
        address: of a Ray cluster; None for this machine.
        workers: tasks at a time.
        resume: False sets earlier results aside.
        quiet: print nothing.

    Raises:
        RequestError: the network cannot be certified, or the results there are of another one.
        WorkError: a task failed; finished rows are kept.
    """
    settings = with_sigma(model, settings, sigma)
    checks.check_kind(configuration.leaves_of_arguments(settings))
    trained, home = open_network(model, data, settings, out, _echo(quiet))
    device = checks.device_before(trained.config, address)
    checks.check_certify(trained.config, trained.dataset.shape, device)
    options = Options(_echo(quiet), address, workers, resume, name)
    return replace(certified.certify(trained, options), home=home)


def attack(
    model: Network,
    data: Any = None,
    *settings: str,
    eps: float | str | Sequence[float | str] | None = None,
    norm: str | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Measurement:
    """Attacks a network by the ensemble; `metrics` has the robust accuracy at each eps.

    Args:
        model: the network.
        data: as in `certify`.
        settings: key=value as on the command line: "evaluate.examples=200".
        eps: radius or radii of the ball, in pixels in [0, 1]: 0.5, "8/255", ["2/255", "8/255"].
        norm: "linf", "l2" or "l1".
        out: as in `certify`.
        name: of the result.
        address: of a Ray cluster; None for this machine.
        workers: tasks at a time.
        resume: False sets earlier results aside.
        quiet: print nothing.

    Raises:
        RequestError: the network cannot be attacked, or the results there are of another one.
        WorkError: a task failed; finished rows are kept.
    """
    if eps is not None:
        settings = (*settings, attacked.eps_setting(eps))
    if norm is not None:
        settings = (*settings, f"evaluate.norm={norm}")
    trained, home = open_network(model, data, settings, out, _echo(quiet))
    device = checks.device_before(trained.config, address)
    images = trained.dataset.shape, len(trained.dataset.classes)
    checks.check_attacks(trained.config, *images, device=device)
    options = Options(_echo(quiet), address, workers, resume, name)
    return replace(attacked.evaluate(trained, options), home=home)


def corrupt(
    model: Network,
    data: Any = None,
    *settings: str,
    sets: Sequence[str] = (),
    out: str | Path | None = None,
    name: str | None = None,
    address: str | None = None,
    workers: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> Measurement:
    """Measures a network under corruption; `metrics` has errors and their means.

    Args:
        model: the network.
        data: as in `certify`.
        settings: key=value as on the command line: "corruptions.folder=CIFAR-10-C".
        sets: names of sets of random Lp noise: "C1".
        out: as in `certify`.
        name: of the result.
        address: of a Ray cluster; None for this machine.
        workers: tasks at a time.
        resume: False sets earlier results aside.
        quiet: print nothing.

    Raises:
        RequestError: no corruption is asked for, it cannot be applied, or the results there are of
            another network.
        WorkError: a task failed; finished counts are kept.
    """
    if sets:
        settings = (*settings, f"corruptions.sets=[{','.join(sets)}]")
    trained, home = open_network(model, data, settings, out, _echo(quiet))
    if not trained.config.corruptions.asked:
        raise RequestError("corrupt: no corruption is asked for; pass sets=['C1'], for instance")
    device = checks.device_before(trained.config, address)
    checks.check_evaluate(trained.config, trained.dataset, device)
    options = Options(_echo(quiet), address, workers, resume, name)
    return replace(corrupted.evaluate(trained, options), home=home)


def predict(
    model: Network,
    images: Any,
    *settings: str,
    sigma: float | None = None,
    radius: float | None = None,
    plain: bool = False,
    classes: Sequence[str] | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Predictions:
    """Returns class and certified radius of images without labels.

    Args:
        model: the network.
        images: an array or tensor (N, C, H, W), (N, H, W) or (N, H, W, C), uint8 or floats in
            [0, 1]; one image for a run; or a path or paths of image files, folders, or an npz.
        settings: key=value as on the command line: "certify.n=1000".
        sigma: standard deviation of the noise; required for a module unless `plain`.
        radius: the only radius of interest: an image is done once it is decided.
        plain: the network's class without noise and without a certificate.
        classes: names of a module's classes.
        out: the folder of the runs.
        workers: tasks at a time.
        quiet: print nothing.

    Raises:
        RequestError: the images do not fit the network.
        WorkError: a task failed.
    """
    if not plain:
        settings = with_sigma(model, settings, sigma)
    settings = predicted.with_radius(settings, radius)
    echo, home = _echo(quiet), TemporaryDirectory(prefix="raybust-")
    if isinstance(model, nn.Module):
        network, (part, names) = evaluated(model), predicted.given_images(images, None, echo)
        found = class_names(network, part.fetch([0])[0])
        if classes is not None and len(classes) != len(found):
            raise RequestError(f"classes: got {len(classes)} names for {len(found)} logits")
        dataset = datasets.empty("given", part.shape, classes or found)
        trained = of_module(network, dataset, settings, home.name)
    else:
        trained = replace(open_run(model, settings, out, with_data=False), folder=Path(home.name))
        part, names = predicted.given_images(images, trained, echo)
    options = Options(echo, None, workers)
    if plain:
        return predicted.predict_plain(trained, part, names, options)
    seed = predicted.seed_of(configuration.leaves_of_arguments(settings))
    return replace(predicted.predict(trained, part, names, options, seed=seed), home=home)


def report(*names: str | Path, out: str | Path | None = None, name: str = "report") -> Report:
    """Writes a report that compares logs and runs, or the page of a sweep; returns it.

    Args:
        names: certification logs, runs and sweeps.
        out: the folder of the runs; default: runs.
        name: of the report's folder.

    Raises:
        RequestError: a name is none of these, or has nothing to report.
    """
    leaves, _ = request.read_leaves((), {"out": out and str(out), "name": name})
    return reports.report([str(one) for one in names], leaves, _echo(False))


def compare(
    *sides: str | Path | Sequence[str | Path],
    margin: float = 1.0,
    acr_margin: float = 0.01,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    name: str = "compare",
) -> Differences:
    """Returns whether each network is better than those that follow it, on the same images.

    Args:
        sides: runs, trials or certification logs; a list of several seeds is one side.
        margin: points of accuracy within which networks are equivalent.
        acr_margin: the same for the average certified radius.
        settings: key=value as on the command line: "certify.radii=[0.25,0.5]".
        out: the folder of the runs.
        name: of the folder with tables and picture.

    Raises:
        RequestError: one has no results, or they have none in common.
    """
    leaves, _ = request.read_leaves(settings, {"out": out and str(out), "name": name})
    texts = [str(s) if isinstance(s, (str, Path)) else ",".join(map(str, s)) for s in sides]
    return compare_results(texts, leaves, Margins(margin, acr_margin), _echo(False))


def _echo(quiet: bool) -> Callable[[str], None]:
    return silent if quiet else (lambda text: print(text, file=sys.stderr))
