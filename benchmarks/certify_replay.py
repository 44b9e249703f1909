"""What early stopping saves: the schedules replayed on the pA of published logs.

The share of votes of every example is recovered from its logged radius and taken for its pA;
counts are then drawn from binomials, 20 seeds a log. Of an abstained example nothing is known but
that it was undecided: it gets pA = 1/2, which costs the most draws. Prints one JSON line a figure.
Needs the three logs of Cohen et al. (2019) in ../shared/data/certification_logs.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from raybust.certification import Schedule
from raybust.numerics.bounds import least_count
from raybust.reporting import Log, budget, read_log, votes

LOGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "certification_logs"
SEEDS, N, ALPHA = 20, 100_000, 0.001


def replay(log: Log, p: np.ndarray, schedule: Schedule, seed: int) -> tuple[float, float]:
    """Returns draws per example, and the most certified accuracy lost at a target, against the
    fixed schedule on the same draws."""
    generator = np.random.default_rng(seed)
    steps = np.diff([0, *schedule.times])
    counts = generator.binomial(steps, p[:, None]).cumsum(1)
    done = [
        next(j for j in range(len(steps)) if schedule.stops(row[: j + 1].tolist()))
        for row in counts
    ]
    seen = np.arange(len(steps)) <= np.array(done)[:, None]
    lost = 0.0
    for target, reached in zip(schedule.targets, np.array(schedule.reached).T, strict=True):
        early = ((counts >= reached) & seen).any(1)
        fixed = counts[:, -1] >= least_count(N, target, ALPHA)
        lost = max(lost, float((log.correct & fixed).mean() - (log.correct & early).mean()))
    return float(np.array(schedule.times)[done].mean()), lost


def figures(log: Log) -> list[dict[str, object]]:
    made = budget(log)
    assert made is not None
    p = votes(log, made)
    grid = np.arange(0.0, log.radius.max(), 0.25)
    two_sigma = round(2 * made.sigma / 0.25) * 0.25
    wanted = [
        ("one radius, looks", "looks", [two_sigma], 4000),
        ("one radius, sequence", "sequence", [two_sigma], 4000),
        ("radius grid, looks", "looks", grid, 40_000),
    ]
    lines: list[dict[str, object]] = []
    for what, name, radii, most in wanted:
        targets = tuple(float(q) for q in ndtr(np.array(radii) / made.sigma))
        schedule = Schedule(name=name, n=N, alpha=ALPHA, targets=targets)  # type: ignore[arg-type]
        found = [replay(log, p, schedule, seed) for seed in range(SEEDS)]
        draws, lost = np.array(found).T
        label = f"{log.name}: {what}"
        lines += [
            line(f"{label}: draws per example", draws, f"<= {most}", draws.mean() <= most),
            line(f"{label}: points lost", 100 * lost, "<= 0.2", 100 * lost.mean() <= 0.2),
        ]
    return lines


def line(name: str, values: np.ndarray, goal: str, holds: bool) -> dict[str, object]:
    return {
        "name": name,
        "value": round(float(values.mean()), 3),
        "unit": "draws" if "draws" in name else "percentage points, mean",
        "goal": goal,
        "holds": bool(holds),
        "runs": len(values),
    }


def main() -> int:
    paths = sorted(LOGS.glob("*.tsv"))
    if not paths:
        print(f"skipped: no certification logs in {LOGS}", file=sys.stderr)
        return 0
    held = True
    for path in paths:
        for found in figures(read_log(path)):
            print(json.dumps(found), flush=True)
            held &= bool(found["holds"])
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
