"""Stateless Ray tasks: as many at a time as fit on the cluster, results as they finish.

Shared by certification and both kinds of evaluation. A task that dies is retried; an exception it
raises is raised here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from raybust.cluster.session import nodes_of, slots
from raybust.config import Config
from raybust.errors import WorkError, task_error

_RETRIES = 3


def single_task_config(config: Config) -> Config:
    """Returns the configuration with one worker, for resource checks of a single task."""
    return replace(config, cluster=replace(config.cluster, workers=1))


def room_for(ray: Any, config: Config, workers: int | None) -> int:
    """Returns how many tasks run at a time: `workers`, but no more than fit on the cluster."""
    return min(workers or 10**6, slots(single_task_config(config), nodes_of(ray)))


@contextmanager
def gpu_workers(ray: Any) -> Iterator[None]:
    """Keeps the processes in which `run_tasks` runs tasks on GPUs until the end of the context: Ray
    would start a process for each, which takes seconds. Nested contexts share them."""
    if _Workers.kept is not None:
        yield
        return
    _Workers.kept = kept = dict[tuple[float, float], list[Any]]()
    try:
        yield
    finally:
        _Workers.kept = None
        for workers in kept.values():
            for worker in workers:
                ray.kill(worker)


class _Workers:
    """Processes that run tasks: one per call at a time, each with its own share of a GPU."""

    kept: dict[tuple[float, float], list[Any]] | None = None

    def __init__(self, ray: Any, config: Config, gpus: float, room: int) -> None:
        key = config.cluster.cpus_per_worker, gpus
        kept = {} if _Workers.kept is None else _Workers.kept
        workers = kept.setdefault(key, [])
        kind = ray.remote(
            num_cpus=key[0], num_gpus=gpus, max_restarts=_RETRIES, max_task_retries=_RETRIES
        )(_Worker)
        workers += [kind.remote() for _ in range(room - len(workers))]
        self.queued = dict.fromkeys(workers[:room], 0)
        self.worker_of: dict[Any, Any] = {}

    def submit(self, function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
        """Returns the reference of a call's result, in the process with the fewest calls."""
        worker = min(self.queued, key=lambda one: self.queued[one])
        self.queued[worker] += 1
        reference = worker.run.remote(function, *call)
        self.worker_of[reference] = worker
        return reference

    def done(self, reference: Any) -> None:
        """Notes that a call ended."""
        self.queued[self.worker_of.pop(reference)] -= 1


class _Worker:
    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def run_tasks(
    ray: Any,
    config: Config,
    room: int,
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
) -> Iterator[Any]:
    """Yields the results of `function(*call)` in the order in which the tasks finish.

    Args:
        ray: the module, connected.
        config: section `cluster` sets the resources of one task.
        room: tasks at a time. If that fills the cluster, as many again are queued in Ray to keep
            workers busy; if it is less, Ray would run the queued ones too. On GPUs, processes that
            last run them, see `gpu_workers`.
        function: a module's, so that workers can import it.
        calls: arguments, drawn lazily; pass large ones as references from `ray.put`.

    Raises:
        RequestError, WorkError: raised by a task.
        WorkError: a task failed every retry.
    """
    gpus = nodes_of(ray).gpus(config)
    workers = _Workers(ray, config, gpus, room) if gpus else None
    task = ray.remote(num_cpus=config.cluster.cpus_per_worker, max_retries=_RETRIES)(function)
    submitted = room if room < room_for(ray, config, None) else 2 * room
    left, running = iter(calls), list[Any]()
    while True:
        while len(running) < submitted and (call := next(left, None)) is not None:
            running.append(workers.submit(function, call) if workers else task.remote(*call))
        if not running:
            return
        done, running = ray.wait(running)
        if workers:
            workers.done(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise task_error(error.cause) from error
        except ray.exceptions.RayError as error:
            raise WorkError(
                f"a task failed {_RETRIES} times: {type(error).__name__}; finished work is kept"
            ) from error
        yield result
