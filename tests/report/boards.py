"""Synthetic leaderboards: any number of trials, methods, states."""

import math
import random
from pathlib import Path

from raybust.search.leaderboard import Leaderboard
from raybust.search.records import TrialRecord

METHODS = {
    "standard": (), "gaussian": ("method.sigma",), "macer": ("method.sigma", "method.gamma"),
    "smoothadv": ("method.sigma", "method.steps"), "trades": ("method.beta",),
    "pgd": ("method.eps",), "mixup": ("method.alpha",), "beckman": ("method.epsilon",),
    "consistency": ("method.sigma", "method.lam"), "covariance": ("method.sigma",),
    "geodesic": ("method.steps",), "adversarial_mixup_of_a_very_long_name_that_goes_on": (),
}  # fmt: skip
DRAWS = {
    "method.sigma": lambda rng: 0.12 * 8 ** rng.random(),
    "method.steps": lambda rng: rng.choice([1, 2, 5, 10]),
    "method.eps": lambda rng: rng.choice([2 / 255, 4 / 255, 8 / 255]),
}
RADII = (0, 0.25, 0.5, 1)


def entry(number, method="gaussian", state="COMPLETE", value=0.3, final=False, **changes):
    """One trial; `value` is its ACR."""
    known = value is not None
    history = {k: value * (0.5 + k / 20) for k in range(1, 11)} if known else {}
    metrics = {"passes/forward": 2e5, "passes/backward": 1e5, "train/seconds": 20.0 + number}
    if known:
        metrics |= {"validation/accuracy": 0.9 - value / 4, "certified_fast/acr": value}
    plain = {
        "number": number, "method": method, "state": state, "value": value, "metrics": metrics,
        "point": {"method.name": method, "train.lr": 0.05}, "history": history,
        "spent": {epoch: float(epoch) for epoch in history},
    }  # fmt: skip
    if final:
        plain |= {"accuracy": 0.8765, "examples": 250}
        plain["certified"] = {"certified/acr": 0.4321} | {
            f"certified/accuracy_at/{radius:g}": 0.9 - radius / 2 for radius in RADII
        }
        plain["attacked"] = {
            "attacked/clean_accuracy": 0.8765, "attacked/robust_accuracy": 0.1234,
            "attacked/linf_0.0078431/robust_accuracy": 0.5432,
            "attacked/linf_0.0313725/robust_accuracy": 0.1234, "attacked/flags": 0.0,
        }  # fmt: skip
    return TrialRecord(**plain | changes)


def board(folder, entries=(), others=(), **changes):
    plain = {
        "sweep": "made-up", "metric": "certified_fast/acr", "mode": "max",
        "entries": tuple(entries), "others": tuple(others), "folder": Path(folder),
        "dataset": "digits; 1 x 8 x 8 pixels, 10 classes", "network": "small_cnn",
        "budget": "10 epochs", "search": "200 validation examples, n = 1000, after every epoch",
        "protocol": "500 test examples, skip 20; n0 = 100, n = 100000, alpha = 0.001",
        "command": "raybust tune space.yaml", "environment": {"raybust": "0.1", "torch": "2.13"},
        "space": (("train.lr", "float in [0.005, 0.2], log", "0.05", ""),),
    }  # fmt: skip
    return Leaderboard(**plain | changes)


def large(folder, trials=40, methods=10, seed=0):
    """A sweep with two objectives, a constraint, early stops and failures."""
    rng, names = random.Random(seed), list(METHODS)[:methods]
    entries, others = [], []
    for number in range(trials):
        method = names[number % methods]
        point = {"method.name": method, "train.lr": 0.005 * 40 ** rng.random()}
        for key in METHODS[method]:
            point[key] = DRAWS.get(key, lambda rng: rng.random())(rng)
        good = 0.15 + 0.35 * (1 - (math.log(point["train.lr"] / 0.03) / 3) ** 2) * rng.random()
        looks = {"point": point, "metrics": {
            "validation/accuracy": 0.97 - good / 2 - 0.15 * rng.random(),
            "certified_fast/acr": good, "passes/forward": 2e5 * (1 + number % methods),
            "passes/backward": 1e5, "train/seconds": 30 * (1 + number % methods),
        }}  # fmt: skip
        draw = rng.random()
        if draw < 0.08:
            why = "the loss became nan in epoch 1; lower train.lr"
            others.append(entry(number, method, "FAIL", None, reason=why, **looks))
        elif draw < 0.4:
            made = entry(number, method, "PRUNED", good * 0.8, **looks)
            short = {k: v for k, v in made.history.items() if k <= 3}
            others.append(entry(number, method, "PRUNED", good * 0.8, history=short, **looks))
        else:
            fine = looks["metrics"]["validation/accuracy"] >= 0.7
            entries.append((number, method, good, fine, looks))
    entries.sort(key=lambda item: (not item[3], -item[2]))
    ranked = [
        entry(number, method, value=good, final=place < 3, feasible=fine, **looks)
        for place, (number, method, good, fine, looks) in enumerate(entries)
    ]
    front = [
        one.number for one in ranked
        if one.feasible and not any(
            other.feasible and other.value > one.value
            and other.metrics["validation/accuracy"] > one.metrics["validation/accuracy"]
            for other in ranked
        )
    ]  # fmt: skip
    return board(
        folder, ranked, others, pareto=tuple(front),
        objectives=(("certified_fast/acr", "max"), ("validation/accuracy", "max")),
        constraints=("validation/accuracy >= 0.7",),
        importances={"train.lr": 0.61, "method.name": 0.27, "method.sigma": 0.09,
                     "method.steps": 0.03},
    )  # fmt: skip
