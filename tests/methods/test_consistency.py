"""Consistency regularization: closed form, gradients, saturated predictions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from raybust.methods import StepContext
from raybust.methods.consistency import Consistency

LABELS = torch.tensor([0, 2])


class Fixed(nn.Module):
    """Returns fixed logits (m, B, K) for the m copies of a batch."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits.flatten(0, 1)


def loss(logits, method, labels=LABELS):
    images = torch.zeros(logits.shape[1], 1, 2, 2, dtype=logits.dtype)
    context = StepContext(torch.Generator().manual_seed(0))
    return method.loss(Fixed(logits), images, labels, context)


def written_out(logits, method):
    """The authors' code, copy by copy."""
    m = len(logits)
    softmax = [F.softmax(logit, 1) for logit in logits]
    average = sum(softmax) / m
    fit = F.cross_entropy(logits.flatten(0, 1), LABELS.repeat(m))
    kl = sum(
        F.kl_div(logit.log_softmax(1), average, reduction="none").sum(1) for logit in logits
    )  # fmt: skip
    entropy = -(average * average.clamp(min=1e-20).log()).sum(1)
    return fit + (method.weight * kl / m + method.eta * entropy).mean()


@pytest.mark.parametrize("m", [2, 3])
def test_against_the_loss_written_out(m):
    logits = torch.randn(m, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    method = Consistency(m=m, weight=7.0, eta=0.3)
    torch.testing.assert_close(loss(logits, method), written_out(logits, method))


def test_identical_copies_leave_only_the_entropy():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]).double().expand(2, -1, -1)
    fit = F.cross_entropy(logits[0], LABELS)
    torch.testing.assert_close(loss(logits, Consistency(eta=0.0)), fit)
    entropy = -(logits[0].softmax(1) * logits[0].log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, Consistency(eta=0.5)), fit + entropy / 2)


def test_gradients():
    logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert gradcheck(lambda u: loss(u, Consistency()), (logits.requires_grad_(),))


def test_saturated_predictions_are_finite():
    logits = torch.zeros(2, 2, 3)
    logits[0, :, 0], logits[1, :, 1] = 1e4, 1e4
    logits.requires_grad_()
    found = loss(logits, Consistency())
    found.backward()
    assert found.isfinite()
    assert logits.grad.isfinite().all()


def test_soft_targets():
    logits = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(LABELS, 3).float()
    torch.testing.assert_close(loss(logits, Consistency()), loss(logits, Consistency(), one_hot))
