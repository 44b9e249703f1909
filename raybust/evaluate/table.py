"""The table of an evaluation under attack: a row for each example and radius, in a file that grows
shard by shard and survives a kill at any byte.

A first line `# {protocol}`, then tab-separated columns, as in a certification log. Stage `evaluate`
of the arrow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raybust.errors import RequestError
from raybust.evaluate.protocol import AttackProtocol

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
        step: steps or queries of the run that did it; -1 where none did.
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
    def robust(self) -> bool:
        """Whether the network is right on the image and withstood every attack."""
        return self.broken_by == NOTHING

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


class AttackTable:
    """A table on disk: opened or begun, appended to, finished.

    Attributes:
        path: the file. While it grows, rows are in the order in which they came.
    """

    def __init__(self, path: str | Path, protocol: AttackProtocol) -> None:
        """Opens the table of a protocol, or begins it; a torn last line is dropped.

        Args:
            path: the file; its folder is made.
            protocol: what the header must say.

        Raises:
            RequestError: the file is of another protocol, or no table. It is left as it is.
        """
        self.path, self.protocol = Path(path), protocol
        self._rows: dict[tuple[int, float], AttackRow] = {}
        self._head = f"# {protocol.to_json()}\n" + "\t".join(COLUMNS) + "\n"
        content = self.path.read_bytes() if self.path.exists() else b""
        if self._head.encode().startswith(content):  # nothing yet, or killed in the header
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, self._head)
            return
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode(errors="replace").splitlines()
        self._check_header(lines[0] if lines else "")
        for number, line in enumerate(lines[2:], start=3):
            try:
                row = AttackRow.parse(line)
            except (ValueError, TypeError) as error:
                raise RequestError(
                    f"{self.path}: line {number} is no row of an evaluation ({error}); move the "
                    "file away to begin anew"
                ) from None
            self._rows.setdefault((row.idx, row.eps), row)
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    @property
    def rows(self) -> list[AttackRow]:
        """The rows that are done, by index and radius."""
        return [row for _, row in sorted(self._rows.items())]

    def has(self, indices: Iterable[int]) -> bool:
        """Whether every row of these examples is there."""
        radii = [threat.eps for threat in self.protocol.threats]
        return all((idx, eps) in self._rows for idx in indices for eps in radii)

    def append(self, rows: Iterable[AttackRow]) -> None:
        """Writes rows through to the disk; those that are there already are left out."""
        new = [row for row in rows if (row.idx, row.eps) not in self._rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(row.line() for row in new))
            file.flush()
            os.fsync(file.fileno())
        self._rows |= {(row.idx, row.eps): row for row in new}

    def finish(self) -> list[AttackRow]:
        """Puts the file, sorted, in its place at once; returns its rows."""
        _replace(self.path, self._head + "".join(row.line() for row in self.rows))
        return self.rows

    def _check_header(self, line: str) -> None:
        try:
            differ = self.protocol.differences(line.removeprefix("# "))
        except ValueError:
            raise RequestError(
                f"{self.path}: exists and is no table of raybust's; move it away"
            ) from None
        if differ:
            raise RequestError(
                f"{self.path}: is a table of another protocol ({'; '.join(differ)}); "
                "--no-resume keeps it aside and begins anew"
            )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
