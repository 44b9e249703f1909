"""Certificates by bounds: against exact answers, attacks and themselves; what is refused."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exact_margins import by_integers, small
from networks import protocol as smoothing_protocol
from torch import nn

from raybust.certification import (
    BoundLog,
    BoundProtocol,
    BoundRow,
    CertificateLog,
    bound_examples,
    check_bound_rows,
    check_bounds,
    open_log,
)
from raybust.disk.rowlog import OtherProtocolError
from raybust.errors import RequestError, WorkError
from raybust.numerics.attacks import ascend, attacked
from raybust.numerics.balls import Threat
from raybust.numerics.relaxation import certified_margin, trace
from raybust.reporting import acr, certified_accuracy, read_log

BOUNDS = ("ibp", "crown", "best")
STEP = 2.0**-16


def header(**changes):
    values = {"bound": "best", "shape": (1, 1, 3), "classes": 3, "batch": 8, "split": "test"}
    values |= {"data": "d", "labels": "l", "weights": "w", "outputs": (1.0,)}
    if changes.get("targets"):
        values["steps"] = 0
    return BoundProtocol(**(values | changes))


def images_of(count, low=0.0, high=1.0):
    found = torch.rand(count, 1, 1, 3, generator=torch.Generator().manual_seed(1)).double()
    return low + (high - low) * found


def rows_of(network, images, labels=None, **changes):
    labels = network(images).argmax(1) if labels is None else labels
    return list(bound_examples(network, images, labels, range(len(images)), header(**changes)))


def affine():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 3)).double().eval()


def exact_radii(network, images):
    """The distance to the nearest class of an affine network: margin over the weights' L1 norm."""
    zero = network(torch.zeros(1, 1, 1, 3).double())
    weight = (network(torch.eye(3).double().reshape(3, 1, 1, 3)) - zero).T.detach()
    found = []
    for logits in network(images).detach():
        y = int(logits.argmax())
        found.append(min(
            float((logits[y] - logits[j]) / (weight[y] - weight[j]).abs().sum())
            for j in range(3) if j != y
        ))  # fmt: skip
    return found


@pytest.mark.parametrize("bound", BOUNDS)
def test_affine_networks_exactly(bound):
    network, images = affine(), images_of(40, 0.3, 0.7)
    inside = [one for one in zip(images, exact_radii(network, images), strict=True) if one[1] < 0.3]
    assert len(inside) > 10, "balls that [0, 1] does not cut"
    images, exact = torch.stack([image for image, _ in inside]), [radius for _, radius in inside]
    for row, radius in zip(rows_of(network, images, bound=bound), exact, strict=True):
        assert radius - STEP <= row.radius < radius
    targets = (0.0, 0.01, 0.05, 0.1)
    for row, radius in zip(rows_of(network, images, bound=bound, targets=targets), exact,
                           strict=True):  # fmt: skip
        assert row.radius == max(target for target in targets if target < radius)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bound", BOUNDS)
def test_never_above_the_exact_answer(bound, seed):
    """The margin of a row is at most the exact one on its ball, by mixed integer programs."""
    network, images = small([5, 4], seed=seed).eval(), images_of(4)
    for row, image in zip(rows_of(network, images, bound=bound), images, strict=True):
        exact = min(
            by_integers(network, image.flatten().numpy(), row.radius, row.predict, j)
            for j in {0, 1, 2} - {row.predict}
        )
        assert 0 < row.margin <= exact + 1e-6


def test_radii_are_the_last_ones_proven():
    network, images = small([5, 4]).eval(), images_of(20)
    graph = trace(network)
    found = {bound: rows_of(network, images, bound=bound) for bound in BOUNDS}
    tops = network(images).argmax(1)
    for bound, rows in found.items():
        radii = torch.tensor([row.radius for row in rows], dtype=torch.float64)
        low = certified_margin(graph, network, images, tops, eps=radii, bound=bound)
        torch.testing.assert_close(low, torch.tensor([row.margin for row in rows]).double())
        assert (low > 0).all()
        beyond = certified_margin(graph, network, images, tops, eps=radii + STEP, bound=bound)
        assert (beyond <= 0).all()
    for ibp, crown, best in zip(*found.values(), strict=True):
        assert best.radius >= max(ibp.radius, crown.radius)
    assert any(c.radius > i.radius for i, c in zip(found["ibp"], found["crown"], strict=True))


def test_no_certificate_is_broken_image_by_image():
    """PGD at 0.999 of the radius of each row breaks nothing; at eight times the radius some."""
    network, images = small([8, 6]).eval().float(), images_of(60).float()
    tops = network(images).argmax(1)
    rows = rows_of(network, images)
    broken = {0.999: 0, 8.0: 0}
    with attacked(network):
        for times in broken:
            for row, image, top in zip(rows, images, tops, strict=True):
                threat = Threat("linf", times * max(row.radius, STEP))
                start = threat.sample(image[None], torch.Generator().manual_seed(0))
                found = ascend(
                    network, image[None], threat, lambda z, y=top: F.cross_entropy(z, y[None]),
                    start=start, steps=10, step=threat.eps / 4,
                )  # fmt: skip
                broken[times] += int(network(found).argmax() != top)
    assert broken[0.999] == 0
    assert broken[8.0] > 0


def test_rows_do_not_depend_on_order_and_hardly_on_company():
    network, images = small([5, 4]).eval().float(), images_of(20).float()
    rows = rows_of(network, images, batch=8)
    assert [row.idx for row in rows] == list(range(20))
    again = rows_of(network, images, batch=8)
    assert all(a.same(b) for a, b in zip(rows, again, strict=True))
    at = header(batch=8)
    for row in rows_of(network, images.flip(0), batch=1):
        old = rows[19 - row.idx]
        assert dataclasses.replace(row, idx=old.idx).agrees(old, at)
    moved = dataclasses.replace(rows[0], radius=rows[0].radius + 3 * STEP)
    assert not moved.agrees(rows[0], at)


def test_a_wrong_class_is_certified_and_does_not_count(tmp_path):
    network, images = affine(), images_of(10, 0.3, 0.7)
    tops = network(images).argmax(1)
    labels = tops.clone()
    labels[:5] = (tops[:5] + 1) % 3
    rows = rows_of(network, images, labels)
    log = BoundLog(tmp_path / "own.tsv", header())
    log.append(rows)
    read = read_log(log.path)
    assert read.kind == "bounds"
    assert (read.norm, read.sigma, int(read.correct.sum())) == ("linf", None, 5)
    assert certified_accuracy(read, [0.0]).tolist() == [0.5]
    found = acr(read)
    assert found.value == pytest.approx(sum(row.radius for row in rows[5:]) / 10)
    assert "no alpha, 81 passes an image" in found.terms
    assert "best bounds, linf; test set" in found.terms


def test_passes_by_hand():
    assert header(bound="ibp").passes == 1 + 16 * 2
    assert header(bound="crown").passes == 1 + 16 * (2 + 3)
    assert header(bound="best", targets=(0.1, 0.2)).passes == 1 + 2 * (2 + 3)


ROW = BoundRow(idx=3, label=1, predict=1, radius=0.25, time=0.5, margin=0.125)


def test_a_row_is_read_back():
    assert BoundRow.parse(ROW.line()) == ROW
    assert ROW.fault(header()) is None
    assert dataclasses.replace(ROW, radius=0.1).fault(header(targets=(0.1,))) is None


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        ({"radius": 0.1}, {}, "radius: got 0.1, which the protocol does not try"),
        ({"radius": 1.5}, {}, "does not try"),
        ({"radius": -0.25}, {}, "does not try"),
        ({"radius": 0.25}, {"targets": (0.1,)}, "does not try"),
        ({"margin": 0.0}, {}, "margin: got 0.0, which does not prove radius 0.25"),
        ({"margin": -1.0}, {}, "does not prove"),
        ({"margin": math.nan}, {}, "does not prove"),
        ({"predict": 3}, {}, "predict: got 3, expected one of 3 classes"),
    ],
)
def test_a_row_that_contradicts_itself(change, at, message):
    assert message in dataclasses.replace(ROW, **change).fault(header(**at))


def test_a_changed_row_is_found_by_the_log_and_by_the_report(tmp_path):
    path = tmp_path / "own.tsv"
    BoundLog(path, header()).append([ROW])
    path.write_text(path.read_text().replace("0.25", "0.3"))
    with pytest.raises(RequestError, match="line 3 was changed after it was written"):
        BoundLog(path, header())
    with pytest.raises(RequestError, match=r"got 0\.3, which the protocol does not try"):
        read_log(path)


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "own.tsv"
    BoundLog(path, header()).append([ROW, dataclasses.replace(ROW, idx=4)])
    path.write_bytes(path.read_bytes()[:-9])
    assert [row.idx for row in open_log(path, header()).rows] == [3]


def test_logs_of_smoothing_and_of_bounds_never_mix(tmp_path):
    bounds, noise = header(), smoothing_protocol()
    assert bounds.stem == "test_best_linf"
    assert header(bound="ibp", targets=(0.1,)).stem == "test_ibp_linf_r0.1"
    assert bounds.numbers != noise.numbers
    for first, second in ((bounds, noise), (noise, bounds)):
        path = tmp_path / f"{first.stem}.tsv"
        open_log(path, first)
        with pytest.raises(OtherProtocolError, match="another protocol"):
            open_log(path, second)
    assert isinstance(open_log(tmp_path / "a", bounds), BoundLog)
    assert isinstance(open_log(tmp_path / "b", noise), CertificateLog)
    for change in ({"bound": "ibp"}, {"steps": 8}, {"targets": (0.1,)}):
        with pytest.raises(OtherProtocolError, match="another protocol"):
            open_log(tmp_path / "a", header(**change))


@pytest.mark.parametrize("targets", [(), (0.02, 0.1)])
def test_recomputed_rows_tell_another_function(targets):
    network, images = small([5, 4]).eval(), images_of(20)
    at = header(targets=targets)
    rows = rows_of(network, images, targets=targets)
    other = small([5, 4]).eval()
    with torch.no_grad():
        other[-1].bias[0] += 0.05

    def by(one):
        return lambda indices: [
            next(bound_examples(one, images[[i]], torch.tensor([rows[i].label]), [i], at))
            for i in indices
        ]

    check_bound_rows(rows, at, Path("log.tsv"), by(network))
    with pytest.raises(OtherProtocolError, match="another certificate when recomputed"):
        check_bound_rows(rows, at, Path("log.tsv"), by(other))


def test_what_is_refused():
    images, labels = images_of(2).float(), torch.zeros(2)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.GELU()).eval()
    with pytest.raises(RequestError, match=r"certify\.bound: ibp cannot certify.*GELU"):
        check_bounds(smooth, (1, 1, 3), "ibp")
    with pytest.raises(RequestError, match="GELU"):
        next(bound_examples(smooth, images, labels, range(2), header()))
    with pytest.raises(RequestError, match="train mode"):
        check_bounds(smooth.train(), (1, 1, 3), "ibp")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3, 3)).eval()
    with pytest.raises(RequestError, match=r"expected \[0, 1\]"):
        next(bound_examples(plain, images + 1, labels, range(2), header()))
    with pytest.raises(RequestError, match="the protocol is for cuda"):
        next(bound_examples(plain, images, labels, range(2), header(device="cuda")))
    nn.init.constant_(plain[1].weight, math.nan)
    with pytest.raises(WorkError, match="example 0: the network's outputs are NaN"):
        next(bound_examples(plain, images, labels, range(2), header()))
