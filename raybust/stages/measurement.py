"""What certification, attacks and corruptions share: an open cluster, Ray tasks over shards of the
data, results published beside their rows and in MLflow.

Shards are cut by the protocol, not by the number of workers, and draws are keyed, so results are
the same for any number of workers, and an interrupted command resumes from its finished rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raybust import track
from raybust.cluster.session import nodes_of, session
from raybust.cluster.tasks import of_one_task, room_for, run_tasks
from raybust.disk import runs
from raybust.disk.files import put_aside, step_of
from raybust.disk.lock import locked
from raybust.stages.progress import Echo, note_growth
from raybust.stages.tracking import open_store
from raybust.trained import Trained


@dataclass(frozen=True)
class Options:
    """How a measurement runs, whatever it measures.

    Attributes:
        echo: prints a line.
        address: of a Ray cluster; None for the open session, else for an embedded one.
        workers: tasks at a time; None for as many as the cluster holds.
        resume: False puts earlier results of the same name aside.
        name: of the results; None derives it from the protocol.
        verbose: whether Ray's messages are shown.
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
        table: the results for a person.
        metrics: name to value, as in MLflow.
        files: what was written, by label.
        details: further entries of the JSON output.
    """

    table: str
    metrics: dict[str, float]
    files: dict[str, Path]
    details: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Returns what the command line prints."""
        width = max((len(label) for label in self.files), default=0)
        files = [f"{label:<{width}}  {path}" for label, path in self.files.items()]
        return "\n".join([self.table.rstrip(), "", *files]) if files else self.table

    def plain(self) -> dict[str, Any]:
        """Returns the same for --json."""
        files = {label: str(path) for label, path in self.files.items()}
        return {**self.details, "metrics": self.metrics, "files": files}


@dataclass(frozen=True)
class Bench:
    """A cluster that is open for the measurement of one network, whose results are locked.

    Attributes:
        trained: the network with its data and configuration.
        options: how the measurement runs.
        ray: the module, connected.
        uri: the MLflow store.
        room: tasks at a time.
        device: type of device of the tasks.
    """

    trained: Trained
    options: Options
    ray: Any
    uri: str
    room: int
    device: Literal["cpu", "cuda"]

    def place(self, path: Path) -> Path:
        """Returns the path of the results; puts earlier ones aside unless they are resumed."""
        if not self.options.resume:
            put_aside(path)
        return path

    def run(
        self, task: Callable[..., Any], calls: Iterable[tuple[Any, ...]], room: int | None = None
    ) -> Iterator[Any]:
        """Yields the results of tasks in the order in which they end; see `run_tasks`."""
        config = self.trained.config
        note_growth(of_one_task(config), self.ray, self.options.echo)
        yield from run_tasks(self.ray, config, room or self.room, task, calls)

    def publish(
        self,
        path: Path,
        header: str,
        metrics: Mapping[str, float],
        files: Iterable[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Sends metrics and files to the run in MLflow, if the network is of one.

        Args:
            path: the rows; their folder names the artifact folder.
            header: all that the rows depend on; each protocol has its own step.
            metrics: name to value.
            files: become artifacts.
            tags: further tags of the run.
        """
        if self.trained.uid is None:
            return
        step, folder = step_of(path, header), path.parent.name
        track.log_to_run(
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


@contextmanager
def bench(trained: Trained, options: Options) -> Iterator[Bench]:
    """Opens store, lock and Ray session for the measurement of a network.

    Raises:
        RequestError: there is no cluster at the address, the network does not fit on it, or
            another command is measuring the same run.
    """
    config = trained.config
    uri = open_store(config, runs.out_folder(config), options.echo)
    with locked(trained.folder), session(options.address, verbose=options.verbose) as ray:
        room = room_for(ray, config, options.workers)
        device: Literal["cpu", "cuda"] = "cuda" if nodes_of(ray).gpus(config) else "cpu"
        yield Bench(trained, options, ray, uri, room, device)
