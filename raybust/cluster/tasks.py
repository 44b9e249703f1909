"""Stateless Ray tasks: as many at a time as fit on the cluster, results as they finish.

Shared by certification and both kinds of evaluation. A task that dies is retried; an exception it
raises is raised here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from raybust.cluster.session import nodes_of, slots
from raybust.config import Config
from raybust.errors import RequestError, WorkError

_RETRIES = 3


def single_task_config(config: Config) -> Config:
    """Returns the configuration with one worker, for resource checks of a single task."""
    return replace(config, cluster=replace(config.cluster, workers=1))


def room_for(ray: Any, config: Config, workers: int | None) -> int:
    """Returns how many tasks run at a time: `workers`, but no more than fit on the cluster."""
    return min(workers or 10**6, slots(single_task_config(config), nodes_of(ray)))


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
            workers busy; if it is less, Ray would run the queued ones too.
        function: a module's, so that workers can import it.
        calls: arguments, drawn lazily; pass large ones as references from `ray.put`.

    Raises:
        RequestError, WorkError: raised by a task.
        WorkError: a task failed every retry.
    """
    gpu = nodes_of(ray).gpus(config)
    task = ray.remote(num_cpus=config.cluster.cpus_per_worker, num_gpus=gpu, max_retries=_RETRIES)(
        function
    )
    submitted = room if room < room_for(ray, config, None) else 2 * room
    left, running = iter(calls), list[Any]()
    while True:
        while len(running) < submitted and (call := next(left, None)) is not None:
            running.append(task.remote(*call))
        if not running:
            return
        done, running = ray.wait(running)
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (RequestError, WorkError)):
                raise cause from None
            text = " ".join(str(cause).split())[:300]
            raise WorkError(
                f"a task failed: {type(cause).__name__}: {text}; finished work is kept"
            ) from error
        except ray.exceptions.RayError as error:
            raise WorkError(
                f"a task failed {_RETRIES} times: {type(error).__name__}; finished work is kept"
            ) from error
        yield result
