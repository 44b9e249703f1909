"""The rulings of a gate: a table, JSON, and JUnit's XML for continuous integration.

A gate fails if one rule fails, and passes if all do. An undecided rule is a skipped test in JUnit's
terms; the exit code tells it from a passed one. Flags of the attacks stand with the rules on robust
accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from raybust.significance import Ruling

CODES = {"passed": 0, "failed": 1, "undecided": 3}


@dataclass(frozen=True)
class Ruled:
    """A rule with its ruling.

    Attributes:
        rule: in words.
        share: whether its values are shares, shown in percent.
        ruling: the decision.
        flags: names of the flags of the candidate's attacks, if the rule is on robust accuracy.
        reference_flags: the same for the reference, if the rule needs one.
    """

    rule: str
    share: bool
    ruling: Ruling
    flags: tuple[str, ...] = ()
    reference_flags: tuple[str, ...] = ()

    def needs_more(self, level: float) -> bool:
        """Returns whether more images may decide the rule: a rule that only flags keep from passing
        is not proven by more of them."""
        return self.ruling.state == "undecided" and self.ruling.p_passes > level

    def notes(self) -> list[str]:
        """Returns what the flags mean for the rule, one phrase each."""
        found = []
        if self.flags:
            found.append(
                f"robust accuracy is an upper bound ({', '.join(self.flags)}): the rule can fail"
                " but not pass"
            )
        if self.reference_flags:
            found.append(
                "the reference's robust accuracy is an upper bound"
                f" ({', '.join(self.reference_flags)}): its true value may be lower"
            )
        return found

    def show(self, value: float | None) -> str:
        """Returns a value as text."""
        if value is None:
            return ""
        return f"{100 * value:.1f}" if self.share else f"{value:.4f}"

    def text(self) -> str:
        """Returns the values and p-values in words."""
        found = self.ruling
        against = f" against {self.show(found.reference)}" if found.reference is not None else ""
        values = (
            f"{self.show(found.value)}{against}; p for passing {found.p_passes:.3g}, for failing"
            f" {found.p_fails:.3g}"
        )
        return "; ".join([values, *self.notes()])


@dataclass(frozen=True)
class Rulings:
    """All rulings of a gate.

    Attributes:
        ruled: one for each rule.
        names: candidate, and the reference if there is one.
        images: number of images at the last look.
        level: probability of each error in a look.
        split: part of the data that the images are of.
        doubts: the flags of the attacks, one line each.
    """

    ruled: tuple[Ruled, ...]
    names: tuple[str, ...]
    images: int
    level: float
    split: str
    doubts: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """`failed` if a rule failed, else `undecided` if one is, else `passed`."""
        states = {one.ruling.state for one in self.ruled}
        return next(state for state in ("failed", "undecided", "passed") if state in states)

    @property
    def code(self) -> int:
        """The exit code."""
        return CODES[self.state]

    def text(self) -> str:
        """Returns the output of the command line."""
        against = f" against {self.names[1]}" if len(self.names) > 1 else ""
        where = f"{self.images:,} images of the {self.split} set"
        lines = [f"{self.names[0]}{against}: {self.state} on {where}", ""]
        lines += [*self._table(), ""]
        lines += [f"{one.rule}: {note}" for one in self.ruled for note in one.notes()]
        return "\n".join([
            *lines, *self.doubts, f"a rule is decided where its p is at most {self.level:.3g}"
        ])  # fmt: skip

    def _table(self) -> Iterator[str]:
        yield "| rule | candidate | reference | p for passing | p for failing | |"
        yield "|---|---:|---:|---:|---:|---|"
        for one in self.ruled:
            found = one.ruling
            yield (
                f"| {one.rule} | {one.show(found.value)} | {one.show(found.reference)} |"
                f" {found.p_passes:.3g} | {found.p_fails:.3g} | {found.state} |"
            )

    def plain(self) -> dict[str, Any]:
        """Returns the output for --json."""
        return {
            "state": self.state,
            "candidate": self.names[0],
            "reference": self.names[1] if len(self.names) > 1 else None,
            "images": self.images,
            "split": self.split,
            "level": self.level,
            "flags": list(self.doubts),
            "rules": [
                {
                    "rule": one.rule,
                    **vars(one.ruling),
                    "flags": list(one.flags),
                    "reference_flags": list(one.reference_flags),
                }
                for one in self.ruled
            ],
        }

    def write_junit(self, path: Path) -> None:
        """Writes JUnit's XML."""
        count = {state: sum(one.ruling.state == state for one in self.ruled) for state in CODES}
        suite = ElementTree.Element(
            "testsuite", name="raybust gate", tests=str(len(self.ruled)),
            failures=str(count["failed"]), skipped=str(count["undecided"]), errors="0",
        )  # fmt: skip
        for one in self.ruled:
            case = ElementTree.SubElement(suite, "testcase", classname=self.names[0], name=one.rule)
            if one.ruling.state == "failed":
                ElementTree.SubElement(case, "failure", message=one.text())
            elif one.ruling.state == "undecided":
                ElementTree.SubElement(case, "skipped", message=f"undecided: {one.text()}")
        if self.doubts:
            ElementTree.SubElement(suite, "system-out").text = "\n".join(self.doubts)
        ElementTree.indent(suite)
        path.write_bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
