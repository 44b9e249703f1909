"""The forms in which training codes write a network's weights, and which of them a file has.

A state dict lies bare or in a dictionary, its keys behind any prefix (`module.`, `_orig_mod.`,
`model.`, `1.`), the statistics of a normalizing first layer beside it. A form fits only if every
weight of the network is there; nothing is read in parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybust.errors import RequestError

_DEEPEST = 4
_LATER = ("ema", "average", "avg", "swa", "teacher")
"""If several state dicts fit, those whose names contain one of these words come last."""
_MEAN, _STD = ("mean", "mu", "means"), ("std", "stds", "sds", "sigma")
_VARIANCE = ("var", "variance")
_LAYERS = (
    "", "0", "normalize", "normalizer", "normalization", "norm", "preprocess", "preprocessing",
    "preprocessor", "transform", "transforms", "module",
)  # fmt: skip
"""Names under which a normalizing first layer stands beside a network."""
_CHANNELS = 16
_COUNTER = ".num_batches_tracked"
_SHOWN = 3


@dataclass(frozen=True)
class Form:
    """A state dict found in a file.

    Attributes:
        place: the keys that lead to it, "" for the file's own.
        prefix: what stands before every key.
        weights: by the network's own keys.
        mean: of a normalizing first layer beside it, (C,); None where there is none.
        std: the same.
        unused: names of tensors beside it that may belong to a normalization in an unrecognized
            form.
    """

    place: str
    prefix: str
    weights: dict[str, Tensor]
    mean: Tensor | None = None
    std: Tensor | None = None
    unused: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether its name says that it is an average of other weights."""
        return any(word in f"{self.place}.{self.prefix}".lower() for word in _LATER)

    def __str__(self) -> str:
        place = f"'{self.place}'" if self.place else "the whole file"
        return place + (f", prefix '{self.prefix}'" if self.prefix else "")


def find_form(content: Any, expected: Mapping[str, Tensor]) -> tuple[Form | None, list[str]]:
    """Returns the form in which a file has exactly the weights of a network, and the names of other
    state dicts that fit too; None where none does.

    If several fit, the first whose name does not indicate an average (`ema`, `swa`) is used.

    Args:
        content: what the file holds: nested dictionaries of tensors and other things.
        expected: the network's state dict.

    Raises:
        RequestError: the weights of two such networks are there, neither of them an average.
    """
    found = [
        form for place, weights in state_dicts(content) for form in _forms(place, weights, expected)
    ]
    whole = [form for form in found if not mismatches(expected, form.weights)]
    found = whole or found[:1]
    first = [form for form in found if not form.averaged] or found
    if any(not _equal(first[0].weights, form.weights) for form in first[1:]):
        raise RequestError(
            f"the weights of two such networks are in it: {' and '.join(map(str, first))}; store"
            " one of them alone"
        )
    if not first:
        return None, []
    others = [str(form) for form in found if form is not first[0]]
    return _with_normalization(first[0], content), others


def _with_normalization(form: Form, content: Any) -> Form:
    """Returns a form with the normalization that the file has outside of its state dict, as
    training codes store it: `mean` and `std`, or a dictionary with these."""
    if form.mean is not None:
        return form
    start = f"{form.place}." if form.place else ""
    own = {f"{start}{form.prefix}{key}" for key in form.weights}
    beside = {key: value for key, value in _numbers(content).items() if key not in own}
    mean, std, rest = _normalization(beside)
    if mean is not None:
        return dataclasses.replace(form, mean=mean, std=std)
    return dataclasses.replace(form, unused=tuple(dict.fromkeys((*form.unused, *_suspects(rest)))))


def _numbers(content: Any) -> dict[str, Tensor]:
    """Returns the tensors, and lists of numbers as tensors, of a file's dictionary, and of those in
    it that stand for a normalizing layer."""
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and key.lower() in _LAYERS:
            found |= {f"{key}.{name}": inner for name, inner in _numbers(value).items()}
        elif isinstance(key, str) and isinstance(value, Tensor):
            found[key] = value
        elif isinstance(key, str) and _is_numbers(value):
            found[key] = torch.tensor(value, dtype=torch.float32)
        elif isinstance(value, float) and str(key).lower() in (*_MEAN, *_STD[:-1]):
            found[str(key)] = torch.tensor([value])  # a single sigma may also be the noise
    return found


def _is_numbers(value: Any) -> bool:
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(isinstance(number, (int, float)) for number in value)


def _suspects(weights: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of small tensors that may be of a normalization: `mean`, `std`, `var`."""
    return [
        key
        for key, value in weights.items()
        if key.rpartition(".")[2].lower().lstrip("_") in (*_MEAN, *_STD, *_VARIANCE)
        and value.numel() <= _CHANNELS
    ]


def state_dicts(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields every dictionary in a file that holds tensors under texts, with the keys that lead to
    it; other things in it are left aside."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = {key: value for key, value in content.items()
               if isinstance(key, str) and isinstance(value, Tensor)}  # fmt: skip
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str):
            yield from state_dicts(value, f"{place}.{key}" if place else key, depth + 1)


def _forms(
    place: str, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> Iterator[Form]:
    """Yields the form for each prefix with which the weights are all there and nothing else is."""
    needed = [key for key in expected if not key.endswith(_COUNTER)]
    if not needed:
        return
    longest = max(needed, key=len)
    prefixes = sorted({
        key.removesuffix(longest) for key in weights
        if key == longest or key.endswith(f".{longest}")
    }, key=len)  # fmt: skip
    for prefix in prefixes:
        inside = {key.removeprefix(prefix): value for key, value in weights.items()
                  if key.startswith(prefix)}  # fmt: skip
        if any(key not in inside for key in needed):
            continue
        outside = {key: value for key, value in weights.items() if not key.startswith(prefix)}
        strange = {key: inside.pop(key) for key in list(inside) if key not in expected}
        mean, std, rest = _normalization({**outside, **strange})
        if not prefix:
            rest = _without_copies(rest, needed)
        if any(key in strange for key in rest) or (rest and not prefix):
            continue
        if rest and not _another_network(rest, prefix):
            continue
        unused = [] if mean is not None else _suspects(rest)
        yield Form(place, prefix, inside, mean, std, tuple(unused))


def _another_network(rest: Mapping[str, Tensor], prefix: str) -> bool:
    """Returns whether keys beside a prefix are behind prefixes of their own: another network."""
    first = prefix.partition(".")[0]
    return first.isidentifier() and all(key.partition(".")[0] != first for key in rest)


def _without_copies(rest: Mapping[str, Tensor], needed: Sequence[str]) -> dict[str, Tensor]:
    """Returns the keys beside bare weights that belong to no whole copy of the network, such as an
    average of the weights behind a prefix of its own."""
    copies = {
        prefix
        for key in rest
        if key.endswith(f".{needed[0]}")
        and all(f"{(prefix := key.removesuffix(needed[0]))}{name}" in rest for name in needed)
    }
    return {key: v for key, v in rest.items() if not any(map(key.startswith, copies))}


def _normalization(
    weights: Mapping[str, Tensor],
) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor]]:
    """Returns mean and std of a normalizing layer among some weights, and the rest."""
    for key, mean in weights.items():
        parent, _, name = key.rpartition(".")
        kind = name.lower().lstrip("_")
        if kind not in _MEAN or parent.rpartition(".")[2].lower() not in _LAYERS:
            continue
        for other, std in sorted(weights.items(), key=lambda item: _order(item[0])):
            above, _, last = other.rpartition(".")
            beside = above == parent and last.lower().lstrip("_") in _STD
            sizes = {mean.numel(), std.numel()}
            if beside and len(sizes - {1}) <= 1 and max(sizes) <= _CHANNELS and min(sizes) > 0:
                rest = {k: v for k, v in weights.items() if k not in (key, other)}
                return _expanded(mean, max(sizes)), _expanded(std, max(sizes)), rest
    return None, None, dict(weights)


def _order(key: str) -> int:
    """Returns the place of a key among names of standard deviations: `std` before `sigma`, which
    may also be the noise of a training."""
    name = key.rpartition(".")[2].lower().lstrip("_")
    return _STD.index(name) if name in _STD else len(_STD)


def _expanded(part: Tensor, channels: int) -> Tensor:
    return part.detach().flatten().float().expand(channels).clone()


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items() if key in other)


def mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps weights from a strict load: missing, unexpected, of another shape."""
    missing = [key for key in expected if key not in weights and not key.endswith(_COUNTER)]
    unexpected = [key for key in weights if key not in expected]
    types = [
        f"{key} is {weights[key].dtype}".replace("torch.", "")
        for key, value in expected.items()
        if key in weights and value.is_floating_point() != weights[key].is_floating_point()
    ]
    shapes = [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    kinds = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("of another type", types),
    )
    return [
        f"{len(found)} {kind}: {', '.join(found[:_SHOWN])}{', ...' * (len(found) > _SHOWN)}"
        for kind, found in kinds
        if found
    ]


def other_types(weights: Mapping[str, Tensor]) -> str:
    """Returns the types of floats that are not float32, as a text; "" where there are none."""
    types = {value.dtype for value in weights.values() if value.is_floating_point()}
    return ", ".join(sorted(str(one).removeprefix("torch.") for one in types - {torch.float32}))
