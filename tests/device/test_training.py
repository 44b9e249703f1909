"""Every method trains on a device that is not the CPU as on the CPU, without waiting for it."""

import dataclasses
import typing

import pretend
import pytest
import torch
from few import few_digits

from raybust import config as configuration
from raybust import methods
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.numerics.transport import pairs
from raybust.training.fit import fit
from raybust.training.loop import Trainer

CPU, DEVICE = torch.device("cpu"), torch.device("pretend")
SMALL = (
    "model.width=4", "train.batch_size=20", "train.epochs=2", "train.lr=0.05",
    "certified_fast.examples=8", "certified_fast.n=100", "attacked_fast.every=1",
    "attacked_fast.examples=8", "attacked_fast.eps=0.05",
)  # fmt: skip
OTHER_NOISE = {"lp_noise"}
"""Draws on a GPU in another way than on the CPU: all rows at once."""
READS = {
    "geodesic": 3,  # whether all is finite; labels and seed of the pairs; costs of the transport
}
"""Reads per step of methods that need values on the host; 0 for all others."""
FEWER = {("lp_noise", "augment"): (2, 1), ("lp_noise", "mix"): (1, 0)}
"""Reads and waiting copies of torchvision's augmentations, which run on the CPU or draw there."""
PROJECTION = 6
"""Most reads per attack step with a projection onto an L1 ball, which iterates."""


def make(*settings):
    return configuration.compose(
        configuration.leaves_of_arguments([*SMALL, *settings]), methods.get
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few():
    return few_digits()


def choices(method):
    """Yields each setting of a method that is one of a few values, with each value."""
    yield None, None
    for name, hint in typing.get_type_hints(method).items():
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is typing.Literal:
                yield from ((name, value) for value in typing.get_args(part))
        if hint is bool:
            yield from ((name, value) for value in (True, False))


def cases():
    """Every method at its defaults, and with each value of each choice that is allowed alone."""
    for key in methods.names():
        seen = set()
        for name, value in choices(methods.get(key)):
            shown = str(value).lower() if isinstance(value, bool) else value
            change = () if name is None else (f"method.{name}={shown}",)
            try:
                config = make(f"method.name={key}", *change)
            except RequestError:
                continue
            if repr(config.method) not in seen:
                seen.add(repr(config.method))
                yield pytest.param(config, name, id="-".join([key, *change]))


def steps(config, few, device, count=2):
    """Losses, kernels, reads and waiting copies of the first steps."""
    trainer = Trainer(config, few, device)
    trainer.objective.train()
    trainer.generator.manual_seed(5)
    torch.manual_seed(3)
    found = []
    for number, (images, labels) in zip(range(count), trainer.batches.epoch(0), strict=False):
        with pretend.counted() as counts:
            loss = trainer.step(images, labels, 0.4 + 0.1 * number)
        assert loss.device.type == device.type
        found.append((float(loss), counts))
    return found


@pytest.mark.parametrize(("config", "changed"), list(cases()))
def test_a_step_of_every_method(config, changed, few, monkeypatch):
    """Same losses as on the CPU, and no read that the host would wait for."""
    seeded = pairs.on_host_with

    def as_on_a_device(generator, labels):
        if generator.device.type != "cpu":
            return seeded(generator, labels)
        seed = torch.randint(2**62, (1,), generator=generator)
        return torch.Generator().manual_seed(int(seed)), labels

    monkeypatch.setattr(pairs, "on_host_with", as_on_a_device)
    key = config.method.key
    there = steps(config, few, DEVICE)
    for (loss, _), (expected, _) in zip(there, steps(config, few, CPU), strict=True):
        if key not in OTHER_NOISE:
            assert loss == pytest.approx(expected, rel=1e-4)
        assert loss < 100
    counts = there[-1][1]
    reads, writes = FEWER.get((key, changed), (READS.get(key, 0), 0))
    if getattr(config.method, "norm", None) == "l1" or getattr(config.method, "l1", None):
        reads = PROJECTION * (config.method.steps + 1)
    assert (counts.reads <= reads, counts.writes) == (True, writes), counts


def test_the_wrong_device_is_found():
    """What these tests rely on: the faults fail here as they would on a GPU."""
    network = torch.nn.Linear(2, 2).to(DEVICE)
    with pytest.raises(RuntimeError, match="two devices"):
        network(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, generator=torch.Generator(), device=DEVICE)
    with pretend.counted() as counts:
        float(network(torch.ones(1, 2).to(DEVICE)).sum())
    assert (counts.reads, counts.writes) == (1, 1)


@pytest.mark.parametrize("method", ["standard", "pgd", "geodesic", "covariance"])
def test_an_epoch_with_validation_average_and_parts(method, few):
    """Metrics of two epochs agree with the CPU's, cheap certificate and cheap attack included."""
    config = make(
        f"method.name={method}", "train.ema=0.9", "train.accumulate=2", "train.clip_norm=1",
        "certified_fast.moment=true", "certify.sigma=0.25",
    )  # fmt: skip
    there, here = (list(fit(config, few, device)) for device in (DEVICE, CPU))
    for one, other in zip(there, here, strict=True):
        assert one.metrics.keys() == other.metrics.keys()
        if method == "geodesic":
            continue
        for key, value in one.metrics.items():
            if "second" not in key:
                assert value == pytest.approx(other.metrics[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize(
    "method", [("method.name=pgd",), ("method.name=geodesic", "method.refresh=2")]
)
def test_resume_is_exact(few, method, tmp_path):
    config = make(*method, "train.ema=0.9")
    (first, last) = fit(config, few, DEVICE)
    whole = last.save.__self__.average.state_dict()
    epochs = fit(config, few, DEVICE)
    next(epochs).save(tmp_path)
    (resumed,) = fit(config, few, DEVICE, tmp_path)
    for key, value in resumed.save.__self__.average.state_dict().items():
        assert torch.equal(value.cpu(), whole[key].cpu()), key
    assert first.epoch == 1
    assert {tensor.device.type for tensor in checkpoint.read_weights(tmp_path).values()} == {"cpu"}


@pytest.mark.parametrize(("penalty", "reads"), [(0.0, 1), (0.1, 2)])
def test_a_step_with_stored_images_reads_less(few, penalty, reads):
    """Whether all is finite, and with a penalty which geodesics it takes."""
    settings = ("method.name=geodesic", "method.refresh=1", "method.warmup=0", "method.ramp=0")
    trainer = Trainer(make(*settings, f"method.penalty={penalty}"), few, DEVICE)
    trainer.objective.train()
    trainer.begin_round()
    images, labels = next(iter(trainer.batches.epoch(0)))
    trainer.step(images, labels, 0.5)
    with pretend.counted() as counts:
        trainer.step(images, labels, 0.5)
    assert counts.reads == reads


def test_a_budget_in_passes_reads_nothing(few):
    config = dataclasses.replace(make("method.name=pgd", "train.passes=50"))
    trainer = Trainer(config, few, DEVICE)
    images, labels = next(iter(trainer.batches.epoch(0)))
    trainer.step(images, labels, 0.0)
    with pretend.counted() as counts:
        trainer._spent(1, 0.1)
    assert (counts.reads, counts.writes) == (0, 0)
