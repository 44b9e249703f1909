"""Summary of an attack table: accuracy over eps and per attack, flags, and a RobustBench record.

RobustBench (Croce et al., 2021, arXiv:2010.09670) describes a model by twelve fields; only
pyautoattack fills the one for AutoAttack's accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raybust.evaluate.attack_protocol import HEADLINE, AttackProtocol
from raybust.evaluate.distrust import FLAT, Flag, flags_of_rows, flat_share
from raybust.evaluate.suite import ALWAYS
from raybust.evaluate.table import FURTHER, AttackRow
from raybust.numerics.balls.threat import show_eps
from raybust.numerics.bounds import clopper_pearson_lower, clopper_pearson_upper


@dataclass(frozen=True)
class Point:
    """Accuracy at one radius.

    Attributes:
        eps: the radius.
        robust: share of examples that withstood all attacks.
        low: lower end of its 95% Clopper-Pearson interval.
        high: upper end of the interval.
        own: accuracy under each attack that ran on every example, by name.
        after: accuracy after each attack and all before it, by name, in order; `further` for the
            further rounds, if any.
        upper_bound: whether further rounds were needed or gradients are flat, so more attacks may
            lower the number.
    """

    eps: float
    robust: float
    low: float
    high: float
    own: dict[str, float]
    after: dict[str, float]
    upper_bound: bool = False


@dataclass(frozen=True)
class Summary:
    """Clean and robust accuracy of a network.

    Attributes:
        protocol: the protocol of the attacks.
        clean: share of clean examples classified correctly.
        points: ascending in eps; that of the sanity check, if any, last.
        flags: reasons to distrust the numbers.
    """

    protocol: AttackProtocol
    clean: float
    points: tuple[Point, ...]
    flags: tuple[Flag, ...]

    def metrics(self) -> dict[str, float]:
        """Returns the metrics `attacked/*`, or `attacked/alone/*` and `attacked/oblivious/*` for
        those views; `robust_accuracy` is that of the largest eps, `eot` the number of passes that
        the classifier averages. The sanity check of the attacks is under `sanity/`."""
        view = self.protocol.view
        head = "attacked" if view == HEADLINE else f"attacked/{view}"
        found = {
            f"{head}/clean_accuracy": self.clean,
            f"{head}/flags": float(len(self.flags)),
            f"{head}/eot": float(self.protocol.eot),
        }
        for point in self.points:
            checks = "sanity/" if point.eps == self.protocol.reach else ""
            key = f"{head}/{checks}{self.protocol.norm}_{point.eps:.6g}"
            found[f"{key}/robust_accuracy"] = point.robust
            found[f"{key}/upper_bound"] = float(point.upper_bound)
            found |= {f"{key}/{name}": value for name, value in point.own.items()}
            found |= {f"{key}/after_{name}": value for name, value in point.after.items()}
            if point.eps == self.protocol.eps[-1]:
                found[f"{head}/robust_accuracy"] = point.robust
        return found

    def text(self) -> str:
        """Returns a readable table with the flags below it."""
        heads = [f"eps {show_eps(point.eps)}" for point in self.points]
        if self.protocol.reach:
            heads[-1] += " (whole box)"
        lines = [f"| attack | {' | '.join(heads)} |"]
        lines.append("|---|" + "---:|" * len(self.points))

        def line(name: str, cells: list[str]) -> None:
            lines.append(f"| {name} | " + " | ".join(cells) + " |")

        line("clean", [f"{100 * self.clean:.2f}"] * len(self.points))
        further = any(FURTHER in point.after for point in self.points)
        for name in (*self.protocol.attacks, *[FURTHER] * further):
            whole = name in self.points[0].own
            values = [(p.own if whole else p.after).get(name) for p in self.points]
            line(name if whole else f"... and {name}", [_percent(value) for value in values])
        line("**robust**", [f"**{show_robust(point)}**" for point in self.points])
        line("95 %", [f"{100 * p.low:.1f} to {100 * p.high:.1f}" for p in self.points])
        protocol = self.protocol
        lines.append("")
        lines.append(
            f"{protocol.examples} {protocol.split} examples of {protocol.dataset}, "
            f"{protocol.norm}; lines with ... attack only what withstood the lines before."
        )
        if protocol.eot > 1:
            lines.append(
                f"Every figure is of the classifier that averages {protocol.eot} passes of the "
                "network, not of one pass."
            )
        lines += [f"DISTRUST ({flag.name}): {flag.text}" for flag in self.flags]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """Returns everything as plain data, for JSON."""
        return {
            "protocol": vars(self.protocol),
            "clean": self.clean,
            "points": [vars(point) for point in self.points],
            "flags": [vars(flag) for flag in self.flags],
        }


def summarize(
    rows: Sequence[AttackRow], protocol: AttackProtocol, flags: Sequence[Flag] = ()
) -> Summary:
    """Summarizes a complete table.

    Args:
        rows: one per example and radius.
        protocol: the table's.
        flags: flags of the network; those of the rows are added.
    """
    points, blind = [], flat_share(rows, protocol) > FLAT
    for threat in protocol.threats:
        mine = [row for row in rows if row.eps == threat.eps]
        names = ("pgd",) if threat.eps == protocol.reach else protocol.attacks
        count, robust = len(mine), sum(row.robust for row in mine)
        low = float(clopper_pearson_lower(robust, count, 0.025))
        high = float(clopper_pearson_upper(robust, count, 0.025))
        own, after = {}, {}
        standing = [row for row in mine if row.predict == row.label]
        ran = {name for row in mine for name, _ in row.attacks}
        for name in (*names, *({FURTHER} & ran)):
            if standing and name not in ran:
                continue  # it needs a gradient, but there is none
            standing = [row for row in standing if not _gone(row, name)]
            after[name] = len(standing) / count
            if (name in ALWAYS or protocol.every) and threat.eps != protocol.reach:
                own[name] = _share(not row.broke(name) for row in mine)
        own.pop(FURTHER, None)
        bound = blind or FURTHER in ran
        points.append(Point(threat.eps, robust / count, low, high, own, after, bound))
    clean = _share(row.predict == row.label for row in rows if row.eps == protocol.eps[0])
    found = (*flags, *flags_of_rows(rows, protocol))
    return Summary(protocol, clean, tuple(points), found)


def side_by_side(summaries: Sequence[Summary]) -> str:
    """Returns a table of the views of a network, one row each: clean accuracy, and robust accuracy
    with its interval at every radius."""
    radii = summaries[0].protocol.eps
    lines = [
        f"| protocol | clean | {' | '.join(f'eps {show_eps(eps)}' for eps in radii)} |",
        "|---|" + "---:|" * (1 + len(radii)),
    ]
    for one in summaries:
        cells = [
            f"{show_robust(point)} ({100 * point.low:.1f} to {100 * point.high:.1f})"
            for point in one.points[: len(radii)]
        ]
        name = _VIEWS[one.protocol.view]
        lines.append(f"| {name} | {100 * one.clean:.2f} | {' | '.join(cells)} |")
    fronts = {one.protocol.front for one in summaries if one.protocol.front}
    return "\n".join([*lines, "", f"In front of the network: {', '.join(sorted(fronts))}"])


def curve_points(summary: Summary) -> list[tuple[float, float, float, float]]:
    """Returns (eps, accuracy, low, high) from eps 0 up, without the sanity check."""
    count = summary.protocol.examples
    right = round(summary.clean * count)
    low, high = clopper_pearson_lower(right, count, 0.025), clopper_pearson_upper(
        right, count, 0.025
    )  # fmt: skip
    return [(0.0, summary.clean, float(low), float(high))] + [
        (point.eps, point.robust, point.low, point.high)
        for point in summary.points
        if point.eps != summary.protocol.reach
    ]


def robustbench_record(
    summary: Summary, eps: float, *, name: str, architecture: str
) -> dict[str, Any]:
    """Returns RobustBench's twelve fields at one radius.

    `reported` is raybust's own figure; `autoattack_acc` is null unless pyautoattack's standard
    suite ran on the same examples. Unknown fields are "" or null.

    Args:
        summary: the summary.
        eps: one of its radii.
        name: name of the model.
        architecture: architecture of the network.
    """
    point = next(point for point in summary.points if point.eps == eps)
    reference = point.own.get("autoattack")
    return {
        "link": "",
        "name": name,
        "authors": "",
        "additional_data": None,
        "number_forward_passes": summary.protocol.eot,
        "dataset": summary.protocol.dataset,
        "venue": "Unpublished",
        "architecture": architecture,
        "eps": show_eps(eps),
        "clean_acc": _percent(summary.clean),
        "reported": _percent(point.robust),
        "autoattack_acc": None if reference is None else _percent(reference),
    }


def show_robust(point: Point) -> str:
    """Returns robust accuracy in percent, marked if it is an upper bound."""
    return f"{'at most ' * point.upper_bound}{_percent(point.robust)}"


_VIEWS = {
    "alone": "alone: the network without its front, attacked and scored",
    "oblivious": "oblivious: attacks on the network alone, scored through the front (as published)",
    "adaptive": "**adaptive: attacks through the front, the headline**",
}


def _gone(row: AttackRow, name: str) -> bool:
    """Returns whether an example that withstood the attacks before falls to this one, at this or a
    smaller radius."""
    return row.broken_by == name or row.broke(name) is True


def _share(hits: Any) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else 0.0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
