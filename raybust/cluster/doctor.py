"""Checks behind `raybust doctor`: installed packages, the MLflow store, the cluster.

Each finding has a state and, if something is missing, advice on how to fix it. A check that fails
is a finding too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from raybust import track
from raybust.cluster.jobs import CLIENT, versions
from raybust.cluster.nodes import Node, inspect_nodes
from raybust.cluster.session import nodes_of, session, slots
from raybust.config import Config
from raybust.disk import runs
from raybust.errors import RequestError

_PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "omegaconf", "timm", "safetensors")
_LEAST_DISK_GIB = 1.0
_LEAST_HEAD_GIB = 8.0
_HEAD_NEEDS = "Ray and MLflow use about 2, each multi-worker trial another 0.6"
_ELSEWHERE = "choose another folder with --out"
_SAME_VERSIONS = "install the same requirements.lock on both sides (`make venv`, rerun `ray up`)"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        state: "ok", "note" or "missing".
        seen: what was found.
        advice: how to fix it, or "".
    """

    what: str
    state: Literal["ok", "note", "missing"]
    seen: str
    advice: str = ""


def examine(config: Config, address: str | None) -> list[Finding]:
    """Returns all findings about this machine, the store, and a cluster.

    Args:
        config: names the output folder and the store.
        address: of a Ray cluster; None for the embedded one.
    """
    return [*_machine(), *_folder(config), *_store(config), *_cluster(config, address)]


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
        yield Finding("GPU", "note", "torch sees none", "training runs on the CPU")


def _folder(config: Config) -> Iterator[Finding]:
    out = runs.out_folder(config)
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        yield Finding("out", "missing", f"{out} is not writable", _ELSEWHERE)
        return
    free = shutil.disk_usage(parent).free / 2**30
    state: Literal["ok", "missing"] = "ok" if free > _LEAST_DISK_GIB else "missing"
    advice = "" if state == "ok" else f"free some space, or {_ELSEWHERE}"
    yield Finding("out", state, f"{out}, {free:.1f} GiB free", advice)


def _store(config: Config) -> Iterator[Finding]:
    try:
        uri = track.resolve_uri(config.track, runs.out_folder(config))
        warning = track.prepare(uri, runs.out_folder(config), config.track.experiment)
    except RequestError as error:
        yield Finding("MLflow", "missing", str(error), "set track.uri or MLFLOW_TRACKING_URI")
        return
    if warning:
        advice = "start the server; until then the runs' journals keep everything"
        yield Finding("MLflow", "missing", warning, advice)
    else:
        yield Finding("MLflow", "ok", track.safe_uri(uri))


def _cluster(config: Config, address: str | None) -> Iterator[Finding]:
    yield from _versions(os.environ.get(CLIENT, "{}"))
    try:
        with session(address, verbose=False) as ray:
            yield from _connected(ray, config, look_at_nodes=address is not None)
    except RequestError as error:
        mismatch = "Version mismatch" in str(error)
        advice = _SAME_VERSIONS if mismatch else "start it with `ray up`, check --address"
        yield Finding("Ray", "missing", str(error), advice)


def _connected(ray: Any, config: Config, *, look_at_nodes: bool) -> Iterator[Finding]:
    """Yields the findings about a cluster; a check that fails hides no other."""
    resources = ray.cluster_resources()
    most = {key: resources.get(key, 0.0) for key in ("CPU", "GPU")}
    try:
        nodes = nodes_of(ray)
        most = {key: nodes.total(key) for key in most}
    except RequestError as error:
        yield Finding("autoscaler", "missing", str(error), "no command can run until this works")
    seen: list[Node] = []
    try:
        seen = _look(ray, config) if look_at_nodes else []
    except OSError as error:
        yield Finding(
            "nodes", "missing", f"not checked: {error.filename}: {error.strerror}", _ELSEWHERE
        )
    except ray.exceptions.RayError as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Finding("nodes", "missing", text, "list the nodes with `ray status` on the head")
    count = f" on {len(seen)} nodes" if seen else ""
    have = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs{count}"
    more = {key: count - resources.get(key, 0) for key, count in most.items()}
    if any(more.values()):
        have += f"; the autoscaler may add up to {more['CPU']:g} CPUs and {more['GPU']:g} GPUs"
    yield Finding("Ray", "ok", have + _room(config, ray))
    yield from findings(seen, most)


def _room(config: Config, ray: Any) -> str:
    """Returns how many runs of the configured size fit at a time."""
    cluster = config.cluster
    try:
        nodes = nodes_of(ray)
        fit, gpus = slots(config, nodes), nodes.gpus(config)
    except RequestError:
        return ""
    each = f"{cluster.workers} x {cluster.cpus_per_worker:g} CPUs"
    return f"; {fit} runs at a time ({each}{f' and {gpus:g} GPUs' if gpus else ''} each)"


def _look(ray: Any, config: Config) -> list[Node]:
    out = runs.out_folder(config)
    out.mkdir(parents=True, exist_ok=True)
    return inspect_nodes(ray, out, track.resolve_uri(config.track, out))


def _versions(client: str) -> Iterator[Finding]:
    """Compares package versions of the machine that submitted this command with the cluster's."""
    here = versions()
    for name, there in json.loads(client).items():
        if there != here.get(name):
            seen = f"{name} {there} on the submitting machine, {here.get(name)} on the cluster"
            yield Finding("versions", "missing", seen, _SAME_VERSIONS)


def findings(seen: Sequence[Node], most: Mapping[str, float]) -> Iterator[Finding]:
    """Yields the findings about a cluster's nodes.

    Args:
        seen: the nodes; without any there are no findings.
        most: CPUs and GPUs of the fully grown cluster, see `Nodes.total`.
    """
    if not seen:
        return
    hidden = [f"{n.host}: {n.driver_gpus}" for n in seen if n.driver_gpus > n.ray_gpus]
    if hidden:
        advice = (
            "unset CUDA_VISIBLE_DEVICES where Ray starts, remove or correct `resources: {GPU: ...}`"
            " in the cluster file, and restart Ray there"
        )
        yield Finding("GPUs", "missing", f"Ray does not see: {', '.join(hidden)}", advice)
    elif not most.get("GPU"):
        advice = "fine for training on CPUs; otherwise install NVIDIA's driver (nvidia-smi)"
        yield Finding("GPUs", "note", "no node has one, and none can be added", advice)
    unshared = [node.host for node in seen if not node.shared]
    if unshared:
        advice = "mount one folder on all nodes under the same path, and pass it as --out"
        yield Finding("storage", "missing", f"not shared with {', '.join(unshared)}", advice)
    else:
        yield Finding("storage", "ok", "the same folder on every node")
    cut_off = [f"{node.host} ({node.mlflow})" for node in seen if node.mlflow]
    if cut_off:
        advice = (
            "start the server, or set MLFLOW_TRACKING_URI to an address that every node can reach;"
            " until then runs keep their journals, and the driver sends them at the end"
        )
        yield Finding("MLflow", "missing", f"unreachable from {', '.join(cut_off)}", advice)
    for head in (node for node in seen if node.head):
        small = head.memory < _LEAST_HEAD_GIB
        advice = f"use a head with {_LEAST_HEAD_GIB:g} GiB or more: {_HEAD_NEEDS}" if small else ""
        state: Literal["ok", "missing"] = "missing" if small else "ok"
        yield Finding("head", state, f"{head.host}, {head.memory:.1f} GiB of memory", advice)
