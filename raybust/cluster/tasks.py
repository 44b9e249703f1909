"""Stateless tasks over Ray: as many at a time as there is room for, results as they come.

What certification and both kinds of evaluation have in common; a task that dies is run again, and
what it raises is raised here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from raybust.cluster.session import nodes_of, slots
from raybust.config import Config
from raybust.errors import RequestError, WorkError

_RETRIES = 3


def of_one_task(config: Config) -> Config:
    """Returns a configuration whose section `cluster` is for one task, not for a run's workers."""
    return replace(config, cluster=replace(config.cluster, workers=1))


def room_for(ray: Any, config: Config, workers: int | None) -> int:
    """Returns how many tasks run at a time: `workers`, but no more than the cluster holds."""
    return min(workers or 10**6, slots(of_one_task(config), nodes_of(ray)))


def run_tasks(
    ray: Any,
    config: Config,
    room: int,
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
) -> Iterator[Any]:
    """Yields the results of `function(*call)`, in the order in which they end.

    Args:
        ray: the module, connected.
        config: its section `cluster` says what one task takes.
        room: tasks at a time. Where that is all that the cluster holds, as many again wait in Ray,
            so that no worker does; where it is fewer, Ray would run them too.
        function: of a module, so that workers can import it.
        calls: arguments, drawn when there is room; large ones as references of `ray.put`.

    Raises:
        RequestError, WorkError: what a task raised.
        WorkError: a task died for good.
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
                f"a task failed: {type(cause).__name__}: {text}; what is done is kept"
            ) from error
        except ray.exceptions.RayError as error:
            raise WorkError(
                f"a task failed {_RETRIES} times: {type(error).__name__}; what is done is kept"
            ) from error
        yield result
