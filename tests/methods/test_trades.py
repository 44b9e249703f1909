"""TRADES against its formula."""

import pytest
import torch
import torch.nn.functional as F
from test_pgd import step

from raybust.errors import RequestError
from raybust.methods.trades import Trades


def test_the_loss_is_its_two_terms():
    network, images, labels, loss, context = step(Trades(beta=3.0, eps=0.1, steps=4))
    assert [mode for _, mode in network.seen] == [False] * 5 + [True] * 2
    torch.testing.assert_close(network.seen[0][0], images)
    worst = network.seen[-1][0]
    clean = network(images)
    p, q = clean.softmax(1), network(worst).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = F.cross_entropy(clean, labels) + 3.0 * divergence
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert context.metrics["train/divergence"].item() == pytest.approx(divergence.item(), rel=1e-4)
    assert (worst - images).abs().max() <= 0.1 + 1e-6


def test_the_attack_needs_no_labels_and_raises_the_divergence():
    network, images, *_ = step(Trades(eps=0.1))
    moved = [
        F.kl_div(network(point).log_softmax(1), network(images).softmax(1), reduction="sum")
        for point in (network.seen[1][0], network.seen[-1][0])
    ]
    assert moved[0] < 0.01 * moved[1]


def test_both_terms_reach_the_weights():
    """The divergence's gradient goes through both of its sides, as in the authors' code."""
    network, images, labels, loss, _ = step(Trades(beta=2.0, eps=0.1, steps=2))
    loss.backward()
    ours = network.linear.weight.grad.clone()
    network.zero_grad()
    worst = network.seen[-1][0]
    clean = network(images)
    term = F.kl_div(network(worst).log_softmax(1), clean.softmax(1), reduction="batchmean")
    (F.cross_entropy(clean, labels) + 2.0 * term).backward()
    torch.testing.assert_close(ours, network.linear.weight.grad)


def test_the_center_is_refused():
    with pytest.raises(RequestError, match="start: got 'center'"):
        Trades(start="center")
