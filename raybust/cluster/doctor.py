"""The examination behind `raybust doctor`: what is installed, what the cluster has, what is
missing.

Each row names a state and, where something is missing, what to do about it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from raybust import runs, track
from raybust.cluster.session import session
from raybust.config import Config
from raybust.errors import RequestError

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "omegaconf", "timm", "safetensors")
_LEAST_DISK_GIB = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        state: "ok", "note" or "missing".
        seen: what was found.
        advice: what to do, "" where nothing.
    """

    what: str
    state: Literal["ok", "note", "missing"]
    seen: str
    advice: str = ""


def examine(config: Config, address: str | None) -> list[Finding]:
    """Returns all findings about this machine, the store, and a cluster.

    Args:
        config: where everything lands.
        address: of a Ray cluster, or None for the embedded one.
    """
    return [*_machine(), *_folder(config), *_store(config), *_cluster(address)]


def _machine() -> Iterator[Finding]:
    yield Finding("python", "ok", sys.version.split()[0])
    for name in _PACKAGES:
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Finding("GPU", "ok", f"{torch.cuda.device_count()} x {', '.join(sorted(names))}")
    else:
        yield Finding("GPU", "note", "none seen by torch", "training runs on the CPU")


def _folder(config: Config) -> Iterator[Finding]:
    out = runs.out_folder(config)
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        yield Finding("out", "missing", f"{out} cannot be written", "choose another with --out")
        return
    free = shutil.disk_usage(parent).free / 2**30
    state: Literal["ok", "missing"] = "ok" if free > _LEAST_DISK_GIB else "missing"
    advice = "" if state == "ok" else "free some space, or choose another folder with --out"
    yield Finding("out", state, f"{out}, {free:.1f} GiB free", advice)


def _store(config: Config) -> Iterator[Finding]:
    try:
        uri = track.resolve_uri(config.track, runs.out_folder(config))
        warning = track.prepare(uri, runs.out_folder(config), config.track.experiment)
    except RequestError as error:
        yield Finding("MLflow", "missing", str(error), "set track.uri or MLFLOW_TRACKING_URI")
        return
    if warning:
        advice = "start the server; until then runs keep their journals, and nothing is lost"
        yield Finding("MLflow", "missing", warning, advice)
    else:
        yield Finding("MLflow", "ok", track.safe_uri(uri))


def _cluster(address: str | None) -> Iterator[Finding]:
    try:
        with session(address, verbose=False) as ray:
            resources = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
    except RequestError as error:
        yield Finding("Ray", "missing", str(error), "start it with `ray up`, check --address")
        return
    have = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs on {nodes} nodes"
    yield Finding("Ray", "ok", have)
