"""Flags: ordinary networks have none, defenses that fool attacks have theirs."""

import dataclasses

import pytest
import torch
from nets import SHAPE, Small, Wrapped, examples, protocol, quantized
from test_suite import run
from torch import nn

from raybust.evaluate import AttackRow, flags_of_network, flags_of_rows, summarize

MASK = torch.tensor([0.0, 0.0, 0.0, 0.0, -1e9])


class BatchMean(nn.Module):
    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = shift

    def forward(self, images):
        return Small()(images - images.mean(0)) + self.shift


def names(flags):
    return {flag.name for flag in flags}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Small(), set()),
        (Wrapped(after=lambda z: z.softmax(1)), {"softmax"}),
        (Wrapped(after=lambda z: z + 0.1 * torch.randn_like(z)), {"random"}),
        (BatchMean().eval(), {"batch"}),
        (BatchMean(MASK).eval(), {"batch"}),
        (BatchMean(1e4).eval(), {"batch"}),
        (Wrapped(after=lambda z: z + MASK), set()),
        (Wrapped(after=lambda z: z + 1e4), set()),
        (Wrapped(after=lambda z: z + 0.1 * torch.randn_like(z) + MASK), {"random"}),
    ],
)
def test_networks(network, expected):
    images, _, _ = examples(Small(), 8)
    state = torch.get_rng_state()
    flags = flags_of_network(network, images)
    assert names(flags) == expected
    assert torch.equal(state, torch.get_rng_state())
    assert all("\n" not in flag.text for flag in flags)


def test_quantization_masks_gradients():
    plan = protocol(eps=(0.13,), attacks=("fgsm", "pgd", "square"), queries=300)
    found = names(summarize(run(quantized(), plan), plan).flags)
    assert "flat_gradients" in found
    assert "black_box" in found


def test_saturation_survives_the_largest_radius():
    """Logits so large that the cross entropy is flat in float32."""
    network = Wrapped(after=lambda z: 1e6 * z)
    plan = protocol(attacks=("fgsm", "pgd"))
    found = names(summarize(run(network, plan), plan).flags)
    assert "flat_gradients" in found


def test_eps_1_leaves_nobody_standing_on_an_honest_network():
    plan = protocol()
    summary = summarize(run(Small(), plan), plan)
    assert summary.points[-1].eps == 1.0
    assert summary.points[-1].robust == 0.0
    assert not summary.flags


def rows(plan, count, **outcomes):
    """Rows at one radius in which consecutive attacks broke that many examples."""
    made, at = [], 0
    for name, broken in outcomes.items():
        for _ in range(broken):
            made.append(AttackRow(idx=at, eps=plan.eps[0], label=0, predict=0, becomes=1, step=1,
                                  broken_by=name, attacks=((name, 1),)))  # fmt: skip
            at += 1
    made += [AttackRow(idx=i, eps=plan.eps[0], label=0, predict=0, becomes=0, step=-1)
             for i in range(at, count)]  # fmt: skip
    return made


def test_thresholds():
    plan = protocol(1000, eps=(0.1,), sanity=False)
    assert not flags_of_rows(rows(plan, 1000, pgd=400, square=2), plan)
    assert names(flags_of_rows(rows(plan, 1000, pgd=400, square=3), plan)) == {"black_box"}
    assert names(flags_of_rows(rows(plan, 1000, fgsm=90, pgd=80), plan)) == {"steps"}
    assert names(flags_of_rows(rows(plan, 1000, autoattack=4), plan)) == {"reference"}


def test_survivors_of_the_largest_radius():
    plan = protocol(100, eps=(0.1,))
    last = [AttackRow(idx=i, eps=1.0, label=0, predict=0, becomes=0) for i in range(100)]
    assert names(flags_of_rows(rows(plan, 100) + last, plan)) == {"large_eps"}
    assert SHAPE == (1, 6, 6)


def test_flags_name_no_attack_that_did_not_run():
    """Square alone, or FAB alone, broke nothing that others had not."""
    alone = protocol(100, eps=(0.1,), attacks=("square",), sanity=False)
    assert names(flags_of_rows(rows(alone, 100, square=30), alone)) == {"black_box_only"}
    nearest = protocol(100, eps=(0.1,), attacks=("fab-t",), sanity=False)
    made = [dataclasses.replace(row, broken_by="fab-t", attacks=(("fab-t", 1),))
            if row.broken_by == "pgd" else row
            for row in rows(nearest, 100, pgd=30)]  # fmt: skip
    assert "minimum_norm" not in names(flags_of_rows(made, nearest))
