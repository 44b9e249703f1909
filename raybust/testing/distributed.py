"""Methods on two ranks under DDP: their gradients and the metrics that they log.

The ranks take different images and different numbers of steps. They write their findings to files,
so one start of the processes serves several checks and several methods.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raybust.methods import Method, StepContext
from raybust.testing.ranks import run_ranks
from raybust.testing.step import batch, network_for
from raybust.training.objective import Objective
from raybust.training.ranks import Ranks

PROGRESS = (0.0, 0.5, 0.95)
"""Progress at each step; rank 0 takes the first two steps, rank 1 all three."""


@dataclass(frozen=True)
class OnRanks:
    """Findings about one method on two ranks.

    Attributes:
        method: key of the method.
        gradients: errors of parameters whose gradient is not the mean of both ranks' gradients.
        metrics: by name, the values of all steps of both ranks.
        means: by rank and name, their means as a run reports them.
        broken: logged metrics that are not finite scalars.
    """

    method: str
    gradients: list[str]
    metrics: dict[str, list[float]]
    means: list[dict[str, float]]
    broken: list[str]


def on_two_ranks(methods: Sequence[Method], folder: Path) -> list[OnRanks]:
    """Runs each method on two ranks and returns the findings.

    Args:
        methods: methods whose classes other processes can import.
        folder: empty folder.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a method raised.
    """
    run_ranks(_rank, folder, list(methods), folder)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return [
        OnRanks(
            method.key,
            [*one["gradients"], *other["gradients"]],
            {
                name: [*one["metrics"].get(name, []), *other["metrics"].get(name, [])]
                for name in {**one["metrics"], **other["metrics"]}
            },
            [one["means"], other["means"]],
            [*one["broken"], *other["broken"]],
        )
        for method, one, other in zip(methods, first, second, strict=True)
    ]


def check_gradients_on_ranks(found: OnRanks) -> None:
    """Both ranks end with the mean of their gradients."""
    assert not found.gradients, f"{found.method}: {'; '.join(found.gradients)}"


def check_metrics_on_ranks(found: OnRanks) -> None:
    """Metrics are finite scalars. Both ranks report the mean over all steps that log a metric, even
    if they log different ones or take different numbers of steps."""
    assert not found.broken, f"{found.method}: not finite scalars: {'; '.join(found.broken)}"
    expected = {name: math.fsum(values) / len(values) for name, values in found.metrics.items()}
    for rank, means in enumerate(found.means):
        wrong = {
            name: (means.get(name), value)
            for name, value in expected.items()
            if not math.isclose(means.get(name, math.nan), value, rel_tol=1e-6, abs_tol=1e-9)
        }
        assert not wrong, f"{found.method}: means on rank {rank}, expected ones: {wrong}"


def _rank(rank: int, methods: list[Method], folder: Path) -> None:
    found = [{**_gradients(rank, method), **_metrics(rank, method)} for method in methods]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def _objective(method: Method) -> tuple[Objective, Tensor, Tensor]:
    images, labels, classes = batch(method)
    network, _ = network_for(method, classes)
    objective = Objective(network.network, method)
    objective.prepare(images, labels)
    if method.round_epochs():
        context = StepContext(torch.Generator().manual_seed(11))
        objective.refresh(images, labels, context, None)
    return objective, images, labels


def _gradients(rank: int, method: Method) -> dict[str, list[str]]:
    objective, images, labels = _objective(method)
    images = (images + 0.1 * rank).clamp(0, 1)
    single = copy.deepcopy(objective)
    wrapped = DistributedDataParallel(objective)
    for module in (single, wrapped):
        module(images, labels, torch.Generator().manual_seed(rank), 0.5).backward()
    wrong = []
    own = dict(single.named_parameters())
    for name, parameter in objective.named_parameters():
        mean = own[name].grad
        mean = torch.zeros_like(parameter) if mean is None else mean
        dist.all_reduce(mean)
        try:
            torch.testing.assert_close(parameter.grad, mean / 2)
        except AssertionError as error:
            wrong.append(f"rank {rank}: {name}: {' '.join(str(error).split())}")
    return {"gradients": wrong}


def _metrics(rank: int, method: Method) -> dict[str, object]:
    objective, images, labels = _objective(method)
    broken, metrics = list[str](), dict[str, list[float]]()
    for number, progress in enumerate(PROGRESS[: 2 + rank], 1):
        step, draw = f"rank {rank}, step {number}", torch.Generator().manual_seed(10 * rank)
        targets = labels if rank == 0 or method.balanced_classes else torch.zeros_like(labels)
        moved = (images + 0.1 * rank + 0.01 * number).clamp(0, 1)
        objective(moved, targets, draw.manual_seed(number + 10 * rank), progress).backward()
        for name, value in objective.metrics.items():
            scalar = torch.as_tensor(value)
            if scalar.numel() != 1 or not scalar.isfinite().all():
                broken.append(f"{step}: {name} = {value}")
            else:
                metrics.setdefault(name, []).append(float(scalar))
    sums = {name: (math.fsum(values), len(values)) for name, values in metrics.items()}
    means = Ranks.current(torch.device("cpu")).means(sums)
    return {"metrics": metrics, "means": means, "broken": broken}
