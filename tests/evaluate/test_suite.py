"""Rows of a shard: order of accuracies, independence of sharding, rejected requests."""

import copy
import dataclasses
import importlib.util

import pytest
import torch
from nets import Small, Wrapped, examples, protocol, quantized
from torch import nn

from raybust.config.assess import Evaluate
from raybust.errors import RequestError, WorkError
from raybust.evaluate import (
    AttackRow,
    attack_examples,
    check_classes,
    check_request,
    flags_of_network,
    suite,
    summarize,
)
from raybust.numerics.attacks import has_gradient
from raybust.numerics.balls import Threat

NORMS = {"linf": (0.01, 0.03), "l2": (0.05, 0.15), "l1": (0.1, 0.4)}


def run(network, plan, count=30, known=None):
    images, labels, indices = examples(known or network, count)
    rows = []
    for at in plan.shards():
        part = slice(at.start, at.stop)
        rows += attack_examples(network, images[part], labels[part], indices[part], plan)
    return sorted(rows, key=lambda row: (row.idx, row.eps))


@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_accuracies(norm):
    """robust <= each attack <= clean at each radius, and decreasing in the radius."""
    plan = protocol(norm=norm, eps=NORMS[norm], every=True)
    rows = run(Small(), plan)
    summary = summarize(rows, plan)
    assert summary.clean == pytest.approx(0.9)
    for point in summary.points[:-1]:
        assert set(point.own) == set(plan.attacks)
        assert point.robust <= min(point.own.values()) + 1e-9
        assert point.own["apgd-t"] <= point.own["pgd"] <= point.own["fgsm"] + 1e-9
        assert max(point.own.values()) <= summary.clean
        after = list(point.after.values())
        assert after == sorted(after, reverse=True)
        assert after[-1] == pytest.approx(point.robust)
    robust = [point.robust for point in summary.points]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[1] > robust[-1] == 0.0
    assert not summary.flags


def test_rows_say_what_happened():
    plan = protocol()
    network = Small()
    images, labels, indices = examples(network)
    rows = run(network, plan)
    assert len(rows) == 3 * 30
    for row in rows:
        at = indices.index(row.idx)
        assert row.label == labels[at]
        assert row.predict == network(images[at : at + 1]).argmax()
        if row.broken_by == "clean":
            assert (row.predict != row.label, row.step, row.distance) == (True, -1, 0.0)
            assert not row.attacks
        elif row.robust:
            assert (row.step, row.distance, row.becomes) == (-1, 0.0, row.label)
            assert all(step == -1 for _, step in row.attacks)
        else:
            assert 0 < row.distance <= row.eps + 1e-6
            assert row.becomes != row.label
        assert AttackRow.parse(row.line()) == row
    cascade = [row for row in rows if row.eps == 0.03 and row.broken_by == "pgd"]
    assert all("apgd-ce" not in dict(row.attacks) for row in cascade), "done is done"


def test_the_cascade_and_every_attack_agree():
    cheap, dear = (run(Small(), protocol(every=every)) for every in (False, True))
    assert [row.robust for row in cheap] == [row.robust for row in dear]
    assert [row.broken_by for row in cheap] == [row.broken_by for row in dear]


def test_rows_do_not_depend_on_the_rest_of_the_shard():
    """Draws are keyed: batches and single examples differ only by rounding, and not in float64."""
    network = Small().double()
    images, labels, indices = examples(Small(), 12)
    images = images.double()
    plan = protocol(12)
    whole = attack_examples(network, images, labels, indices, plan)
    for at in (0, 5, 11):
        alone = slice(at, at + 1)
        single = attack_examples(network, images[alone], labels[alone], indices[alone], plan)
        for row in single:
            other = next(r for r in whole if (r.idx, r.eps) == (row.idx, row.eps))
            assert (row.broken_by, row.step, row.attacks) == (
                other.broken_by, other.step, other.attacks,
            )  # fmt: skip
            assert row.distance == pytest.approx(other.distance)


def test_nothing_is_left_behind():
    network = Small()
    network.body[0].weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    flags = [p.requires_grad for p in network.parameters()]
    state = torch.get_rng_state()
    first, again = run(network, protocol()), run(network, protocol())
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert flags == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters())
    other = run(network, protocol(seed=1))
    assert [row.distance for row in other] != [row.distance for row in first]


def test_random_networks_are_reproducible_in_the_mean():
    network = Wrapped(after=lambda z: z + 2 * torch.randn_like(z))
    plan = protocol(20, eot=4, attacks=("pgd",), sanity=False)
    rows = run(network, plan, 20, Small())
    assert rows == run(network, plan, 20, Small())
    for eot, said in ((4, True), (1, False)):
        summary = summarize(rows, dataclasses.replace(plan, eot=eot))
        assert ("classifier that averages 4 passes" in summary.text()) == said
        assert summary.metrics()["attacked/eot"] == eot


@pytest.mark.parametrize(
    ("eot", "said"),
    [(1, "figures are of one draw"), (20, "every figure is of the average of 20 passes")],
)
def test_a_random_network_is_told_from_its_average(eot, said):
    (flag,) = [
        flag
        for flag in flags_of_network(Wrapped(after=lambda z: z + torch.randn_like(z)),
                                     torch.rand(4, 1, 6, 6), eot)
        if flag.name == "random"
    ]  # fmt: skip
    assert said in flag.text
    assert "another classifier" in flag.text


class Nan(Small):
    def forward(self, images):
        return super().forward(images) * torch.nan


@pytest.mark.parametrize(
    ("network", "images", "changes", "says"),
    [
        (Small().train(), 0.5, {}, "is in train mode"),
        (Small(), 1.2, {}, r"expected \[0, 1\]"),
        (Small(), float("nan"), {}, r"expected \[0, 1\]"),
        (Nan(), 0.5, {}, "outputs are NaN"),
        (nn.Sequential(Small(), nn.Unflatten(1, (5, 1))).eval(), 0.5, {}, "expected "),
    ],
)
def test_what_cannot_be_evaluated_is_refused(network, images, changes, says):
    with pytest.raises(RequestError, match=says):
        check_request(network, torch.full((2, 1, 6, 6), images), protocol(2, **changes))


def test_autocast_is_refused():
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RequestError, match="autocast is on"),
    ):
        check_request(Small(), torch.rand(2, 1, 6, 6), protocol(2))


def test_three_classes_have_attacks_of_their_own():
    network = Small(3)
    images = torch.rand(4, 1, 6, 6)
    plan = protocol(4, attacks=("fgsm", "pgd", "apgd-ce", "square"))
    assert len(attack_examples(network, images, torch.zeros(4).long(), range(4), plan)) == 12


@pytest.mark.parametrize("how", ["ball", "box"])
def test_an_image_outside_of_ball_or_box_stops_the_work(monkeypatch, how):
    def bad(network, images, labels, threat, sources, **settings):
        found = real(network, images, labels, threat, sources, **settings)
        found.images += (2e-6 if how == "ball" else 2.0) * torch.ones_like(images)
        return found

    real = suite.attacks.pgd
    monkeypatch.setattr(suite.attacks, "pgd", bad)
    with pytest.raises(WorkError, match=r"pgd left its linf ball .* or the box"):
        run(Small(), protocol(attacks=("pgd",)))


def test_a_success_that_does_not_repeat_does_not_count(monkeypatch):
    def liar(network, images, labels, threat, sources, **settings):
        found = suite.Outcome.begin(images)
        found.fooled[:] = True
        return found

    monkeypatch.setattr(suite.attacks, "pgd", liar)
    rows = run(Small(), protocol(attacks=("pgd",), sanity=False))
    assert all(row.robust or row.broken_by == "clean" for row in rows)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"norm": "l3"}, "norm: got 'l3'"),
        ({"eps": (1.5,)}, "eps: got 1.5, expected at most 1"),
        ({"eps": ()}, "eps: got"),
        ({"eps": (0.0,)}, "eps: got 0.0"),
        ({"steps": 0}, "steps: got 0"),
        ({"pgd_steps": 0}, "pgd_steps: got 0"),
        ({"attacks": ("pgd", "deepfool")}, "attacks: got"),
        ({"attacks": ("pgd", "pgd")}, "expected each once"),
    ],
)
def test_bad_settings_name_their_field(settings, says):
    with pytest.raises(RequestError, match=says):
        Evaluate(**settings)


def test_eps_beyond_the_box_is_refused():
    with pytest.raises(RequestError, match=r"evaluate.eps: got 7, expected <= 6"):
        protocol(norm="l2", eps=(7.0,))


@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="extra [attacks]")
def test_pyautoattack_is_no_better():
    """Its standard suite on the same examples differs in at most one example."""
    attacks = ("pgd", "apgd-ce", "apgd-t", "square", "autoattack")
    plan = protocol(20, norm="l2", eps=(0.15,), attacks=attacks, sanity=False, steps=100,
                    targets=4, shard=20)  # fmt: skip
    assert plan.autoattack
    rows = run(Small(), plan, 20)
    point = summarize(rows, plan).points[0]
    assert abs(point.after["square"] - point.own["autoattack"]) <= 1 / 20
    assert point.robust <= point.own["autoattack"]


def test_a_missing_extra_is_reported_and_not_replaced(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from raybust.evaluate import autoattack

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(autoattack, "version", missing)
    with pytest.raises(RequestError, match=r"pip install 'raybust\[attacks\]'"):
        protocol(attacks=("pgd", "autoattack"))


def test_the_largest_radius_is_the_whole_box():
    for norm in NORMS:
        reach = protocol(norm=norm, eps=NORMS[norm]).reach
        corners = torch.ones(1, 1, 6, 6, dtype=torch.float64)
        assert float(Threat(norm, 1.0).size(corners)) == pytest.approx(reach)


@pytest.mark.parametrize("classes", [2, 3])
def test_every_attack_runs_on_few_classes(classes):
    names = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
    plan = protocol(20, attacks=names, every=True, sanity=False, eps=(0.05,), rounds=0)
    found = run(Small(classes), plan, 20)
    broke = {name: sum(row.broke(name) is True for row in found) for name in names}
    assert broke["apgd-dlr"] >= broke["apgd-ce"] > sum(row.broken_by == "clean" for row in found)
    assert broke["apgd-t"] >= broke["apgd-ce"] - 1
    with pytest.raises(RequestError, match="autoattack needs at least 4 classes"):
        check_classes(("autoattack",), classes)


BLIND = {
    "detached": lambda z: z.detach(),
    "one-hot": lambda z: nn.functional.one_hot(z.argmax(1), 5).float(),
    "rounded to integers": lambda z: z.round().long().float(),
    "through numpy": lambda z: torch.from_numpy(z.detach().numpy().copy()),
}


@pytest.mark.parametrize("blind", BLIND)
def test_without_a_gradient_only_square_runs_and_a_flag_is_set(blind):
    network = Wrapped(after=BLIND[blind])
    plan = protocol(20, eps=(0.2,), queries=400, rounds=0)
    found = run(network, plan, 20)
    assert {name for row in found if row.eps == 0.2 for name, _ in row.attacks} == {"square"}
    assert any(row.broken_by == "square" for row in found)
    images = torch.rand(8, 1, 6, 6)
    summary = summarize(found, plan, flags_of_network(network, images))
    assert "no_gradient" in {flag.name for flag in summary.flags}
    assert list(summary.points[0].after) == ["square"]
    assert "| ... and fab-t | -" in summary.text()


def test_an_honest_network_has_a_gradient_and_no_further_rounds():
    assert has_gradient(Small(), torch.rand(2, 1, 6, 6))
    found = run(Small(), protocol(eps=(0.1,)))
    assert not any(name == "further" for row in found for name, _ in row.attacks)


def test_where_apgd_is_beaten_further_rounds_run_until_nothing_falls():
    given = {"eps": (0.13,), "shard": 30, "sanity": False, "queries": 30}
    plan = protocol(30, **given, rounds=4)
    network = quantized()
    found = run(network, plan, 30)
    stronger = sum(row.broken_by in ("fab-t", "square") for row in found)
    assert stronger > 1, "the network does not mask its gradients: the test shows nothing"
    rounds = [step for row in found for name, step in row.attacks if name == "further"]
    assert rounds
    summary = summarize(found, plan)
    assert summary.points[0].upper_bound
    flags = {flag.name: flag.text for flag in summary.flags}
    assert "points" in flags["moving"]
    assert "upper bound" in flags["moving"]
    assert "**at most " in summary.text()
    assert summary.metrics()["attacked/linf_0.13/upper_bound"] == 1.0
    assert run(network, plan, 30) == found
    without = run(network, protocol(30, **given, rounds=0), 30)
    assert sum(row.robust for row in found) <= sum(row.robust for row in without)
    (point,) = summarize(without, plan).points
    assert "further" not in point.after
    assert point.upper_bound, "flat gradients suffice for it"


def test_fab_searches_once_for_all_radii():
    network, calls = Small(), []
    network.register_forward_hook(lambda module, inputs, logits: calls.append(len(logits)))
    one = {"attacks": ("fab-t",), "sanity": False, "rounds": 0}
    run(network, protocol(20, eps=(0.001,), **one), 20, Small())
    first = sum(calls)
    calls.clear()
    several = run(network, protocol(20, eps=(0.001, 0.02, 0.1, 0.3), **one), 20, Small())
    assert sum(calls) < 1.2 * first
    robust = [sum(row.robust for row in several if row.eps == eps) for eps in (0.001, 0.02, 0.1)]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[-1]


@pytest.mark.parametrize("norm", NORMS)
def test_pixels_without_a_derivative_hide_no_attack(norm):
    """The front is the identity, but its gradient is NaN at every black pixel."""

    def front(images):
        return torch.where(images > 0, images.sqrt(), torch.zeros_like(images)) ** 2

    plan = protocol(20, norm=norm, eps=NORMS[norm], attacks=("apgd-t", "fab-t"))
    images, labels, indices = examples(Small(), 20)
    images[..., ::2] = 0
    with torch.no_grad():
        labels = Small()(images).argmax(1)
    found, bare = (
        [row for at in plan.shards() for row in attack_examples(
            network, images[at.start : at.stop], labels[at.start : at.stop],
            indices[at.start : at.stop], plan)]
        for network in (Wrapped(before=front), Small())
    )  # fmt: skip
    assert all(row.flat for row in found), "the gradient is NaN somewhere in each image"
    assert not any(row.flat for row in bare)
    assert sum(row.robust for row in bare) < len(bare)
    assert abs(sum(row.robust for row in found) - sum(row.robust for row in bare)) <= 2


@pytest.mark.parametrize(("norm", "eps"), [("l1", 5.0), ("l2", 0.5)])
def test_rounding_on_large_images_stops_no_evaluation(norm, eps):
    """`image + delta` is rounded in each of 49,152 pixels, which adds up beyond the ball."""

    class Linear(torch.nn.Module):
        def forward(self, images):
            total = (images.flatten(1) - 0.7).sum(1)
            return torch.stack([0.5 * eps - total, total - 0.5 * eps], 1)

    plan = protocol(2, norm=norm, eps=(eps,), attacks=("fgsm", "apgd-ce"), sanity=False, shard=2)
    images = torch.full((2, 3, 128, 128), 0.7)
    rows = attack_examples(Linear().eval(), images, torch.zeros(2).long(), [0, 1], plan)
    assert not any(row.robust for row in rows)
    assert all(row.distance <= eps + 1e-6 for row in rows)
