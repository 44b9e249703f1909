"""Fields, their domains, and the validation of sections."""

import dataclasses
import math
from typing import Literal

import pytest

from raybust.config import Config, Section, domain, option
from raybust.config.options import out_of_domain
from raybust.errors import RequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Section):
    rate: float = option(0.5, "A rate.", gt=0, le=1, unit="1/s")
    counts: tuple[int, ...] = option((1, 2), "Counts.", ge=1, lt=10)
    kind: Literal["a", "b"] = option("a", "A kind.")
    maybe: float | None = option(None, "Perhaps.", ge=0)
    power: float = option(2.0, "A norm's exponent.", ge=1, le=math.inf)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate": 0}, "rate: got 0, expected > 0, <= 1"),
        ({"rate": 1.5}, "rate: got 1.5, expected > 0, <= 1"),
        ({"rate": math.nan}, "rate: got nan, expected a number"),
        ({"maybe": math.inf}, "maybe: got inf, expected a finite number"),
        ({"maybe": -math.inf}, "maybe: got -inf"),
        ({"counts": (1, 10)}, "counts: got 10, expected >= 1, < 10"),
        ({"kind": "c"}, "kind: got 'c', expected one of a, b"),
        ({"power": 0.5}, "power: got 0.5"),
        ({"power": math.nan}, "power: got nan"),
    ],
)
def test_refused(values, words):
    with pytest.raises(RequestError) as refused:
        Toy(**values)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    "values",
    [
        {"rate": 1, "counts": (1, 9), "kind": "b", "maybe": 0, "power": math.inf},
        {"counts": (), "maybe": None, "power": 1},
    ],
)
def test_kept_as_given_at_the_ends(values):
    toy = dataclasses.asdict(Toy(**values))
    assert {key: toy[key] for key in values} == values


def test_all_problems_at_once():
    with pytest.raises(RequestError) as refused:
        Toy(rate=2, kind="c", maybe=-1)
    assert [text.partition(":")[0] for text in refused.value.problems] == ["rate", "kind", "maybe"]


def test_domain_in_words():
    fields = {field.name: field.metadata for field in dataclasses.fields(Toy)}
    assert domain(fields["rate"]) == "> 0, <= 1"
    assert domain(fields["kind"]) == ""
    assert fields["rate"]["unit"] == "1/s"
    assert out_of_domain(True, fields["rate"]) is None
    assert out_of_domain("text", fields["rate"]) is None


def sections():
    yield Config
    for field in dataclasses.fields(Config):
        if callable(field.default_factory):
            yield field.default_factory


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_field_of_the_schema_is_documented(section):
    assert section.__doc__
    assert section.__dataclass_params__.frozen
    for field in dataclasses.fields(section):
        if field.name == "method" or callable(field.default_factory):
            continue
        assert field.kw_only
        assert field.metadata["doc"].endswith("."), field.name


@pytest.mark.parametrize("section", list(sections())[1:], ids=lambda section: section.__name__)
def test_every_bound_of_the_schema_holds(section):
    steps = {"gt": 0, "lt": 0, "ge": -1, "le": 1}
    for field in dataclasses.fields(section):
        for bound in steps.keys() & field.metadata.keys():
            value = field.metadata[bound] + steps[bound]
            value = (value,) if isinstance(field.default, tuple) else value
            with pytest.raises(RequestError, match=f"{field.name}: got"):
                section(**{field.name: value})
