"""A network behind a front module: what each view attacks and scores, manually and by its rows."""

import dataclasses

import nets
import pytest
import torch
from torch import nn

from raybust.evaluate import (
    attack_examples,
    flags_of_transfer,
    seen_by,
    side_by_side,
    summarize,
    views_of,
)
from raybust.models import Fronted


class Coarse(nn.Module):
    """Rounds pixels to quarters, blocking gradients."""

    def __init__(self, levels=4):
        super().__init__()
        self.levels = levels

    def forward(self, images):
        return (images * self.levels).round() / self.levels

    def extra_repr(self):
        return f"levels={self.levels}"


class Blur(nn.Module):
    """Blurs images: attacks on the network alone are weaker through it; hides no gradient."""

    def forward(self, images):
        return images.lerp(images.roll(1, 3), 0.4)


def fronted(front):
    return Fronted(front, nets.Small()).eval()


def protocols(network, **settings):
    section = {"attacks": ("fgsm", "pgd", "square"), "eps": (0.05, 0.2), "every": True} | settings
    return views_of(network, nets.protocol(**section))


def rows_of(network, protocol, images, labels):
    return attack_examples(network, images, labels, list(range(len(images))), protocol)


@pytest.fixture
def shown():
    return nets.examples(fronted(Blur()))[:2]


def test_a_bare_network_has_the_one_view():
    protocol = nets.protocol()
    assert views_of(nets.Small(), protocol) == [protocol]
    assert (protocol.view, protocol.front) == ("adaptive", "")


def test_three_views_that_name_what_is_in_front():
    alone, oblivious, adaptive = protocols(fronted(Coarse()))
    assert [p.view for p in (alone, oblivious, adaptive)] == ["alone", "oblivious", "adaptive"]
    assert [p.front for p in (alone, oblivious, adaptive)] == ["", *["Coarse(levels=4)"] * 2]
    assert oblivious.reach == 0 < adaptive.reach
    same = dataclasses.replace(adaptive, front="Coarse(levels=8)")
    assert adaptive.differences(same.to_json()) == [
        "another function (front: Coarse(levels=8) -> Coarse(levels=4))"
    ]


def test_alone_and_adaptive_are_those_networks_attacked(shown):
    network = fronted(Blur())
    alone, _, adaptive = protocols(network)
    bare = rows_of(nets.Small(), dataclasses.replace(alone, view="adaptive"), *shown)
    assert rows_of(network, alone, *shown) == bare

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = fronted(Blur())
            self.eval()

        def forward(self, images):
            return self.parts(images)

    assert rows_of(network, adaptive, *shown) == rows_of(Whole(), adaptive, *shown)


def test_oblivious_is_the_image_for_the_network_alone_through_the_whole(shown):
    """FGSM written out; it is deterministic."""
    network, (images, labels) = fronted(Blur()), shown
    _, oblivious, _ = protocols(network, attacks=("fgsm",), eps=(0.1,), sanity=False)
    point = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(network.network(point), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    attacked = (images + 0.1 * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        clean, after = network(images).argmax(1), network(attacked).argmax(1)
    found = rows_of(network, oblivious, images, labels)
    assert [row.predict for row in found] == clean.tolist()
    assert [row.robust for row in found] == ((clean == labels) & (after == labels)).tolist()
    assert 0 < sum(row.robust for row in found) < int((clean == labels).sum())
    for row in found:
        if row.broken_by == "fgsm":
            assert row.distance == pytest.approx(0.1, abs=1e-6)
            assert dict(row.attacks)["fgsm"] >= 0


@pytest.mark.parametrize("eot", [1, 2])
def test_17_an_honest_front_makes_oblivious_the_higher_number_and_both_are_shown(shown, eot):
    network = fronted(Blur())
    summaries, rows = [], []
    for protocol in protocols(network, eot=eot):
        rows.append(rows_of(network, protocol, *shown))
        summaries.append(summarize(rows[-1], protocol))
    alone, oblivious, adaptive = summaries
    for there, here in zip(oblivious.points, adaptive.points, strict=False):
        assert there.robust >= here.robust - 0.01
    assert any(o.robust > a.robust for o, a in zip(oblivious.points, adaptive.points, strict=False))
    assert [flag.name for flag in oblivious.flags] == ["oblivious"]
    assert not flags_of_transfer(rows[2], rows[1], adaptive.protocol)
    text = side_by_side(summaries)
    for one, name in ((alone, "alone"), (oblivious, "oblivious"), (adaptive, "adaptive")):
        (line,) = [line for line in text.splitlines() if f"{name}:" in line]
        assert f"| {100 * one.clean:.2f} | {100 * one.points[0].robust:.2f} (" in line
    assert text.endswith("In front of the network: Blur()")
    metrics = {key: v for one in summaries for key, v in one.metrics().items()}
    assert metrics["attacked/robust_accuracy"] == adaptive.points[1].robust
    assert metrics["attacked/oblivious/robust_accuracy"] == oblivious.points[1].robust
    assert metrics["attacked/alone/linf_0.05/robust_accuracy"] == alone.points[0].robust


def test_a_front_that_hides_gradients_is_flagged():
    network = fronted(Coarse())
    images, labels, _ = nets.examples(network)
    _, oblivious, adaptive = protocols(network, attacks=("fgsm", "pgd"), sanity=False)
    blind, seeing = (rows_of(network, p, images, labels) for p in (oblivious, adaptive))
    assert all(row.flat for row in seeing)
    assert not any(row.flat for row in blind)
    found = flags_of_transfer(seeing, blind, adaptive)
    assert {flag.name for flag in found} == {"transfer"}
    assert "hides gradients" in found[-1].text


def test_seen_by():
    network = fronted(Blur())
    assert seen_by(network, "adaptive") == (network, network)
    assert seen_by(network, "oblivious") == (network.network, network)
    assert seen_by(network, "alone") == (network.network, network.network)
    with pytest.raises(AssertionError):
        seen_by(nets.Small(), "alone")
