"""What the search finds: TPE and GP against random search at equal compute, and what ASHA saves.

`python benchmarks/search.py [SEEDS [TRIALS [OUT]]]`: digits, the space of gaussian.yaml, small_cnn
of width 8, twelve passes a training image, ACR of 100 validation images with n = 200. Four sweeps
a seed: random, TPE and GP without early stopping, TPE with ASHA. The sweeps stay in OUT:
killed, the same command goes on.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from _figures import figure

from raybust import config as configuration
from raybust import methods
from raybust.cluster.session import session
from raybust.search.leaderboard import Leaderboard
from raybust.stages import tuning

SPACE = Path(__file__).parents[1] / "search_spaces" / "gaussian.yaml"
SETTINGS = [
    "data.name=digits", "model.width=8", "train.passes=12", "train.batch_size=64",
    "certified_fast.examples=100", "certified_fast.n=200", "tune.finalists=0", "tune.startup=5",
]  # fmt: skip
ARMS = {
    "random": ["tune.sampler=random", "tune.scheduler=none"],
    "tpe": ["tune.sampler=tpe", "tune.scheduler=none"],
    "gp": ["tune.sampler=gp", "tune.scheduler=none"],
    "asha": ["tune.sampler=tpe", "tune.scheduler=asha", "tune.grace=0.15"],
}


def main(arguments: list[str]) -> None:
    """Prints the figures; every run is one seed."""
    given = (*arguments, *("5", "24", "runs/search")[len(arguments) :])
    seeds, trials, folder = int(given[0]), int(given[1]), given[2]
    found: dict[str, list[Leaderboard]] = {arm: [] for arm in ARMS}
    with session(None, verbose=False):
        for seed in range(seeds):
            for arm in ARMS:
                found[arm].append(searched(arm, seed, trials, folder))
    half, full = trials // 2, trials
    for arm in ARMS:
        figure(f"search: best ACR of {full} trials, {arm}", [best(b, full) for b in found[arm]], "")
    for arm in ("tpe", "gp"):
        figure(f"search: best ACR of {half} trials, {arm}", [best(b, half) for b in found[arm]], "")
        rivals = zip(found[arm], found["random"], strict=True)
        gains = [best(mine, half) - best(its, full) for mine, its in rivals]
        name = f"search: best ACR of {half} trials of {arm} less that of {full} random ones"
        figure(name, gains, "ACR", ">= 0")
    pairs = list(zip(found["asha"], found["tpe"], strict=True))
    saved = [1 - passes(a) / passes(t) for a, t in pairs]
    figure("search: share of the passes that ASHA saves", saved, "", ">= 0.4")
    losses = [best(t, full) - best(a, full) for a, t in pairs]
    spread = statistics.stdev(best(t, full) for t in found["tpe"])
    figure("search: best ACR that ASHA loses", losses, "ACR", f"<= {spread:.4f}")


def searched(arm: str, seed: int, trials: int, folder: str) -> Leaderboard:
    """Returns the leaderboard of one sweep."""
    own = [f"seed={seed}", f"tune.trials={trials}", f"out={folder}", f"name={arm}-{seed}"]
    tree = configuration.read_yaml(SPACE)
    block = configuration.expand(tree.pop("search"), SPACE)
    leaves = configuration.leaves_of(tree | {"name": None}, "space")
    leaves += configuration.leaves_of_arguments([*SETTINGS, *ARMS[arm], *own])
    config = configuration.compose(leaves, methods.get)
    quiet = {"address": None, "resume": True, "verbose": False}
    return tuning.tune(config, leaves, block, echo=lambda text: None, **quiet)  # type: ignore[arg-type]


def best(board: Leaderboard, first: int) -> float:
    """Returns the best value among the first trials, by number."""
    return max(entry.value or 0.0 for entry in board.entries if entry.number < first)


def passes(board: Leaderboard) -> float:
    """Returns the forward and backward passes of all trials."""
    return sum(entry.passes for entry in (*board.entries, *board.others))


if __name__ == "__main__":
    main(sys.argv[1:])
