"""The table of an evaluation under attack: a row per example and radius.

Rows state which attack broke the example, after how many steps, at what distance. The file format
is that of certification logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raybust.disk.rowlog import RowLog
from raybust.evaluate.attack_protocol import AttackProtocol

COLUMNS = (
    "idx",
    "eps",
    "label",
    "predict",
    "robust",
    "broken_by",
    "step",
    "distance",
    "becomes",
    "flat",
    "attacks",
)
CLEAN, NOTHING = "clean", "-"
FURTHER = "further"
"""Name of the further rounds in rows; their step is the number of the round."""
BEYOND = 1e-6
"""Tolerance for adversarial images outside ball or box: rounding in float32."""


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """The effect of attacks on one example at one radius.

    Attributes:
        idx: index of the example in its dataset.
        eps: the radius.
        label: its label.
        predict: predicted class of the clean image.
        broken_by: the first attack that fooled the network, at this or a smaller radius; "clean" if
            the clean image is misclassified, "-" if the network withstood all.
        step: steps or queries of the successful run, 0 if it fooled only the part it did not see
            (view `oblivious`); -1 if none succeeded.
        distance: norm of the perturbation; 0 if there is none.
        becomes: predicted class of the perturbed image; `predict` if there is none.
        flat: whether the gradient of the cross entropy at the image is 0, or NaN in some pixel.
        attacks: each attack that ran on the example at this radius, with its step, or -1.
    """

    idx: int
    eps: float
    label: int
    predict: int
    broken_by: str = NOTHING
    step: int = -1
    distance: float = 0.0
    becomes: int
    flat: bool = False
    attacks: tuple[tuple[str, int], ...] = ()

    @property
    def place(self) -> tuple[int, float]:
        """Index and radius, the key of the row."""
        return self.idx, self.eps

    @property
    def robust(self) -> bool:
        """Whether the network classifies the image correctly and withstood every attack."""
        return self.broken_by == NOTHING

    def same(self, other: AttackRow) -> bool:
        """Returns whether two rows are equal."""
        return self == other

    def fault(self, protocol: AttackProtocol) -> str | None:
        """Returns how the row contradicts itself or its protocol, or None."""
        if self.eps not in [threat.eps for threat in protocol.threats]:
            return f"eps: got {self.eps!r}, which is not in the protocol"
        steps, names = dict(self.attacks), {*protocol.attacks, FURTHER, "pgd"}
        if strange := {self.broken_by, *steps} - {CLEAN, NOTHING, *names}:
            return f"attacks: got {strange.pop()}, which is not in the protocol"
        if self.eps == min(protocol.eps) and steps.get(self.broken_by, self.step) != self.step:
            return f"step: got {self.step}, but {self.broken_by} has {steps[self.broken_by]}"
        if (self.broken_by == CLEAN) != (self.predict != self.label):
            return f"broken_by: got {self.broken_by}, but {self.label} is predicted {self.predict}"
        if self.broken_by in (CLEAN, NOTHING):
            if any(step >= 0 for _, step in self.attacks) or self.distance or self.step >= 0:
                return f"broken_by: got {self.broken_by}, but an attack fooled the network"
            return None
        if self.becomes == self.label or self.step < 0:
            return f"broken_by: got {self.broken_by} at step {self.step}, becoming {self.becomes}"
        if not 0 <= self.distance <= self.eps + BEYOND:
            return f"distance: got {self.distance!r}, expected at most {self.eps!r}"
        return None

    def broke(self, attack: str) -> bool | None:
        """Returns whether an attack fooled the network at this radius, None if it did not run
        because another one had before. Misclassified clean images count as broken."""
        if self.broken_by == CLEAN:
            return True
        steps = dict(self.attacks)
        return steps[attack] >= 0 if attack in steps else None

    def line(self) -> str:
        """Returns the row as a line of a table, with its newline."""
        cells = (
            self.idx,
            repr(self.eps),
            self.label,
            self.predict,
            int(self.robust),
            self.broken_by,
            self.step,
            repr(self.distance),
            self.becomes,
            int(self.flat),
            " ".join(f"{name}:{step}" for name, step in self.attacks) or NOTHING,
        )
        return "\t".join(map(str, cells)) + "\n"

    @classmethod
    def parse(cls, line: str) -> AttackRow:
        """Parses a line of one of our tables.

        Raises:
            ValueError: the line is not a complete row.
        """
        cells = dict(zip(COLUMNS, line.rstrip("\n").split("\t"), strict=True))
        pairs = [] if cells["attacks"] == NOTHING else cells["attacks"].split(" ")
        row = cls(
            idx=int(cells["idx"]),
            eps=float(cells["eps"]),
            label=int(cells["label"]),
            predict=int(cells["predict"]),
            broken_by=cells["broken_by"],
            step=int(cells["step"]),
            distance=float(cells["distance"]),
            becomes=int(cells["becomes"]),
            flat=bool(int(cells["flat"])),
            attacks=tuple((name, int(step)) for name, _, step in (p.partition(":") for p in pairs)),
        )
        if row.robust != bool(int(cells["robust"])):
            raise ValueError("`robust` contradicts `broken_by`")
        return row


class AttackTable(RowLog[AttackRow, AttackProtocol]):
    """A protocol's rows on disk, keyed by example index and radius."""

    row, columns, what = AttackRow, COLUMNS, "table"

    def has(self, indices: Iterable[int]) -> bool:
        """Returns whether all rows of these examples are there."""
        radii = [threat.eps for threat in self.protocol.threats]
        return all((idx, eps) in self.places for idx in indices for eps in radii)
