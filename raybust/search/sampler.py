"""Samplers by name: which Optuna class draws a sweep's points, with which constants.

Optuna's own samplers; what one cannot search is refused before anything starts. A resumed sweep
seeds its sampler anew, so that it does not draw the points of the earlier start again. Stage tune.
"""

from __future__ import annotations

from typing import Any

import optuna

from raybust.config import Config
from raybust.errors import RequestError
from raybust.search.space import Space


class Grid(optuna.samplers.GridSampler):
    """The grid, which a sweep asks whether it is exhausted; Optuna's own hands out points that are
    running once more, and would stop a loop that does not run here."""

    def is_exhausted(self, study: optuna.Study) -> bool:
        """Returns whether every point was handed out."""
        begun = {trial.system_attrs.get("grid_id") for trial in study.get_trials(deepcopy=False)}
        return begun >= set(range(len(self._all_grids)))

    def after_trial(self, *trial: Any) -> None:
        """Does nothing."""


def make_sampler(config: Config, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a sweep.

    Constraints reach tpe, gp and nsga2 through the trials themselves; qmc, random and grid look at
    nothing, and the ranks alone know of them.

    Args:
        config: its section `tune` names the sampler.
        space: what is searched.
        seed: another one after each resume.

    Raises:
        RequestError: the sampler cannot search this space.
    """
    part, samplers = config.tune, optuna.samplers
    quiet: dict[str, Any] = {"warn_independent_sampling": False}
    if part.sampler == "tpe":
        return samplers.TPESampler(
            seed=seed, n_startup_trials=part.startup, multivariate=True, group=True,
            constant_liar=True,
        )  # fmt: skip
    if part.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=part.startup, **quiet)
    if part.sampler == "cmaes":
        return samplers.CmaEsSampler(
            seed=seed, n_startup_trials=part.startup, popsize=part.population, **quiet
        )
    if part.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=part.population or 50)
    if part.sampler == "qmc":  # one sequence over all starts
        return samplers.QMCSampler(seed=config.seed % 2**32, scramble=True, **quiet)
    if part.sampler == "grid":
        return Grid({d.name: d.grid() for d in space.domains}, seed=config.seed)
    return samplers.RandomSampler(seed=seed)


def check_sampler(config: Config, space: Space) -> None:
    """Refuses a space that the sampler of a sweep cannot search.

    Raises:
        RequestError: for `grid`, with every key that has no list of values or a condition.
    """
    if config.tune.sampler != "grid":
        return
    wrong = [d.name for d in space.domains if d.when or not d.grid()]
    if wrong:
        raise RequestError(
            f"tune.sampler: grid needs choices, ints or stepped floats without `when`, which"
            f" {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not; choose another sampler"
        )
