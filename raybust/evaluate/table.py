"""The table of an evaluation under attack: a row for each example and radius.

Says by which attack, after how many steps, at what distance. Its file is as a certification log's.
Stage `evaluate` of the arrow.
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
"""What rows call the further rounds of attacks; their step is the number of the round."""
BEYOND = 1e-6
"""By how much an adversarial image may leave ball or box: rounding in float32."""


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """What attacks did to one example at one radius.

    Attributes:
        idx: index of the example in its dataset.
        eps: the radius.
        label: its label.
        predict: the class that the network gives the image as it is.
        broken_by: the first attack that fooled the network, at this radius or a smaller one;
            "clean" where the network errs on the image itself, "-" where it withstood all.
        step: steps or queries of the run that did it, 0 where that fooled only what it did not
            see (view `oblivious`); -1 where none did.
        distance: norm of that perturbation; 0 where there is none.
        becomes: the class that the network gives the perturbed image; `predict` where none is.
        flat: whether the gradient of the cross entropy at the image is exactly 0.
        attacks: each attack that met the example at this radius, with its step, or -1.
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
        """Index and radius, which tell rows apart."""
        return self.idx, self.eps

    @property
    def robust(self) -> bool:
        """Whether the network is right on the image and withstood every attack."""
        return self.broken_by == NOTHING

    def same(self, other: AttackRow) -> bool:
        """Returns whether two rows are equal."""
        return self == other

    def fault(self, protocol: AttackProtocol) -> str | None:
        """Returns in what the row contradicts itself or its protocol, or None."""
        if self.eps not in [threat.eps for threat in protocol.threats]:
            return f"eps: got {self.eps!r}, which the protocol does not have"
        if (self.broken_by == CLEAN) != (self.predict != self.label):
            return f"broken_by: got {self.broken_by}, but {self.predict} of {self.label} is right"
        if self.broken_by in (CLEAN, NOTHING):
            if any(step >= 0 for _, step in self.attacks) or self.distance or self.step >= 0:
                return f"broken_by: got {self.broken_by}, but an attack fooled the network"
            return None
        if self.becomes == self.label or self.step < 0:
            return f"broken_by: got {self.broken_by}, but the image becomes {self.becomes}"
        if not 0 <= self.distance <= self.eps + BEYOND:
            return f"distance: got {self.distance!r}, expected at most {self.eps!r}"
        return None

    def broke(self, attack: str) -> bool | None:
        """Returns whether an attack fooled the network at this radius; None where it did not run
        because something else had before. Errors on clean images count as broken."""
        if self.broken_by == CLEAN:
            return True
        steps = dict(self.attacks)
        return steps[attack] >= 0 if attack in steps else None

    def line(self) -> str:
        """Returns the row as a line of a table, with its line end."""
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
        """Returns the row of a line of a table of ours.

        Raises:
            ValueError: the line is no whole row.
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
            raise ValueError("`robust` does not agree with `broken_by`")
        return row


class AttackTable(RowLog[AttackRow, AttackProtocol]):
    """The rows of a protocol on disk, keyed by the example's index and the radius."""

    row, columns, what = AttackRow, COLUMNS, "table"

    def has(self, indices: Iterable[int]) -> bool:
        """Whether every row of these examples is there."""
        radii = [threat.eps for threat in self.protocol.threats]
        return all((idx, eps) in self.places for idx in indices for eps in radii)
