"""Processes that share one gloo process group."""

import datetime
import os

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_ranks(function, folder, *args, world=2, seconds=240):
    """Calls `function(rank, *args)` in `world` processes; raises the first error of any."""
    store = f"file://{folder / 'store'}"
    context = torch.multiprocessing.spawn(
        _rank, args=(function, store, world, seconds, args), nprocs=world, join=False
    )
    while not context.join():
        pass


def _rank(rank, function, store, world, seconds, args):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    function(rank, *args)
    dist.barrier()
    # Gloo's threads now and then abort an interpreter that ends ("terminate called without an
    # active exception"), so the process leaves without a teardown.
    os._exit(0)
