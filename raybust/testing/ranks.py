"""Runs a function in several processes that form one gloo process group.

Gloo's threads sometimes abort an interpreter at exit ("terminate called without an active
exception"), so each process exits without teardown once all ranks are done.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_ranks(
    function: Callable[..., None], folder: Path, *args: Any, world: int = 2, seconds: float = 240
) -> None:
    """Calls `function(rank, *args)` in several processes and raises the first error of any rank.

    Args:
        function: function of a module that the processes can import.
        folder: empty folder in which the processes meet.
        args: further arguments; they are pickled.
        world: number of processes.
        seconds: timeout of a collective operation.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a rank raised; the message has its traceback.
    """
    store = f"file://{folder / 'store'}"
    context = torch.multiprocessing.spawn(
        _rank, args=(function, store, world, seconds, args), nprocs=world, join=False
    )
    while not context.join():
        pass


def _rank(
    rank: int,
    function: Callable[..., None],
    store: str,
    world: int,
    *more: Any,
) -> None:
    seconds, args = more
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    function(rank, *args)
    dist.barrier()
    os._exit(0)
