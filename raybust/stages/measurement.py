"""Shared by certification, attacks and corruptions: an open pool, tasks over shards of the data,
results published next to their rows and in MLflow.

The protocol, not the number of workers, determines the shards, and randomness is keyed, so results
do not depend on the number of workers, and an interrupted command resumes from its finished rows.
"""

from __future__ import annotations

import copy
import html
import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from raybust import devices, track
from raybust.data import Part
from raybust.disk import runs
from raybust.disk.files import put_aside, step_of
from raybust.disk.lock import locked
from raybust.errors import RequestError
from raybust.evaluate import flags_of_network
from raybust.identity import Sent
from raybust.stages.bars import Echo
from raybust.stages.place import Pool, open_pool, threads
from raybust.stages.tracking import open_store
from raybust.trained import Trained

_PROBED = 8
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Options:
    """How any measurement runs.

    Attributes:
        echo: prints a line.
        address: of a Ray cluster; None for the open session, or else this machine.
        workers: tasks at a time; None for as many as fit on the cluster.
        resume: False sets earlier results of the same name aside.
        name: of the results; None derives it from the protocol.
        verbose: show Ray's messages.
    """

    echo: Echo
    address: str | None = None
    workers: int | None = None
    resume: bool = True
    name: str | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Measurement:
    """A finished measurement.

    Attributes:
        table: the results as text.
        metrics: name to value, as in MLflow.
        files: written files by label.
        details: additional entries of the JSON output.
        home: keeps a temporary folder with the files for as long as the measurement exists.
    """

    table: str
    metrics: dict[str, float]
    files: dict[str, Path]
    details: dict[str, Any] = field(default_factory=dict)
    home: Any = field(default=None, compare=False, repr=False, kw_only=True)

    def text(self) -> str:
        """Returns the output of the command line."""
        width = max((len(label) for label in self.files), default=0)
        files = [f"{label:<{width}}  {path}" for label, path in self.files.items()]
        return "\n".join([self.table.rstrip(), "", *files]) if files else self.table

    def plain(self) -> dict[str, Any]:
        """Returns the output for --json."""
        files = {label: str(path) for label, path in self.files.items()}
        return {**self.details, "metrics": self.metrics, "files": files}

    def _repr_html_(self) -> str:
        """Shows the table and the curve in a notebook."""
        text, curve = f"<pre>{html.escape(self.table.rstrip())}</pre>", self.files.get("curve")
        if curve is None:
            return text
        return f'{text}<img src="data:image/png;base64,{b64encode(curve.read_bytes()).decode()}">'


@dataclass(frozen=True)
class Bench:
    """An open pool for measuring one network, with the network's results locked.

    Attributes:
        trained: the network with its data and configuration.
        options: how the measurement runs.
        pool: runs the tasks.
        uri: the MLflow store; "" if the network is not a run.
    """

    trained: Trained
    options: Options
    pool: Pool
    uri: str

    @property
    def device(self) -> str:
        """The device type of the tasks."""
        return self.pool.device

    def place(self, path: Path) -> Path:
        """Returns the path of the results after setting earlier ones aside unless resuming."""
        if not self.options.resume:
            put_aside(path)
        return path

    def call(self, task: Callable[..., Any], network: nn.Module, *arguments: Any) -> Any:
        """Returns the result of one task: computed here on a CPU, by the pool on a GPU, so that Ray
        accounts for it."""
        sent = Sent.of(network, self.trained.dataset.shape)
        if self.device == devices.CPU:
            with threads(self.trained.config):
                return task(copy.deepcopy(sent), *arguments)
        (result,) = self.pool.run(task, [(sent, *arguments)])
        return result

    def put(self) -> Any:
        """Returns the trained network in the form in which calls of `pool.run` pass it."""
        return self.pool.put(Sent.of(self.trained.network, self.trained.dataset.shape))

    def check_images(self, part: Part, positions: Sequence[int], digest: str, path: Path) -> None:
        """Checks after the work that the images are those of the start: they may have been read at
        any time since. If not, sets the results aside.

        Raises:
            RequestError: they were replaced.
        """
        if part.content(positions) != digest:
            put_aside(path)
            raise RequestError(
                f"{path.name}: the images changed while the command ran; its results were set"
                " aside; rerun it"
            )

    def publish(
        self,
        path: Path,
        header: str,
        metrics: Mapping[str, float],
        files: Iterable[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Sends metrics and files to the network's MLflow run, if it has one.

        Args:
            path: of the rows; its folder names the artifact folder.
            header: everything the rows depend on; each protocol has its own step.
            metrics: name to value.
            files: become artifacts.
            tags: additional tags of the run.
        """
        if self.trained.uid is None:
            return
        step, folder = step_of(path, header), path.parent.name
        track.call(
            track.log_to_run,
            path.with_suffix(".journal.jsonl"),
            self.uri,
            self.trained.uid,
            self.trained.config.track.experiment,
            metrics=metrics,
            step=step,
            artifacts=list(files),
            folder=folder,
            tags={**(tags or {}), f"raybust.{folder}.{step}": path.stem},
        )


def warn_of_instability(network: nn.Module, part: Part, echo: Echo) -> None:
    """Warns if the network is random, or sees more than one image at a time, so that an accuracy
    holds for one draw or one batch size only."""
    images = part.fetch(range(min(len(part), _PROBED)))[0]
    for flag in flags_of_network(network, images):
        if flag.name in ("random", "batch"):
            echo(f"warning: the network is not a function of one image: {flag.text}")


def warn_of_few_classes(part: Part, chosen: Sequence[int], echo: Echo) -> None:
    """Warns if the classes of the chosen examples are not those of a random sample, like those of
    the first examples of a part that is sorted by class.

    Pearson's statistic of the class counts is compared with its mean and deviation for random
    samples; the limit, five deviations, is our choice.

    Args:
        part: of the data.
        chosen: positions in the part.
        echo: prints a line.
    """
    labels, total, count = part.labels, len(part), len(chosen)
    if count in (0, total):
        return
    counts = labels.bincount().double()
    counts, taken = counts[counts > 0], labels[list(chosen)].bincount(minlength=len(counts))
    taken = taken[labels.bincount() > 0].double()
    classes, expected = len(counts), counts * count / total
    statistic = float(((taken - expected) ** 2 / expected).sum()) * (total - 1) / (total - count)
    rare = float((total / counts).sum()) - classes**2 - 2 * classes + 2
    deviation = math.sqrt(max(2 * (classes - 1) + rare / count, 1.0))
    if statistic > classes - 1 + _DEVIATIONS * deviation:
        covered = int((taken > 0).sum())
        what = f"have other shares of the {classes} classes than the whole part"
        if covered < classes:
            what = f"cover only {covered} of {classes} classes"
        echo(
            f"warning: these {count} of {total} examples {what}: no random sample, probably"
            " because the data is sorted; use more examples, or for certificates certify.skip"
        )


@contextmanager
def bench(trained: Trained, options: Options) -> Iterator[Bench]:
    """Opens lock, pool, and for a run the store, for measuring a network.

    Raises:
        RequestError: no cluster answers at the address, a task does not fit, or another command is
            measuring the same run.
    """
    config, echo = trained.config, options.echo
    tracked = trained.uid is not None
    uri = open_store(config, runs.out_folder(config), echo) if tracked else ""
    with (
        locked(trained.folder),
        open_pool(
            config, options.address, options.workers, echo=echo, verbose=options.verbose
        ) as pool,
    ):
        yield Bench(trained, options, pool, uri)
