"""Exports a network for complete verifiers: ONNX, and VNN-LIB files of the images that the bounds
leave open.

An image is open at a radius if the network is right on it and `certify` with bounds does not prove
the radius. A file states the ball and that another logit is at least the label's: unsatisfiable
means robust. `instances.csv` lists the files as the VNN-COMP does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from raybust.config.assess import Certify
from raybust.disk.files import replace_text
from raybust.errors import RequestError
from raybust.numerics.balls.threat import show_eps
from raybust.stages import certified
from raybust.stages.exported import INSTANCES, Export, export
from raybust.stages.measurement import Options
from raybust.trained import Trained

FOLDER = "vnnlib"
SECONDS = 300
"""Time for each instance that `instances.csv` asks for (our choice)."""


def export_for_verifier(
    trained: Trained, folder: Path, license_name: str | None, options: Options
) -> Export:
    """Certifies a network by bounds, or reads its certificates, and writes what they leave open.

    Args:
        trained: the network with its data; `certify.radius`, or `certify.radii` with
            `certify.intent=radii`, are the radii.
        folder: is created; an earlier export is replaced.
        license_name: of the weights, for the card.
        options: how the certification runs.

    Raises:
        RequestError: no radius is asked for, the network has a step without bounds or cannot be
            traced, or the folder has files of these names that no export wrote.
        WorkError: the written network computes something else.
    """
    section = _section(trained.config.certify)
    config = dataclasses.replace(trained.config, certify=section)
    found = certified.certify(dataclasses.replace(trained, config=config), options)
    made = export(trained, "verifier", folder, license_name)
    (folder / FOLDER).mkdir(exist_ok=True)
    for path in (folder / FOLDER).glob("*.vnnlib"):
        path.unlink()
    part = getattr(trained.dataset, section.split)
    classes, lines, notes = len(trained.dataset.classes), [], []
    positions = {int(idx): position for position, idx in enumerate(part.indices.tolist())}
    for eps in sorted(section.targets()):
        left = [row for row in found.rows if row.correct and row.radius < eps]
        for row in left:
            (image,), _ = part.fetch([positions[row.idx]])
            name = f"{FOLDER}/{section.split}_{row.idx}_{eps:g}.vnnlib"
            head = f"{trained.name}, example {row.idx}, label {row.label}, Linf {eps!r}"
            replace_text(folder / name, "".join(_vnnlib(image, row.label, classes, eps, head)))
            lines.append(f"model.onnx,{name},{SECONDS}\n")
        right = sum(row.correct for row in found.rows)
        notes.append(
            f"Linf {show_eps(eps)}: of {right} right answers on {len(found.rows)} {section.split}"
            f" examples, {right - len(left)} are proven and {len(left)} open"
        )
    replace_text(folder / INSTANCES, "".join(lines))
    return Export((*made.files, folder / INSTANCES), made.difference, tuple(notes))


def _section(section: Certify) -> Certify:
    """Returns the section with bounds and its radii.

    Raises:
        RequestError: there is no radius above 0.
    """
    if section.bound == "smoothing":
        section = dataclasses.replace(section, bound="best", schedule="auto")
    if not section.targets() or min(section.targets()) <= 0:
        asked = ", ".join(f"{radius:g}" for radius in section.targets()) or "none"
        raise RequestError(
            f"certify.radius: got {asked}, but --verifier needs the radius of the ball, above 0;"
            " set certify.radius=8/255, for instance"
        )
    return section


def _vnnlib(image: Tensor, label: int, classes: int, eps: float, head: str) -> Iterator[str]:
    """Yields the parts of a VNN-LIB file: the ball within [0, 1], and that the label loses.

    Args:
        image: float (C, H, W) in [0, 1].
        label: of the image.
        classes: number of logits.
        eps: radius in Linf.
        head: a comment.
    """
    pixels: Sequence[float] = image.double().flatten().tolist()
    yield f"; {head}\n"
    yield from (f"(declare-const X_{i} Real)\n" for i in range(len(pixels)))
    yield from (f"(declare-const Y_{j} Real)\n" for j in range(classes))
    for i, pixel in enumerate(pixels):
        yield f"(assert (>= X_{i} {_decimal(max(0.0, pixel - eps))}))\n"
        yield f"(assert (<= X_{i} {_decimal(min(1.0, pixel + eps))}))\n"
    others = (j for j in range(classes) if j != label)
    yield "(assert (or\n"
    yield from (f"    (and (>= Y_{j} Y_{label}))\n" for j in others)
    yield "))\n"


def _decimal(value: float) -> str:
    """Returns a number in [0, 1] without an exponent, which VNN-LIB lacks, to 20 digits."""
    return f"{value:.20f}".rstrip("0") + "0" * (value == int(value))
