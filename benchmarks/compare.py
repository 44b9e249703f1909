"""How often `raybust compare` finds a difference that is not there or misses one, and its seconds.

Pairs without a difference: images of two logs drawn with replacement, the two networks exchanged on
each image at random, so that the pair is as unlike as two networks are. Pairs whose difference is
the margin: the same images, not exchanged, with the margin at the difference of the whole logs.
Groups of seeds without a difference: all ways to halve ten seeds of one configuration. Prints one
JSON line a figure.

    python benchmarks/compare.py [LOG1.tsv LOG2.tsv [PAIRS]]
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
from _figures import figure, paired

import raybust
from raybust.reporting.figures import largest_radius
from raybust.reporting.logs import read_log
from raybust.significance import Paired, compare_means, compare_seeds, compare_shares, decide

RADII = (0.0, 0.25, 0.5, 0.75)
RESAMPLES = 1000
SEEDS = 10
FAST = ("certify.n=500", "certify.sigma=0.25")


def radii_of(path: str | Path) -> np.ndarray:
    """Returns the certified radii of a log by image, -1 where wrong."""
    log = read_log(path)
    order = np.argsort(log.idx)
    return np.where(log.correct, log.radius, -1.0)[order]


def family(
    a: np.ndarray, b: np.ndarray, bound: float, margins: list[float] | None = None
) -> list[Paired]:
    """Compares two networks in certified accuracy at `RADII` and ACR; no radius exceeds `bound`."""
    margins = margins or [0.01] * (len(RADII) + 1)
    found = [
        compare_shares(a >= radius, b >= radius, margin)
        for radius, margin in zip(RADII, margins, strict=False)
    ]
    acr = np.maximum(a, 0), np.maximum(b, 0)
    return [*found, compare_means(*acr, margins[-1], resamples=RESAMPLES, bound=bound)]


def false_findings(a: np.ndarray, b: np.ndarray, bound: float, pairs: int) -> None:
    """Pairs without a difference."""
    source, total = np.random.default_rng(0), len(a)
    wrong, families = np.zeros(len(RADII) + 1), 0
    for _ in range(pairs):
        rows = source.integers(0, total, total)
        exchanged = source.random(total) < 0.5
        one, other = np.where(exchanged, b[rows], a[rows]), np.where(exchanged, a[rows], b[rows])
        decisions = decide(family(one, other, bound))
        wrong += [decision.found.p <= 0.05 for decision in decisions]
        families += any(decision.verdict in ("better", "worse") for decision in decisions)
    names = [f"McNemar at {radius:g}" for radius in RADII] + ["permutations of the ACR"]
    for name, count in zip(names, wrong, strict=True):
        figure(f"false findings, {name}", [float(count) / pairs], "share", "<= 0.06")
    figure("false findings, a family of five (Holm)", [families / pairs], "share", "<= 0.06")


def false_equivalence(a: np.ndarray, b: np.ndarray, bound: float, pairs: int) -> None:
    """Pairs whose true difference is the margin."""
    source, total = np.random.default_rng(1), len(a)
    margins = [abs(float((a >= r).mean() - (b >= r).mean())) for r in RADII]
    margins.append(abs(float(np.maximum(a, 0).mean() - np.maximum(b, 0).mean())))
    claimed = np.zeros(len(margins))
    for _ in range(pairs):
        rows = source.integers(0, total, total)
        claimed += [one.p_within <= 0.05 for one in family(a[rows], b[rows], bound, margins)]
    names = [f"accuracy at {radius:g}" for radius in RADII] + ["ACR"]
    for name, count, margin in zip(names, claimed, margins, strict=True):
        if margin:
            figure(f"false equivalence at a difference of the margin, {name} ({margin:.3f})",
                   [float(count) / pairs], "share", "<= 0.06")  # fmt: skip


def power() -> None:
    """Findings at true differences, where the networks disagree on 15 % of the images."""
    source = np.random.default_rng(2)
    for points, images in itertools.product((1, 2, 5), (200, 1000, 10_000)):
        shares = 0.075 + points / 200, 0.075 - points / 200
        found = 0
        for _ in range(500):
            only_a, only_b, _ = source.multinomial(images, (*shares, 0.85))
            a = np.arange(images) < only_a
            b = (np.arange(images) >= only_a) & (np.arange(images) < only_a + only_b)
            found += compare_shares(a, b, 0.01).p <= 0.05
        figure(f"power at {points} points and {images} images", [found / 500], "share")


def seeds(home: Path) -> None:
    """All halves of ten seeds of one configuration, trained and certified here."""
    radii = []
    for seed in range(SEEDS):
        settings = ("data.name=digits", "method.name=gaussian", "train.epochs=3")
        run = raybust.train(
            *settings, "certified_fast.every=0", f"seed={seed}", out=home, quiet=True
        )
        raybust.certify(run, None, *FAST, quiet=True)
        (log,) = (run.folder / "certified").glob("*.tsv")
        radii.append(radii_of(log))
    values = np.maximum(np.stack(radii), 0)
    halves = [set(one) for one in itertools.combinations(range(SEEDS), SEEDS // 2) if 0 in one]
    wrong = single = 0
    for half in halves:
        a, b = values[sorted(half)], values[sorted(set(range(SEEDS)) - half)]
        wrong += compare_seeds(a, b, 0.01, paired=False, resamples=10).p <= 0.05
    pairs = list(itertools.combinations(range(SEEDS), 2))
    for i, j in pairs:
        single += compare_means(values[i], values[j], 0.01, resamples=RESAMPLES).p <= 0.05
    figure("false findings, five seeds against five of one configuration", [wrong / len(halves)],
           "share", "<= 0.06")  # fmt: skip
    figure("significant differences of two networks of one configuration", [single / len(pairs)],
           "share")  # fmt: skip


def main() -> None:
    """Prints the figures."""
    if len(sys.argv) > 2:
        first, second = (radii_of(path) for path in sys.argv[1:3])
        bound = max(largest_radius(read_log(path)) for path in sys.argv[1:3])
        pairs = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
        false_findings(first, second, bound, pairs)
        false_equivalence(first, second, bound, pairs)
    power()
    with tempfile.TemporaryDirectory() as home:
        seeds(Path(home))
    a, b = np.random.default_rng(3).gamma(1.0, size=(2, 10_000))
    times, _ = paired(lambda: [compare_means(a, b, 0.01), *(compare_shares(a >= r, b >= r, 0.01)
                      for r in RADII)], lambda: None, 5)  # fmt: skip
    figure("10,000 images of two networks, five columns", times, "s", "<= 5")


if __name__ == "__main__":
    main()
