"""Where work runs: in this process with helpers beside it, or on Ray.

One worker on this machine needs no cluster, and a session of Ray takes seconds to start. Tasks,
loop, journal and files are the same in both places, and so are the results.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pickle import PicklingError
from typing import Any, Protocol

import torch
from joblib.externals.loky import ProcessPoolExecutor, cpu_count
from joblib.externals.loky.process_executor import BrokenProcessPool

from raybust import devices
from raybust.beside import live_with
from raybust.cluster.session import Nodes, nodes_of, session, slots
from raybust.cluster.tasks import gpu_workers, room_for, run_tasks, single_task_config
from raybust.config import Config
from raybust.errors import task_error
from raybust.identity import Sent
from raybust.stages.bars import Echo
from raybust.stages.progress import note_growth

Task = Callable[..., Any]


class Pool(Protocol):
    """Runs tasks.

    Attributes:
        room: tasks at a time.
        device: device type of a task.
    """

    room: int
    device: str

    def put(self, value: Any) -> Any:
        """Returns a large argument in the form that calls pass it."""

    def run(self, task: Task, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yields the results of `task(*call)` in the order in which they are done.

        Args:
            task: a module's function.
            calls: arguments, drawn lazily.

        Raises:
            RequestError, WorkError: raised by a task; finished results have been yielded.
        """


@contextmanager
def open_pool(
    config: Config, address: str | None, workers: int | None, *, echo: Echo, verbose: bool
) -> Iterator[Pool]:
    """Opens a pool here if that is enough, else on Ray.

    Args:
        config: section `cluster` sets the resources of one task.
        address: of a Ray cluster; None for the open session, or this machine.
        workers: tasks at a time; None for as many as fit.
        echo: prints a line.
        verbose: show Ray's messages.

    Raises:
        RequestError: no cluster answers at the address, or a task does not fit.
    """
    config = single_task_config(config)
    if suffices(config, address):
        yield Here(config, workers, echo)
        return
    with session(address, verbose=verbose) as ray, gpu_workers(ray):
        yield OnRay(ray, config, workers, echo)


def suffices(config: Config, address: str | None) -> bool:
    """Returns whether this process can do the work: one worker on at most one GPU, without an
    address, an open session or a storage of Ray's."""
    cluster = config.cluster
    if address is not None or cluster.workers > 1 or cluster.storage:
        return False
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return False
    return cluster.gpus_per_worker in (None, 0, 1) and torch.accelerator.device_count() <= 1


def check_fit(config: Config) -> int:
    """Returns how many workers fit on this machine.

    Raises:
        RequestError: not even one.
    """
    gpus = float(own_device(config).type != devices.CPU)
    return slots(config, Nodes(({"CPU": float(cpu_count()), "GPU": gpus},)))


def own_device(config: Config) -> torch.device:
    """Returns the device of a worker in this process."""
    return torch.device(devices.CPU) if config.cluster.gpus_per_worker == 0 else devices.local()


@contextmanager
def threads(config: Config) -> Iterator[None]:
    """Gives torch the threads of one worker inside the context."""
    before = torch.get_num_threads()
    devices.set_threads(config.cluster.cpus_per_worker)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Here:
    """This process, and on a CPU helper processes beside it."""

    def __init__(self, config: Config, workers: int | None, echo: Echo) -> None:
        self.device, fit = own_device(config).type, check_fit(config)
        self.room = 1 if self.device != devices.CPU else min(workers or fit, fit)
        self._config, self._echo = config, echo

    def put(self, value: Any) -> Any:
        """Returns the value itself: it is copied for each task."""
        return value

    def run(self, task: Task, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Pool.run`. This process works as well, so that a short command does not wait for
        helpers, which take seconds to start; when nothing else is left, it also repeats what they
        have begun."""
        left = iter(calls)
        first = list(itertools.islice(left, self.room))
        left = itertools.chain(first, left)
        helpers = len(first) - 1
        if helpers < 1:
            yield from (self._do(task, call) for call in left)
            return
        own = os.getpid(), self._config.cluster.cpus_per_worker
        pool = ProcessPoolExecutor(helpers, initializer=_become_helper, initargs=own)
        begun: dict[Future[Any], tuple[Any, ...]] = {}
        try:
            while True:
                while len(begun) < 2 * helpers and (call := next(left, None)) is not None:
                    left = itertools.chain([call], left)  # stays there if no helper takes it
                    begun[pool.submit(task, *call)] = call
                    next(left)
                for future in [future for future in begun if future.done()]:
                    with _one_line():
                        result = future.result()
                    del begun[future]
                    yield result
                call = next(left, None)
                if call is None and begun:
                    call = begun.pop(next(iter(begun)))
                if call is None:
                    return
                yield self._do(task, call)
        except (BrokenProcessPool, PicklingError) as error:
            if isinstance(error, BrokenProcessPool):
                said = "a helper process died; the command goes on in one process"
            else:
                said = "the network cannot be sent to other processes; the command goes on in one"
            self._echo(f"warning: {said}")
            yield from (self._do(task, call) for call in (*begun.values(), *left))
        finally:
            pool.shutdown(kill_workers=True)

    def _do(self, task: Task, call: tuple[Any, ...]) -> Any:
        copied = [copy.deepcopy(one) if isinstance(one, Sent) else one for one in call]
        with _one_line(), threads(self._config):
            return task(*copied)


class OnRay:
    """The tasks of an open Ray session."""

    def __init__(self, ray: Any, config: Config, workers: int | None, echo: Echo) -> None:
        self.room = room_for(ray, config, workers)
        self.device = devices.of_tasks(nodes_of(ray).gpus(config))
        self._ray, self._config, self._echo = ray, config, echo

    def put(self, value: Any) -> Any:
        """Returns a reference to a value in Ray's store."""
        return self._ray.put(value)

    def run(self, task: Task, calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Pool.run`. A task whose process dies is tried again."""
        note_growth(self._config, self._ray, self._echo)
        yield from run_tasks(self._ray, self._config, self.room, task, calls)


def _become_helper(command: int, cpus: float) -> None:
    """In a helper: lives with the command, with the threads of one worker."""
    live_with(command)
    devices.set_threads(cpus)


@contextmanager
def _one_line() -> Iterator[None]:
    """Turns a task's exception into one line."""
    try:
        yield
    except (BrokenProcessPool, PicklingError):
        raise
    except Exception as error:
        found = task_error(error)
        if found is error:
            raise
        raise found from error
