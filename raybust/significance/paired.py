"""The result of a paired comparison, whatever the test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A difference between two networks, A minus B, on the same images.

    Attributes:
        a: value of A, the mean over its seeds.
        b: value of B.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p: two-sided p-value of no difference.
        p_within: p-value of a difference beyond the margin, by two one-sided tests: the larger one.
        margin: the margin, in the unit of the values.
        images: number of images.
        seeds: number of networks of A and of B.
        needed: images, or with several seeds seeds on each side, at which a difference as large as
            the observed one would be found with probability 0.8; None if there is none.
        test: the test that gave `p`.
        checks: other p-values of the same hypothesis, by name of the test.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    p_within: float
    margin: float
    images: int
    seeds: tuple[int, int] = (1, 1)
    needed: int | None
    test: str
    checks: dict[str, float]

    @property
    def difference(self) -> float:
        """A minus B."""
        return self.a - self.b
