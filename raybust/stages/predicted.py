"""Prediction with a certificate for each image: class, abstention, radius.

The images have no labels and are numbered by their order. Their noise is keyed by a seed that is
drawn for each set of images, so that nobody can choose an image for its noise; the seed stands in
the log, which resumes.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from raybust import data, devices
from raybust.certification import CertificateLog, Protocol
from raybust.certification.prediction import Prediction, classify
from raybust.config import Config, Leaf
from raybust.data import Part
from raybust.data.listing import shown
from raybust.disk.files import put_aside, strict
from raybust.errors import RequestError
from raybust.identity import Sent
from raybust.stages.bars import Echo, progress_bar
from raybust.stages.certified import complete, log_path, smoothing_of, warn_of_sigma
from raybust.stages.measurement import Bench, Options, bench, warn_of_instability
from raybust.trained import Trained

if TYPE_CHECKING:
    import pandas

FOLDER = "predicted"
_SEEDS = 2**62
_SHARD = 256
_SHOWN = 20
"""Rows that a notebook shows."""


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """Answers in the order of the images.

    Attributes:
        rows: the answers.
        about: how they were made, in one line.
        radius: the radius that was asked about, or None.
        log: the certificates as rows that can be recomputed, or None without noise.
        home: keeps a temporary folder with the log for as long as the object exists.
    """

    rows: tuple[Prediction, ...]
    about: str
    radius: float | None = None
    log: Path | None = None
    home: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def plain(self) -> list[dict[str, Any]]:
        """Returns the answers as dictionaries, with `safe` if a radius was asked about: whether no
        change within that radius changes the class."""
        return [strict(row.fields(self.radius)) for row in self.rows]

    def frame(self) -> pandas.DataFrame:
        """Returns the answers as a pandas table."""
        import pandas

        return pandas.DataFrame(self.plain())

    def csv(self) -> str:
        """Returns the answers as CSV with a header."""
        rows, text = self.plain(), io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def lines(self) -> str:
        """Returns the answers as JSON lines."""
        return "".join(json.dumps(row) + "\n" for row in self.plain())

    def table(self, count: int | None = None) -> str:
        """Returns the first `count` answers as an aligned table."""
        heads = [
            "image", "class", "radius", "bound", "draws", *["safe"] * (self.radius is not None)
        ]  # fmt: skip
        cells = [heads]
        for row in self.plain()[:count]:
            name = "(abstains)" if row["abstain"] else row["label"]
            radius = f"{math.floor(1e4 * row['radius']) / 1e4:.4f}" if row["draws"] else "-"
            bound = f"{math.floor(1e4 * row['bound']) / 1e4:.4f}"
            safe = ["yes" if row["safe"] else "not proven"] if "safe" in row else []
            cells.append([
                row["image"], name, radius, bound, f"{row['draws']:,}", *safe
            ])  # fmt: skip
        widths = [max(len(line[at]) for line in cells) for at in range(len(heads))]
        shown = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join(shown)

    def text(self) -> str:
        """Returns the output of the command line."""
        log = "" if self.log is None else f"\nrows  {self.log}"
        return f"{self.table()}\n\n{self.about}{log}"

    def _repr_html_(self) -> str:
        left = len(self.rows) - _SHOWN
        more = f"\n({left} more)" if left > 0 else ""
        return f"<pre>{html.escape(self.table(_SHOWN))}{more}\n\n{html.escape(self.about)}</pre>"


def with_radius(settings: Sequence[str], radius: float | None) -> tuple[str, ...]:
    """Returns the settings of a prediction: those that decide one radius as cheaply as possible, or
    for None those of full radii, whatever the run's own certificates were for.

    Args:
        settings: key=value of the call.
        radius: the only radius of interest, or None.
    """
    if radius is not None:
        return *settings, f"certify.radius={float(radius)!r}", "certify.schedule=sequence"
    return "certify.intent=acr", "certify.radius=null", "certify.schedule=auto", *settings


def seed_of(leaves: Sequence[Leaf]) -> int | None:
    """Returns the seed that a call asks for, or None."""
    return next((int(leaf.value) for leaf in leaves if leaf.key == "certify.seed"), None)


def predict(
    trained: Trained,
    images: Part,
    names: Sequence[str],
    options: Options,
    *,
    seed: int | None = None,
) -> Predictions:
    """Returns a certified answer for each image, or resumes from those that a log has.

    Args:
        trained: network and configuration; section `certify` says how, its `radius` whether an
            image is done once that radius is decided.
        images: shaped like the network's.
        names: of the images.
        options: how to run; `name` is that of the log.
        seed: of the noise; None draws one that nobody can guess.

    Raises:
        RequestError: images of another shape, or a network that cannot be certified.
        WorkError: a task failed every retry; finished rows are kept.
    """
    trained = _on(trained, images)
    _warn_of_dark(images, options.echo)
    with bench(trained, options) as at:
        protocol = smoothing_of(trained, at.device)
        warn_of_sigma(trained, protocol, options.echo)
        path = _log_of(trained, protocol, options.name)
        if not options.resume:
            put_aside(path)
        protocol = replace(protocol, seed=_seed(path) if seed is None else seed)
        log = CertificateLog(path, protocol)
        complete(at, log)
    classes, target = trained.dataset.classes, trained.config.certify.radius
    rows = tuple(
        Prediction.certified(name, row, classes, protocol.norm)
        for row, name in zip(log.rows, names, strict=True)
    )
    return Predictions(rows, _about(protocol), target, path)


def predict_plain(
    trained: Trained, images: Part, names: Sequence[str], options: Options
) -> Predictions:
    """Returns the network's class for each image, without noise and without a certificate.

    Args:
        trained: network and configuration.
        images: shaped like the network's.
        names: of the images.
        options: how to run.

    Raises:
        RequestError: images of another shape.
        WorkError: the outputs are NaN.
    """
    trained = _on(trained, images)
    _warn_of_dark(images, options.echo)
    warn_of_instability(trained.network, images, options.echo)
    found: dict[int, tuple[int, float]] = {}
    with bench(trained, options) as at:
        network = at.put()
        with progress_bar(len(images), "classified", options.echo) as bar:
            for part in at.pool.run(_classify, _calls(at, network, images)):
                found |= part
                bar.update(len(part))
    classes = trained.dataset.classes
    rows = tuple(
        Prediction.plain(name, top, share, classes)
        for name, (_, (top, share)) in zip(names, sorted(found.items()), strict=True)
    )
    return Predictions(rows, "without noise: no certificate")


def _on(trained: Trained, images: Part) -> Trained:
    """Returns a network with images in place of its data."""
    if images.shape != trained.dataset.shape:
        raise RequestError(
            f"images: got (C, H, W) = {images.shape}, expected {trained.dataset.shape}"
        )
    dataset = replace(
        trained.dataset, name=FOLDER, train=images, validation=images, test=images, notes=()
    )
    section = replace(trained.config.certify, split="test", examples=None, skip=1)
    config = replace(trained.config, certify=section)
    return replace(trained, dataset=dataset, config=config, uid=None)


def _warn_of_dark(images: Part, echo: Echo) -> None:
    """Warns about arrays whose pixels are far below the maximum of their type."""
    if isinstance(images, data.Split):
        for note in data.dark(images, "images"):
            echo(f"warning: {note}")


def _log_of(trained: Trained, protocol: Protocol, name: str | None) -> Path:
    """Returns the log of some images under a protocol."""
    how = log_path(trained.folder, protocol).stem.removeprefix(f"{protocol.split}_")
    stem = name or f"{how}_{protocol.data[:8]}"
    return trained.folder / FOLDER / f"{stem}.tsv"


def _seed(path: Path) -> int:
    """Returns the seed of an existing log, or one that nobody can guess."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.readline()
        try:
            return int(json.loads(head.removeprefix("# "))["seed"])
        except (ValueError, KeyError, TypeError):
            pass  # opening the log says what is wrong with it
    return secrets.randbelow(_SEEDS)


def _about(protocol: Protocol) -> str:
    """Returns how certificates were made, in one line."""
    wanted = ", ".join(f"{target:g}" for target in protocol.targets)
    early = f", only until {wanted} is decided: other radii may be larger" if wanted else ""
    return (
        f"radii in {protocol.norm}; {protocol.noise} noise, {protocol.amount},"
        f" {protocol.precision}, up to"
        f" {protocol.n:,} draws{early};"
        f" each answer is wrong with probability at most {protocol.alpha:g}"
    )


def _calls(at: Bench, network: Any, images: Part) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(images), _SHARD):
        positions = list(range(start, min(start + _SHARD, len(images))))
        yield network, positions, images.fetch(positions)[0], at.device, at.trained.config


def _classify(
    sent: Sent, positions: list[int], images: Tensor, device: str, config: Config
) -> dict[int, tuple[int, float]]:
    """The task: position to class and softmax."""
    devices.set_threads(config.cluster.cpus_per_worker)
    found = classify(sent.on(device), images.to(device))
    return dict(zip(positions, found, strict=True))


def read_images(trained: Trained, paths: Sequence[str], echo: Echo) -> tuple[Part, list[str]]:
    """Returns images that a command names, and their names.

    Args:
        trained: the network, whose images they become.
        paths: files and folders of images, or one npz with an array of images.
        echo: prints what was left out.

    Raises:
        RequestError: they are not images, or none are there.
    """
    if len(paths) == 1 and paths[0].endswith(".npz"):
        part = data.read_array(Path(paths[0]))
        return part, [str(number) for number in range(len(part))]
    if arrays := [path for path in paths if path.endswith(".npz")]:
        raise RequestError(
            f"{arrays[0]}: got an npz beside {len(paths) - 1} other paths, expected it alone;"
            " predict it with a command of its own"
        )
    how = data.decoding_of(trained.config.data)
    pictures, left = data.read_pictures(paths, trained.dataset.shape, how)
    for note in left:
        echo(note)
    here = f"{Path.cwd()}/"
    return pictures, [shown(file.removeprefix(here)) for file in pictures.files]


def given_images(images: Any, trained: Trained | None, echo: Echo) -> tuple[Part, list[str]]:
    """Returns images that a program passes, and their names.

    Args:
        images: an array or tensor, or a path or paths as in `read_images`.
        trained: the network; None for a module, which takes no paths.
        echo: prints what was left out.

    Raises:
        RequestError: they are not images, or none are there.
    """
    if isinstance(images, (str, Path)):
        images = [images]
    if isinstance(images, (list, tuple)) and all(isinstance(one, (str, Path)) for one in images):
        if trained is None:
            raise RequestError("images: the size is not known for a module; pass an array")
        return read_images(trained, [str(one) for one in images], echo)
    part = data.images_of(images, None if trained is None else trained.dataset.shape)
    return part, [str(number) for number in range(len(part))]
