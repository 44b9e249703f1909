"""Whether a race over seeds finds the configuration that all seeds would, and what it saves.

`python benchmarks/race.py [OUT]`: a grid of 24 configurations times five seeds on digits is trained
once, all of it, in the sweep OUT/race (killed, the same command goes on); then 50 races are
replayed on these values, with the configurations in random order.
"""

from __future__ import annotations

import sys

import numpy as np
from _figures import figure

from raybust import config as configuration
from raybust import methods
from raybust.search.race import Race
from raybust.stages import tuning

SPACE = {
    "train.lr": {"choice": [0.003, 0.01, 0.03, 0.1]},
    "method.sigma": {"choice": [0.12, 0.18, 0.25, 0.35, 0.5, 0.7]},
}
SETTINGS = [
    "data.name=digits", "method.name=gaussian", "model.name=small_cnn", "model.width=8",
    "train.passes=12", "train.batch_size=64", "certified_fast.examples=100", "certified_fast.n=200",
    "certify.sigma=0.25", "tune.finalists=0", "tune.scheduler=none", "tune.sampler=grid",
    "tune.trials=24", "tune.seeds=5", "tune.race_level=1e-20", "name=race",
]  # fmt: skip
REPLAYS = 50


def main(arguments: list[str]) -> None:
    """Prints the figures; every run is one replay."""
    values = np.array(recorded(arguments[0] if arguments else "runs/benchmark_race"))
    source, best = np.random.default_rng(0), int(values.mean(1).argmax())
    print(f"best of all seeds: {best}; values: {values.round(4).tolist()}", file=sys.stderr)
    found = [replay(values, source.permutation(len(values)).tolist()) for _ in range(REPLAYS)]
    figure("race: the winner is that of all seeds", [float(np.mean([w == best for w, _ in found]))],
           "share of 50", ">= 0.9")  # fmt: skip
    shares = [spent for _, spent in found]
    figure("race: share of the passes of all seeds", [float(np.mean(shares))], "mean of 50",
           "<= 0.6")  # fmt: skip
    figure(
        "race: ACR that the winner loses",
        [float(values.mean(1)[best] - values.mean(1)[winner]) for winner, _ in found],
        "ACR",
    )


def recorded(out: str) -> list[list[float]]:
    """Returns the values of each configuration and seed, trained if they are not there."""
    leaves = configuration.leaves_of_arguments([*SETTINGS, f"out={out}"])
    config = configuration.compose(leaves, methods.get)
    board = tuning.tune(
        config, leaves, SPACE, address=None, resume=True, verbose=False,
        echo=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    entries = sorted(board.entries, key=lambda entry: entry.number)
    return [[goals[0] for goals in entry.values] for entry in entries]


def replay(
    values: np.ndarray, order: list[int], level: float = 0.05, startup: int = 10
) -> tuple[int, float]:
    """Returns the winner of a race and the share of all networks that it trained.

    As in a sweep of one trial at a time: from the start-up on, further seeds take turns with new
    configurations.

    Args:
        values: (configurations, seeds).
        order: in which the configurations are tried.
        level: of the race.
        startup: configurations before the first further seed.
    """
    runs: dict[int, list[tuple[float]]] = {}
    waiting, further = list(order), 0
    while True:
        race = Race(runs, level)
        number = race.next_seed({n: len(own) for n, own in runs.items()}, values.shape[1])
        if number is not None and (not waiting or further < len(runs) - startup):
            runs[number].append((float(values[number, len(runs[number])]),))
            further += 1
        elif waiting:
            first = waiting.pop(0)
            runs[first] = [(float(values[first, 0]),)]
        else:
            return race.standing()[0], (len(runs) + further) / values.size


if __name__ == "__main__":
    main(sys.argv[1:])
