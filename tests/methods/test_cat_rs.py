"""CAT-RS against its formulas, and its teacher."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from small_run import small_run
from test_pgd import Watcher, step

from raybust import config as configuration
from raybust import data, methods
from raybust.disk import checkpoint
from raybust.errors import RequestError
from raybust.methods import StepContext
from raybust.methods.cat_rs import CatRs
from raybust.numerics.balls import normal
from raybust.training import initial
from raybust.training.fit import fit


def scaled(factor):
    """A network whose copies agree (large) or not (small), and a step on it."""
    network = Watcher()
    with torch.no_grad():
        network.linear.weight.mul_(factor)
    return network


def run(method, network, labels=None, teach=None, seed=0):
    images = torch.rand(32, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    if labels is None:
        labels = network.linear(images.flatten(1)).argmax(1)
    network.seen.clear()
    context = StepContext(torch.Generator().manual_seed(seed), 0.5, teach=teach)
    return images, labels, method.loss(network, images, labels, context), context


def test_with_confidence_in_every_image_and_weight_0_it_is_gaussian_training():
    """K = m everywhere: the noise is too small to change a vote."""
    network = scaled(1.0)
    method = CatRs(sigma=1e-6, weight=0, m=4)
    _, labels, loss, context = run(method, network)
    assert context.metrics["cat_rs/confident"] == 1
    expected = F.cross_entropy(network(network.seen[0][0]), labels.repeat(4))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_smallest_losses_count_up_to_k_of_m():
    """No right vote: K = 1, the smallest loss, over m."""
    network = scaled(1.0)
    method = CatRs(sigma=1e-6, weight=3.0, m=4, steps=1)
    images = torch.rand(32, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    wrong = network.linear(images.flatten(1)).argmin(1)
    _, labels, loss, context = run(method, network, labels=wrong)
    losses = F.cross_entropy(network(network.seen[0][0]), labels.repeat(4), reduction="none")
    expected = losses.unflatten(0, (4, 32)).amin(0).mean() / 4
    assert context.metrics["cat_rs/confident"] == 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_k_is_binomial_with_the_share_of_right_votes():
    """For a teacher that votes for the label with a share of 3/4, P(K = m) = (3/4)^m."""
    votes = torch.tensor([0.75, 0.25, 0.0])
    rows = torch.multinomial(
        votes.expand(32 * 2000, 3), 1, generator=torch.Generator().manual_seed(3)
    )
    place = iter(rows.reshape(-1, 32 * 4).split(1))

    def teach(noisy):
        return F.one_hot(next(place)[0], 3).float()

    method = CatRs(weight=0, m=2, teacher="run", votes=4, confidence="teacher")
    found = []
    for seed in range(200):
        network = scaled(1.0)
        labels = torch.zeros(32, dtype=torch.int64)
        *_, context = run(method, network, labels=labels, teach=teach, seed=seed)
        found.append(float(context.metrics["cat_rs/confident"]))
    # E over votes of (share)^2: (3/4)^2 + Var(share) = 0.5625 + (3/16) / 4
    assert sum(found) / len(found) == pytest.approx(0.5625 + 3 / 64, abs=0.03)


def test_the_worst_divergence_from_the_teacher_counts_where_all_agree():
    network = scaled(1.0)
    q = torch.tensor([0.5, 0.25, 0.25])

    def teach(noisy):  # one vote in two for the first class, one in four for the others
        classes = torch.arange(len(noisy)) // 32 % 4
        return F.one_hot((classes - 1).clamp(min=0), 3).float()

    method = CatRs(sigma=1e-3, weight=2.0, m=3, steps=2, eps=0.5, teacher="run", votes=4)
    _, labels, loss, context = run(method, network, teach=teach)
    confident = context.metrics["cat_rs/confident"]
    assert confident == 1
    copies, moved = network.seen[0][0], network.seen[-1][0]
    fit = F.cross_entropy(network(copies), labels.repeat(3))
    p = network(moved).softmax(1).unflatten(0, (3, 32))
    worst = (q * (q.log() - p.log())).sum(2).amax(0).mean()
    assert loss.item() == pytest.approx((fit + 2.0 * worst).item(), rel=1e-4)
    modes = [mode for _, mode in network.seen[: 1 + 2 + 1]]
    assert modes == [True, False, False, True]
    before = network(copies).softmax(1).unflatten(0, (3, 32))
    assert worst > (q * (q.log() - before.log())).sum(2).amax(0).mean()


def test_the_attack_keeps_mean_and_mean_square_of_the_noise():
    network = scaled(0.2)
    method = CatRs(sigma=0.5, m=2, steps=4, eps=0.7)
    images, *_ = run(method, network)
    noise = 0.5 * normal(torch.zeros(64, 3, 2, 2), torch.Generator().manual_seed(0))
    moved = network.seen[-1][0] - images.repeat(2, 1, 1, 1)
    assert (moved - noise).abs().max() > 0.05
    for power in (1, 2):
        torch.testing.assert_close(
            moved.pow(power).mean((1, 2, 3)), noise.pow(power).mean((1, 2, 3)), atol=0.02, rtol=0.05
        )


def test_the_first_step_is_that_of_the_authors_code():
    """By hand: gradient, step of 2 eps / steps, ball, mean and mean square put back."""
    network = scaled(0.2)
    method = CatRs(sigma=0.5, m=1, steps=1, eps=0.4, weight=1.0)
    images, *_ = run(method, network)
    noise = (network.seen[0][0] - images).requires_grad_()
    logits = network(images + noise)
    votes = F.one_hot(logits.argmax(1), 3).float()
    loss = -(votes * logits.log_softmax(1)).sum()
    gradient = torch.autograd.grad(loss, noise)[0]
    gradient = gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    eta = (0.8 * gradient).flatten(1).renorm(2, 0, 0.4).reshape(noise.shape)
    moved = noise.detach() + eta
    mean, rms = moved.mean((1, 2, 3), True), moved.square().mean((1, 2, 3), True).sqrt()
    first, size = noise.mean((1, 2, 3), True), noise.square().mean((1, 2, 3), True).sqrt()
    expected = first + (moved - mean) / rms * size
    found = network.seen[2][0] - images
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-3)


def test_a_run_teaches(tmp_path):
    """The teacher is the run's network in eval mode, frozen; two epochs resume bit for bit."""
    folder = small_run(tmp_path / "teacher", train__epochs=1)
    given = [
        "method.name=cat_rs", f"method.teacher={folder}", "method.m=2", "method.steps=1",
        "method.votes=2", "model.width=8", "train.epochs=2", "train.batch_size=64",
        "data.limit=128", "certified_fast.every=0", f"out={tmp_path}",
    ]  # fmt: skip
    config = configuration.compose(configuration.leaves_of_arguments(given), methods.get)
    dataset = data.load(config.data)
    teach = initial.teacher(config, dataset, "cpu")
    images = dataset.test.fetch(range(4))[0]
    logits = teach(images)
    assert not logits.requires_grad
    weights = checkpoint.read_weights(checkpoint.newest(folder))
    states = list(fit(config, dataset, torch.device("cpu")))
    mine = states[-1].save.__self__.network.state_dict()
    assert set(mine) == set(weights)
    assert torch.equal(teach(images), logits)
    assert not torch.equal(mine["network.0.weight"], weights["network.0.weight"])
    digest = initial.inputs_digest(config, "d")
    assert digest.startswith("d+")
    other = dataclasses.replace(dataset, classes=tuple("abcdefghij"))
    with pytest.raises(RequestError, match=r"method\.teacher: .* has the classes 0, 1"):
        initial.teacher(config, other, "cpu")


def test_votes_of_a_teacher_need_one():
    with pytest.raises(RequestError, match="confidence: got 'teacher'"):
        CatRs(confidence="teacher")


def test_a_plain_step_needs_no_teacher():
    assert torch.isfinite(step(CatRs())[3])
