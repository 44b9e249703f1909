"""The claims of Siedel et al. (VISAPP 2024) at small size: train on each norm and on the sets C1
to C3, test on every norm, three seeds; with --first the claim of the paper's first version, under
corruptions made on the fly alone. For docs/reproduction.md.

    python benchmarks/reproduce_lp.py digits
    python benchmarks/reproduce_lp.py cifar        # needs ../shared/data/cifar10-subset.npz
    python benchmarks/reproduce_lp.py cifar --first train.init=WEIGHTS model.name=resnet20

Trained networks stay in OUT, so a killed run goes on. Corruptions made on the fly need the extra
[corruptions] and images of 32 pixels; they are left out where either is missing.
"""

import argparse
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import t as student
from torch import nn

from raybust import config as configuration
from raybust.config import compose, leaves_of_arguments
from raybust.corruptions import COMMON, EXTRA, NOISE_NAMES, GeneratedSplit, NoisySplit, ice
from raybust.data import Dataset, Part, Split, load
from raybust.methods import get
from raybust.numerics.lp_sets import NORMS, LpSet, Row, named
from raybust.reporting.transfer import Training, plot_transfer, rank_correlation, transfer_table
from raybust.training.loop import Trainer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-subset.npz"
COMMAND = {
    "digits": ["data.name=digits", "model.width=16", "train.epochs=40", "train.batch_size=64"],
    "cifar": [
        "data.name=npz",
        f"data.path={SHARED}",
        "data.augment=crop_flip",
        "model.width=16",
        "train.epochs=12",
        "train.optimizer=adamw",
        "train.lr=0.003",
        "train.schedule=one_cycle",
    ],
}
SINGLE = {0.0: 0.03, 0.5: 150e3, 1.0: 100.0, 2.0: 2.5, 50.0: 0.08, math.inf: 0.04}
"""The larger of the paper's two single-norm trainings, CIFAR; other sizes: the same rms."""


def trainings(shape: tuple[int, int, int]) -> dict[str, tuple[list[str], tuple[Row, ...]]]:
    """Returns for each training its part of the command line and the noises it draws from."""
    found: dict[str, tuple[list[str], tuple[Row, ...]]] = {
        "standard": (["method.name=standard"], ())
    }
    for p, eps in SINGLE.items():
        rows = LpSet(rows=((p, eps),), shape=(3, 32, 32)).scaled_to(shape).rows
        order = ".inf" if math.isinf(p) else f"{p:g}"
        found[f"L{p:g}"] = (
            [
                "method.name=lp_noise",
                "method.noises=one",
                f"method.p={order}",
                f"method.eps={rows[0][1]}",
            ],
            rows,
        )
    for name in ("C1", "C2", "C3"):
        found[name] = (
            ["method.name=lp_noise", f"method.noises={name}"],
            named(name, shape).rows,
        )
    return found


def first_version() -> dict[str, tuple[list[str], tuple[Row, ...]]]:
    """Returns the trainings of the first version's claim, like `trainings`; its sampler and its
    kinds of impulses, no augmentation but TrivialAugment."""
    noisy = ["method.name=lp_noise", "method.law=laplace"]
    impulses = [*noisy, "method.noises=one", "method.p=0", "method.eps=0.01"]
    trivial = "method.augment=trivial"
    found = {
        "standard": ["method.name=standard"],
        "L0 1 %": impulses,
        "v1/C2": [*noisy, "method.noises=v1/C2"],
        "TrivialAugment": [*noisy, trivial, "method.clean=1"],
        "TrivialAugment + L0 1 %": [*impulses, trivial],
    }
    return {name: (arguments, ()) for name, arguments in found.items()}


def trained(arguments: list[str], path: Path) -> nn.Module:
    """Returns a network in eval mode, from `path` or trained now."""
    config = compose(leaves_of_arguments(arguments), get)
    dataset = load(config.data)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    if path.is_file():
        trainer.network.load_state_dict(load_file(path))
    else:
        while not trainer.done:
            failure = trainer.train_epoch()
            assert failure is None, failure
        weights = trainer.network.state_dict()
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
        print(f"{path.stem}: loss {trainer.metrics['train/loss']:.3f}", flush=True)
    return trainer.network.eval()


@torch.inference_mode()
def errors(networks: list[nn.Module], part: NoisySplit | GeneratedSplit | Part) -> list[float]:
    """Returns each network's error; the images are made once."""
    wrong = torch.zeros(len(networks), dtype=torch.int64)
    for at in torch.arange(len(part)).split(250):
        images, labels = part.fetch(at)
        for number, network in enumerate(networks):
            wrong[number] += (network(images).argmax(1) != labels).sum()
    return (wrong / len(part)).tolist()


def interval(values: np.ndarray) -> str:
    """Returns mean and half width of the 95 % t interval over the last axis, in per cent."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{100 * values.mean():.2f} ± {100 * half:.2f}"


def generated(networks: list[nn.Module], part: Split, count: int) -> dict[str, np.ndarray]:
    """Returns mCE and mCE_xN of each network under corruptions made on the fly; empty where they
    cannot be made."""
    if importlib.util.find_spec("imagecorruptions") is None or min(part.shape[1:]) < 32:
        return {}
    part = part.select(torch.arange(count))
    by_name = {}
    for name in (*COMMON, *EXTRA):
        cells = [errors(networks, GeneratedSplit(part, name, level)) for level in range(1, 6)]
        by_name[name] = np.mean(cells, axis=0)
        print(name, by_name[name].round(3).tolist(), flush=True)
    rest = [value for name, value in by_name.items() if name not in NOISE_NAMES]
    noise = [value for name, value in by_name.items() if name in NOISE_NAMES]
    return {
        "mCE*": np.mean(list(by_name.values()), axis=0),
        "mCE_xN*": np.mean(rest, axis=0),
        "noise*": np.mean(noise, axis=0),
        "impulse*": by_name["impulse_noise"],
    }


def figures(
    networks: list[nn.Module], dataset: Dataset, count: int, corrupted: int, *, lp: bool
) -> tuple[dict[str, np.ndarray], dict[Row, np.ndarray]]:
    """Returns the metrics of each network, and if `lp` its error under each noise of C1."""
    assert isinstance(dataset.test, Split)
    part = dataset.test.select(torch.arange(min(count, len(dataset.test))))
    clean = np.array(errors(networks, part))
    if not lp:
        return {"E": clean, **generated(networks, dataset.test, corrupted)}, {}
    by_row = {}
    for row in named("C1", dataset.shape).rows:
        by_row[row] = np.array(errors(networks, NoisySplit(part, *row)))
    tiny = [by_row[row] for row in named("iCE", dataset.shape).rows]
    noisy = np.mean(list(by_row.values()), axis=0)
    found = {
        "E": clean,
        "mCE_Lp": noisy,
        "mCE_Lp - E": noisy - clean,
        "iCE": np.array([ice([e[i] for e in tiny], clean[i]) for i in range(len(networks))]),
        **generated(networks, dataset.test, corrupted),
    }
    return found, by_row


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=COMMAND)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce_lp"))
    parser.add_argument("--first", action="store_true", help="the claim of the first version")
    parser.add_argument("--only", default="", help="trainings, separated by commas; all if empty")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=1000, help="test images for Lp noise")
    parser.add_argument("--corrupted", type=int, default=300, help="test images on the fly")
    parser.add_argument("overrides", nargs="*", help="key=value")
    given = parser.parse_intermixed_args()
    folder = given.out / given.data
    folder.mkdir(parents=True, exist_ok=True)
    plain = ["train.lr=0.05", "train.clip_norm=null"]  # as published: no clipping
    base = [*plain, *COMMAND[given.data], "certified_fast.every=0", *given.overrides]
    config = compose(leaves_of_arguments([*base, "method.name=standard"]), get)
    dataset = load(config.data)
    plan = first_version() if given.first else trainings(dataset.shape)
    chosen = given.only.split(",") if given.only else list(plan)
    plan = {name: plan[name] for name in chosen}
    networks = [
        trained([*base, *arguments, f"seed={seed}"], folder / f"{name}-{seed}.safetensors")
        for seed in range(given.seeds)
        for name, (arguments, _) in plan.items()
    ]
    found, by_row = figures(networks, dataset, given.examples, given.corrupted, lp=not given.first)
    cut = {key: value.reshape(given.seeds, len(plan)) for key, value in found.items()}
    print(f"\n| training | {' | '.join(cut)} |\n|---|{'---:|' * len(cut)}")
    for number, name in enumerate(plan):
        cells = [interval(value[:, number]) for value in cut.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nLess standard training, paired by seed:\n")
    for number, name in enumerate(plan):
        cells = [interval(value[:, number] - value[:, 0]) for value in cut.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    record = {key: value.tolist() for key, value in cut.items()}
    record["by_row"] = [[p, eps, value.tolist()] for (p, eps), value in by_row.items()]
    record["config"] = configuration.to_dict(config)
    (folder / "figures.json").write_text(json.dumps(record))
    if given.first:
        return 0
    columns = []
    for number, (name, (_, rows)) in enumerate(plan.items()):
        accuracy = {
            p: float(
                np.mean([1 - e[number :: len(plan)] for (q, _), e in by_row.items() if q == p])
            )
            for p in NORMS
        }
        columns.append(Training(name=name, rows=rows, accuracy=accuracy))
    print("\n" + transfer_table(columns, dataset.shape))
    print(f"rank correlation with the prediction: {rank_correlation(columns, dataset.shape):.3f}")
    plot_transfer(columns, dataset.shape, folder / "transfer.png", title=given.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
