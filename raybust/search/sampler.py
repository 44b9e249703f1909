"""Optuna's samplers by name, with their constants.

Spaces that a sampler cannot search are rejected before anything starts. A resumed sweep reseeds its
sampler so that it does not repeat the points of the earlier start.
"""

from __future__ import annotations

import hashlib
from typing import Any

import optuna

from raybust.config import Config
from raybust.errors import RequestError
from raybust.search.space import Space

_MOST = 300
"""Trials up to which `auto` takes gp (our choice)."""


class Grid(optuna.samplers.GridSampler):
    """A grid that counts running points as used. Optuna's own hands them out twice, and stops
    `study.optimize`, which is not used here."""

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Returns whether every point has been handed out."""
        begun = {trial.system_attrs.get("grid_id") for trial in study.get_trials(deepcopy=False)}
        return begun >= set(range(len(self._all_grids)))

    def after_trial(self, *trial: Any) -> None:
        """Does nothing."""


def sampler_name(config: Config, space: Space) -> str:
    """Returns the sampler of a sweep by name; `auto` is decided here.

    gp finds better settings than tpe at equal passes (docs/performance.md), but models only the
    keys that every trial has, and its cost grows with the trials.
    """
    part = config.tune
    if part.sampler != "auto":
        return part.sampler
    several = any(domain.key == "method.name" for domain in space.domains)
    return "tpe" if several or part.objectives or part.trials > _MOST else "gp"


def make_sampler(config: Config, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a sweep.

    tpe, gp and nsga2 read the constraints from the trials; qmc, random and grid ignore results, so
    there constraints affect only the ranks.

    Args:
        config: section `tune` names the sampler.
        space: what is searched.
        seed: different after each resume.
    """
    part, samplers = config.tune, optuna.samplers
    name = sampler_name(config, space)
    quiet: dict[str, Any] = {"warn_independent_sampling": False}
    if name == "tpe":
        return samplers.TPESampler(
            seed=seed, n_startup_trials=part.startup, multivariate=True, group=True,
            constant_liar=True,
        )  # fmt: skip
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=part.startup, **quiet)
    if name == "cmaes":
        return samplers.CmaEsSampler(
            seed=seed, n_startup_trials=part.startup, popsize=part.population, **quiet
        )
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=part.population or 50)
    if name == "qmc":  # the same sequence across all starts
        return samplers.QMCSampler(seed=config.seed % 2**32, scramble=True, **quiet)
    if name == "grid":
        return Grid({d.name: d.grid() for d in space.domains}, seed=config.seed)
    return samplers.RandomSampler(seed=seed)


def seed_after(config: Config, *drawn: int) -> int:
    """Returns the seed of a sampler that follows on what was drawn so far, by its numbers."""
    text = "/".join(map(str, (config.seed, *drawn)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def check_sampler(config: Config, space: Space) -> None:
    """Checks that the sampler can search the space.

    Raises:
        RequestError: for `grid`, naming every key without a finite list of values or with `when`;
            for a searched `seed` where every point is given several.
    """
    if config.tune.seeds > 1 and any(domain.key == "seed" for domain in space.domains):
        raise RequestError(
            f"tune.seeds: got {config.tune.seeds}, but the space searches `seed`; remove one of"
            " the two"
        )
    if config.tune.sampler != "grid":
        return
    wrong = [d.name for d in space.domains if d.when or not d.grid()]
    if wrong:
        raise RequestError(
            "tune.sampler: grid needs choices, ints or stepped floats without `when`, got"
            f" {', '.join(wrong)}; change these keys or choose another sampler"
        )
