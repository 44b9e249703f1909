"""`MethodConformance`: every check of a method, as a class for pytest.

The checks themselves are plain functions in `method_checks` (one step), `class_checks` (the class)
and `distributed` (two ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from raybust.methods import Method
from raybust.testing.class_checks import (
    BASES,
    check_class,
    check_delegation,
    check_space,
    variants,
    wraps,
)
from raybust.testing.distributed import (
    OnRanks,
    check_gradients_on_ranks,
    check_metrics_on_ranks,
    on_two_ranks,
)
from raybust.testing.method_checks import (
    STEP_CHECKS,
    check_network_untouched,
    check_randomness,
    check_step,
    lookup,
)


class MethodConformance:
    """All checks of a method, which a subclass names.

        class TestMine(MethodConformance):
            method = Mine

    Attributes:
        method: class of the method.
        settings: values of its fields for the tests, where the defaults do not do. Batches have
            eight images, two in each of four classes unless `balanced_classes` asks for others.
        converges: whether different seeds may give the same loss although the method draws random
            numbers, as for an attack that ends in the same corner of its ball from every start.
        space: YAML file of the method's search space, or None.
    """

    method: ClassVar[Any]
    settings: ClassVar[Mapping[str, Any]] = {}
    converges: ClassVar[bool] = False
    space: ClassVar[str | Path | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Creates a `test_variant` for each variant and a `test_composition` for each base."""
        if "variant" in metafunc.fixturenames:
            found = [
                pytest.param(one.method, id=f"{one.field}={one.value}")
                for one in variants(self.method, self.settings)
            ]
            metafunc.parametrize("variant", found or _none("no field is a choice or a flag"))
        if "base" in metafunc.fixturenames:
            bases = BASES if wraps(self.method) else ()
            found = [pytest.param(base, id=base.key) for base in bases]
            metafunc.parametrize("base", found or _none("the method wraps no other"))

    @pytest.fixture(scope="class")
    @classmethod
    def on_ranks(cls, tmp_path_factory: pytest.TempPathFactory) -> OnRanks:
        """The findings on two ranks."""
        (found,) = on_two_ranks([cls._made()], tmp_path_factory.mktemp("ranks"))
        return found

    @classmethod
    def _made(cls) -> Method:
        made: Method = cls.method(**cls.settings)
        return made

    def test_class(self) -> None:
        """See `check_class`."""
        check_class(self.method)

    @pytest.mark.parametrize("check", STEP_CHECKS, ids=lambda check: check.__name__)
    def test_step(self, check: Callable[..., None]) -> None:
        """See the check of the same name."""
        if check is check_randomness:
            check_randomness(self._made(), self.converges)
        else:
            check(self._made())

    def test_variant(self, variant: Method) -> None:
        """Other choices and flags follow the same rules."""
        check_randomness(variant, converges=True)
        check_network_untouched(variant)

    def test_composition(self, base: Method) -> None:
        """All checks of a step pass with another base, whose sigma is not lost."""
        method = self.method(base=base, **self.settings)
        check_step(method)
        assert method.noise() is not None or base.noise() is None, "the base's sigma is lost"

    def test_delegation(self) -> None:
        """See `check_delegation`."""
        if not wraps(self.method):
            pytest.skip("the method wraps no other")
        check_delegation(self.method, self.settings)

    def test_gradients_on_two_ranks(self, on_ranks: OnRanks) -> None:
        """See `check_gradients_on_ranks`."""
        check_gradients_on_ranks(on_ranks)

    def test_metrics_on_two_ranks(self, on_ranks: OnRanks) -> None:
        """See `check_metrics_on_ranks`."""
        check_metrics_on_ranks(on_ranks)

    def test_search_space(self) -> None:
        """See `check_space`."""
        if self.space is None:
            pytest.skip("no search space is named")
        check_space(self.space, self.method.key, lookup(self._made()))


def _none(why: str) -> list[Any]:
    """Returns a parameter set that skips the test with a reason."""
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=why))]
