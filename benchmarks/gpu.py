"""A real GPU in five minutes: does it compute what the CPU does, and how fast?

Parts run in the order of their value, each within its own time limit; every figure is one JSON
line as it comes, and a part that fails is a line too. Without a GPU the same parts run at toy size
on the CPU, so that the script is known to work. `make gpu`, or `python benchmarks/gpu.py PART...`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _figures import figure, paired
from loop import BareLoop, random_images
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raybust import config as configuration
from raybust import data, devices, methods
from raybust.certification import Protocol, certify_examples
from raybust.certification.protocol import default_batch
from raybust.config import Config
from raybust.config.assess import Evaluate
from raybust.config.inputs import Model
from raybust.data import Dataset
from raybust.evaluate import attack_examples, make_attack_protocol
from raybust.models import build
from raybust.training.loop import Trainer
from raybust.training.objective import assemble

DEVICE = devices.local()
CPU = torch.device("cpu")
ON_GPU = DEVICE.type == devices.GPU
STEPS, RUNS = (50, 5) if ON_GPU else (2, 1)
PRECISIONS: tuple[devices.Precision, ...] = ("tf32", "float32", "bf16") if ON_GPU else ("float32",)
LIMITS = {
    "losses": 60, "certificates": 20, "attacks": 30, "sweep": 90, "certify": 40, "loop": 40,
    "pgd": 30, "steps": 60,
}  # fmt: skip
"""Parts, in the order of their value, and their seconds."""


def note(**record: Any) -> None:
    """Prints one line that is no figure."""
    print(json.dumps(record), flush=True)


def wait() -> None:
    """Waits until the device is done."""
    if ON_GPU:
        torch.cuda.synchronize()


def compose(*settings: str) -> Config:
    """Returns a configuration."""
    return configuration.compose(configuration.leaves_of_arguments(settings), methods.get)


class HostNoise(TorchFunctionMode):
    """Draws on the CPU what is drawn from a generator of the GPU, whose algorithm differs, so that
    both devices compute with the same noise."""

    def __init__(self) -> None:
        super().__init__()
        self.twins: dict[int, tuple[int, torch.Generator]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        own = kwargs.get("generator")
        if own is None or own.device.type == "cpu":
            return func(*args, **kwargs)
        seed, twin = self.twins.get(id(own), (-1, torch.Generator()))
        if own.initial_seed() != seed:
            seed = own.initial_seed()
            twin.manual_seed(seed)
        self.twins[id(own)] = seed, twin
        kwargs = {**kwargs, "generator": twin}
        if args and isinstance(args[0], Tensor):  # in place, like normal_
            drawn = func(args[0].cpu(), *args[1:], **kwargs)
            return args[0].copy_(drawn)
        target = kwargs.pop("device", DEVICE)
        return func(*args, **kwargs).to(target)


# Correctness


def losses() -> None:
    """Losses of the first steps of every method, float32, against the CPU's."""
    dataset = data.load(compose("method.name=standard").data)
    for name in methods.names():
        if name == "lp_noise":  # draws on a GPU in another way: all rows at once
            continue
        settings = (f"method.name={name}", "model.width=8", "train.precision=float32",
                    "train.batch_size=64", "train.lr=0.01")  # fmt: skip
        config, found = compose(*settings), []
        for device in (CPU, DEVICE):
            trainer = Trainer(config, dataset, device)
            trainer.objective.train()
            trainer.generator.manual_seed(1)
            torch.manual_seed(1)
            noise = HostNoise() if device.type != "cpu" else torch.overrides.BaseTorchFunctionMode()
            with noise, devices.arithmetic(device):
                batches = trainer.batches.epoch(0)
                steps = [
                    float(trainer.step(*batch, number / 100))
                    for number, batch in zip(range(min(STEPS, 20)), batches, strict=False)
                ]
            found.append(steps)
        worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(*found, strict=True))
        figure(f"losses/{name}: largest relative difference from the CPU", [worst], "", "<= 0.001")


def _network(device: torch.device, name: str = "small_cnn", shape: Any = (1, 8, 8)) -> nn.Module:
    torch.manual_seed(0)
    model = Model(name=name)
    mean, std = (0.3,) * shape[0], (0.35,) * shape[0]
    made = build(model, shape=shape, num_classes=10, mean=mean, std=std)
    return made.to(device).eval()


def _trained() -> tuple[nn.Module, Dataset]:
    config = compose("method.name=gaussian", "method.sigma=0.25", "model.width=8",
                     "train.precision=float32", "certified_fast.every=0")  # fmt: skip
    dataset = data.load(config.data)
    trainer = Trainer(config, dataset, CPU)
    for _ in range(3):
        trainer.train_epoch()
    return trainer.average.eval(), dataset


def certificates() -> None:
    """Counts of a trained network against the CPU's, at the same noise."""
    network, dataset = _trained()
    count = 40 if ON_GPU else 4
    images, labels = dataset.test.fetch(range(count))
    found = []
    for device in (CPU, DEVICE):
        protocol = Protocol(sigma=0.25, shape=(1, 8, 8), n=1000, batch=100, device=device.type)
        noise = HostNoise() if device.type != "cpu" else torch.overrides.BaseTorchFunctionMode()
        with noise:
            rows = certify_examples(
                network.to(device), images.to(device), labels.to(device), range(count), protocol
            )
            found.append({row.idx: row.count for row in rows})
    away = [abs(found[0][idx] - found[1][idx]) for idx in found[0]]
    figure("certificates: largest difference of a count of 1,000", [max(away)], "", "<= 5")


def attacks() -> None:
    """Robust accuracy of the l2 ensemble on digits, and its seconds, on both devices."""
    network, dataset = _trained()
    count = 100 if ON_GPU else 10
    images, labels = dataset.test.fetch(range(count))
    robust, seconds = [], []
    for device in (CPU, DEVICE):
        config = Evaluate(norm="l2", eps=(0.5,), steps=100 if ON_GPU else 5, queries=500)
        plan = make_attack_protocol(
            config, shape=(1, 8, 8), total=count, device=device.type, dataset="digits"
        )
        batch = network.to(device), images.to(device), labels.to(device)
        began = time.perf_counter()
        rows = attack_examples(*batch, range(count), plan)
        seconds.append(time.perf_counter() - began)
        robust.append(sum(row.robust for row in rows if row.eps == 0.5))
    goal = "<= 1" if ON_GPU else ""
    figure("attacks: examples whose outcome differs", [abs(robust[0] - robust[1])], "", goal)
    figure("attacks: l2 ensemble on 100 digits", [seconds[1]], "s", "<= 2" if ON_GPU else "")
    figure("attacks: the same on this machine's CPU", [seconds[0]], "s")


def sweep() -> None:
    """The quickstart sweep with its finalists, as a user starts it; seconds by part."""
    toy = ("tune.trials=1", "train.epochs=1", "tune.finalists=1", "certify.examples=4",
           "certify.n=200", "evaluate.examples=4", "evaluate.steps=2")  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        command = [sys.executable, "-m", "raybust", "tune", "quickstart", "--out", out]
        with subprocess.Popen(
            [*command, *(() if ON_GPU else toy)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        ) as process:  # fmt: skip
            marks, last = [], ""
            for line in process.stderr or ():
                if line.startswith(("certifying", "attacking")):
                    marks.append((line.strip(), time.perf_counter() - began))
                last = line.strip() or last
        total = time.perf_counter() - began
    note(part="sweep", marks=[[text, round(at, 1)] for text, at in marks], last=last,
         code=process.returncode)  # fmt: skip
    if process.returncode == 0:
        ends = [at for _, at in marks[1:]] + [total]
        each = [end - at for (text, at), end in zip(marks, ends, strict=True) if "certif" in text]
        figure("sweep: certifying a finalist, 359 digits", each, "s", "<= 10" if ON_GPU else "")
        figure("sweep: from the command to its end", [total], "s")


# Speed


def certify() -> None:
    """Draws per second of the certifier over plain batched passes in the same arithmetic."""
    for name in ("resnet20", "resnet110") if ON_GPU else ("resnet20",):
        shape = (3, 32, 32)
        network = _network(DEVICE, name, shape).to(memory_format=torch.channels_last)
        images, labels = torch.rand(20, *shape, device=DEVICE), torch.zeros(20, dtype=torch.long)
        batch, draws = default_batch(shape, DEVICE.type), 100_000 if ON_GPU else 300
        for precision in PRECISIONS:
            goal = {"bf16": ">= 0.95"}.get(precision, ">= 0.9") if ON_GPU else ""
            protocol = Protocol(sigma=0.25, shape=shape, n=draws, batch=batch, precision=precision,
                                device=DEVICE.type)  # fmt: skip
            rows = certify_examples(network, images, labels, range(20), protocol)

            def ours(rows: Iterator[Any] = rows) -> None:
                next(rows)
                wait()

            plain = _plain(network, batch, draws, precision)
            mine, bare = paired(ours, plain, RUNS)
            rates = [b / a for a, b in zip(mine, bare, strict=True)]
            figure(f"certify/{name}, {precision}: over plain passes", rates, "ratio", goal)
            figure(f"certify/{name}, {precision}", [draws / one for one in mine], "draws/s")


def _plain(network: nn.Module, batch: int, draws: int, precision: Any) -> Callable[[], None]:
    images = torch.rand(batch, 3, 32, 32, device=DEVICE).contiguous(
        memory_format=torch.channels_last
    )

    @torch.inference_mode()
    def run() -> None:
        with devices.arithmetic(DEVICE, precision):
            for _ in range(-(-draws // batch)):
                network(images)
        wait()

    return run


def loop() -> None:
    """Images per second of the loop over a bare one, bf16; time in which the GPU works."""
    name = "preactresnet18" if ON_GPU else "small_cnn"
    for size in (128, 512) if ON_GPU else (16,):
        settings = (f"model.name={name}", f"train.batch_size={size}", "train.epochs=1000",
                    "method.name=standard")  # fmt: skip
        config = compose(*settings)
        dataset = random_images(size * (40 if ON_GPU else 2))
        trainer = Trainer(config, dataset, DEVICE)
        bare = BareLoop(assemble(config, dataset).to(DEVICE), dataset)
        bare.images, bare.labels = bare.images.to(DEVICE), bare.labels.to(DEVICE)

        def plain(bare: BareLoop = bare) -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
                bare.epoch()
            wait()

        ours, theirs = paired(trainer.train_epoch, plain, RUNS)
        rates = [b / a for a, b in zip(ours, theirs, strict=True)]
        figure(f"loop/{name}, batch {size}: over a bare loop", rates, "ratio", ">= 1")
        figure(f"loop/{name}, batch {size}", [len(dataset.train) / a for a in ours], "images/s")


def pgd() -> None:
    """Seconds of PGD-10 training for an epoch of 50,000 images, from a few steps."""
    name, size = ("preactresnet18", 128) if ON_GPU else ("small_cnn", 8)
    config = compose(f"model.name={name}", f"train.batch_size={size}", "method.name=pgd")
    trainer = Trainer(config, random_images(size * 12), DEVICE)
    trainer.train_epoch()
    seconds = []
    for _ in range(3 if ON_GPU else 1):
        began = time.perf_counter()
        trainer.train_epoch()
        wait()
        seconds.append((time.perf_counter() - began) / (size * 12) * 50_000)
    figure("pgd: an epoch of 50,000 images, 10 steps", seconds, "s", "<= 8" if ON_GPU else "")


def steps() -> None:
    """Seconds of a step of each method over `gaussian`'s, kernels, reads, and peak memory."""
    name = "preactresnet18" if ON_GPU else "small_cnn"
    size = 128 if ON_GPU else 16
    dataset, base = random_images(size * 4), 0.0
    for method in sorted(methods.names(), key=lambda one: one != "gaussian"):
        config = compose(f"model.name={name}", f"train.batch_size={size}", f"method.name={method}")
        trainer = Trainer(config, dataset, DEVICE)
        trainer.objective.train()
        images, labels = next(iter(trainer.batches.epoch(0)))
        trainer.step(images, labels, 0.5)
        devices.watch_memory(DEVICE)
        wait()
        began = time.perf_counter()
        for _ in range(3):
            trainer.step(images, labels, 0.5)
        wait()
        seconds = (time.perf_counter() - began) / 3
        base = base or seconds
        record = {"step over gaussian": round(seconds / base, 3), **devices.peak_memory(DEVICE)}
        note(part="steps", method=method, **record, **_events(trainer, images, labels))


def _events(trainer: Trainer, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns launches, reads and busy share of a step on a GPU."""
    if not ON_GPU:
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        began = time.perf_counter()
        trainer.step(images, labels, 0.5)
        wait()
        span = time.perf_counter() - began
    events = found.key_averages()
    launches = sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
    reads = sum(e.count for e in events if "DtoH" in e.key)
    busy = sum(e.self_device_time_total for e in events) / 1e6
    return {"launches": launches, "reads": reads, "busy": round(busy / span, 3)}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError after some seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main(names: list[str]) -> int:
    """Runs the named parts, all by default; returns the number that failed."""
    name = torch.cuda.get_device_name(DEVICE) if ON_GPU else "no GPU, toy size on the CPU"
    note(device=name, torch=torch.__version__, date=time.strftime("%Y-%m-%d"))
    failed = 0
    for part in names or LIMITS:
        began = time.perf_counter()
        try:
            with limited(LIMITS[part]):
                globals()[part]()
        except Exception as error:  # the other parts still run
            failed += 1
            note(part=part, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        note(part=part, seconds=round(time.perf_counter() - began, 1))
        devices.free_memory(DEVICE)
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
