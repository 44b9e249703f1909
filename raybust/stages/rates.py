"""`raybust train --find-lr`: a range test of the configuration's network, method and data.

It runs in this process and starts no run.
"""

from __future__ import annotations

from raybust import data, devices
from raybust.config import Config
from raybust.disk import runs
from raybust.disk.files import replace_text
from raybust.stages.bars import Echo, progress_bar
from raybust.stages.measurement import Measurement
from raybust.stages.place import own_device, threads
from raybust.stages.progress import print_data
from raybust.stages.training import default_name
from raybust.training.rates import STEPS, range_test

FOLDER = "_rates"
"""Folder of the results in the output folder; no run can have that name."""


def find_rate(config: Config, echo: Echo) -> Measurement:
    """Runs a range test and writes its picture and table.

    Args:
        config: the full configuration; `train.lr` and `train.schedule` are not used.
        echo: prints a line.

    Raises:
        WorkError: the loss is not a number from the first step.
    """
    from raybust.reporting import rates

    name, folder = config.name or default_name(config), runs.out_folder(config) / FOLDER
    dataset = data.load(config.data)
    print_data(config, dataset, echo)
    echo(f"range test: up to {STEPS} steps of {config.train.batch_size} images")
    device = own_device(config)
    devices.limit_memory(device, config.cluster.gpus_per_worker or 1)
    with threads(config), progress_bar(STEPS, "range test, steps", echo) as bar:
        found = range_test(config, dataset, device, bar.update)
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = folder / f"{name}.png", folder / f"{name}.tsv"
    train = config.train
    what = f"{config.method.key}, {config.model.name}, {config.data.name}, {train.optimizer}"
    columns = {"rate": found.rates, "loss": found.losses, "smoothed": found.smoothed}
    title = f"{what}, batches of {train.batch_size}"
    rates.plot_rates(columns, found.suggestion, picture, title)
    replace_text(table, rates.rates_table(columns))
    low = f"the loss is lowest, {min(found.smoothed):.3g}, at {found.lowest:.2g}"
    return Measurement(
        table=f"suggested  train.lr={found.suggestion:g}  ({low}; this run would use"
        f" {train.rate:g})",
        metrics={"suggestion": found.suggestion, "lowest": found.lowest},
        files={"picture": picture, "table": table},
    )
