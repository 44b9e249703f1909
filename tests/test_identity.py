"""Fingerprints of functions, images and labels."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raybust import identity
from raybust.data import Split, StreamedSplit
from raybust.errors import WorkError
from raybust.identity import (
    PROBES,
    agree,
    code_of,
    differences,
    fields_of,
    is_random,
    outputs_of,
    weights_digest,
)

IMAGES = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network(activation=None):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), activation or nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(216, 5)).eval()


class Around(nn.Module):
    """Wraps a network in a function of it and the images, with the same weights."""

    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call = inner, call
        self.eval()

    def forward(self, images):
        return self.call(self.inner, images)


OTHERS = {
    "softmax": lambda net, x: net(x).softmax(1),
    "another mean": lambda net, x: net(x - 0.01),
    "another scale": lambda net, x: net(x * 1.001),
    "channels swapped": lambda net, x: net(x.flip(1)),
    "classes swapped": lambda net, x: net(x).flip(1),
    "temperature": lambda net, x: net(x) / 1.01,
    "quantized images": lambda net, x: net((x * 16).round() / 16),
    "mirrored images": lambda net, x: net(x.flip(3)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_two_functions_of_the_same_weights_do_not_agree(other):
    one, changed = Around(network(), lambda net, x: net(x)), Around(network(), OTHERS[other])
    assert weights_digest(one) == weights_digest(changed)
    assert not agree(outputs_of(one, IMAGES), outputs_of(changed, IMAGES))


SCALES = {
    "a class that is masked out": lambda z: z + torch.tensor([0.0, 0, 0, 0, -1e9]),
    "a class that always wins": lambda z: z + torch.tensor([1e9, 0.0, 0, 0, 0]),
    "a large offset": lambda z: z + 1000,
    "tiny logits": lambda z: z / 1000,
    "saturated logits": lambda z: z * 1e6,
}


@pytest.mark.parametrize("scale", SCALES)
def test_no_scale_of_the_logits_hides_another_function(scale):
    shape = SCALES[scale]
    one, changed, again = (
        Around(network(), change)
        for change in (
            lambda net, x: shape(net(x)),
            lambda net, x: shape(net(1 - x)),
            lambda net, x: shape(net(x)),
        )
    )
    for gradients in (False, True):
        first = outputs_of(one, IMAGES, gradients=gradients)
        assert not agree(first, outputs_of(changed, IMAGES, gradients=gradients))
        assert agree(first, outputs_of(again, IMAGES, gradients=gradients))


def test_another_activation_has_the_same_keys_and_does_not_agree():
    one, other = network(), network(nn.LeakyReLU(0.02))
    assert weights_digest(one) == weights_digest(other)
    assert not agree(outputs_of(one, IMAGES), outputs_of(other, IMAGES))


def test_one_function_agrees_with_itself_in_other_arithmetic():
    one = outputs_of(network(), IMAGES)
    assert len(one) == 12 * PROBES
    assert outputs_of(network(), IMAGES) == one
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    assert agree(one, outputs_of(network(), IMAGES))
    torch.set_num_threads(threads)
    double = Around(network().double(), lambda net, x: net(x.double()))
    assert agree(one, outputs_of(double, IMAGES))
    assert agree(one, fields_of(json.dumps({"outputs": one}))["outputs"])
    with torch.autocast("cpu", torch.bfloat16):
        assert agree(one, outputs_of(network(), IMAGES))


def test_gradients_tell_networks_of_equal_outputs():
    def masked(net, x):
        return net(x.detach() + 0 * x)

    one, other = network(), Around(network(), masked)
    assert agree(outputs_of(one, IMAGES), outputs_of(other, IMAGES))
    with_gradients = [outputs_of(net, IMAGES, gradients=True) for net in (one, other)]
    assert not agree(*with_gradients)
    assert len(with_gradients[0]) == 16 * PROBES


@pytest.mark.parametrize(
    "blind",
    [lambda net, x: net(x).detach(), lambda net, x: nn.functional.one_hot(net(x).argmax(1), 5)],
)
def test_a_network_without_gradients_is_recorded_all_the_same(blind):
    found = outputs_of(Around(network(), blind), IMAGES, gradients=True)
    assert set(found[12 * PROBES :]) == {0.0}
    assert len(set(found[: 12 * PROBES])) > 1


def test_a_change_that_only_noisy_images_meet_is_seen():
    plain, clamped = network(), Around(network(), lambda net, x: net(x.clamp(-1, 2)))
    assert torch.equal(plain(IMAGES), clamped(IMAGES))
    assert not agree(outputs_of(plain, IMAGES), outputs_of(clamped, IMAGES))


def test_a_network_that_rejects_noisy_images_is_recorded_inside():
    def strict(net, x):
        if x.min() < 0:
            raise ValueError("images are in [0, 1]")
        return net(x)

    found = outputs_of(Around(network(), strict), IMAGES)
    assert found[: 8 * PROBES] == outputs_of(network(), IMAGES)[: 8 * PROBES]
    assert agree(found, found)


def test_code_is_the_same_for_any_weights_and_another_for_another_forward():
    torch.manual_seed(1)
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(4 * 36, 5))  # fmt: skip
    other = copy.deepcopy(one)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.mul_(3)
    before = weights_digest(one)
    code = code_of(one, (1, 8, 8))
    assert weights_digest(one) == before
    assert agree(code, code_of(other, (1, 8, 8)))
    changed = copy.deepcopy(one)
    changed[2] = nn.LeakyReLU(0.02)
    assert not agree(code, code_of(changed, (1, 8, 8)))
    torch.nn.init.zeros_(other[4].weight)  # hides everything before it, with these weights
    assert not agree(code, code_of(nn.Sequential(*other[:2], nn.Tanh(), *other[3:]), (1, 8, 8)))


def test_nan_is_not_random():
    broken = Around(network(), lambda net, x: net(x) + float("nan"))
    assert not is_random(broken, IMAGES)
    assert is_random(Around(network(), lambda net, x: net(x) + torch.rand(1)), IMAGES)


def test_a_network_that_draws_is_recorded_alike_and_the_generator_put_back():
    drawing = Around(network(), lambda net, x: net(x) + torch.randn(len(x), 1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = outputs_of(drawing, IMAGES)
    assert torch.equal(torch.rand(3), expected)
    assert outputs_of(drawing, IMAGES) == first


def test_nan_agrees_with_nothing():
    assert not agree((float("nan"),), (float("nan"),))
    assert not agree((1.0,), (1.0, 2.0))


def test_digest_of_weights():
    one, other = network(), network()
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other[0].bias[0] += 1
    assert weights_digest(one) != weights_digest(other)


HEADER = {"weights": "a" * 64, "outputs": [1.0, 2.0], "data": "d", "labels": "l", "n": 100}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"outputs": [1.0, 2.0000001]}, []),
        ({"weights": "b" * 64}, ["another function (weights: bbbbbbbb -> aaaaaaaa)"]),
        ({"outputs": [1.0, 2.1]}, ["another function (outputs: (1.0, 2.1) -> (1.0, 2.0))"]),
        ({"data": "e", "outputs": [3.0, 4.0]}, ["other images (data: e -> d)"]),
        ({"labels": "m"}, ["other labels (labels: m -> l)"]),
        ({"n": 200}, ["another protocol (n: 200 -> 100)"]),
        ({"sigma": 0.5}, ["another protocol (sigma: 0.5 -> None)"]),
        (
            {"labels": "m", "n": 200},
            ["other labels (labels: m -> l)", "another protocol (n: 200 -> 100)"],
        ),
        ({"outputs": ()}, ["an unproven origin (its header does not record outputs)"]),
    ],
)
def test_a_difference_names_its_kind(changes, expected):
    assert differences({**HEADER, **changes}, HEADER) == expected


def test_a_header_of_raybust_0_1_is_unproven():
    old = {"weights": "a" * 64, "data": "0123456789abcdef", "n": 100}
    assert differences(old, HEADER) == [
        "an unproven origin (its header does not record outputs, labels)"
    ]


def in_memory(**changes):
    parts = {"images": torch.arange(96).to(torch.uint8).view(6, 1, 4, 4)}
    parts |= {"labels": torch.arange(6) % 3, "indices": torch.arange(6)}
    return Split(**(parts | changes))


def test_the_content_of_a_part_in_memory_is_that_of_the_examples_named():
    split, changed = in_memory(), in_memory().images.clone()
    changed[4, 0, 0, 0] += 1
    other = in_memory(images=changed)
    assert split.content([0, 1, 2]) == other.content(torch.arange(3))
    assert split.content([0, 4]) != other.content([0, 4])
    assert split.content([0, 1]) != split.content([1, 0])
    assert split.content([0]) != in_memory(scale=16.0).content([0])
    relabeled = in_memory(labels=torch.tensor([0, 1, 2, 0, 1, 1]))
    assert split.content(range(6)) == relabeled.content(range(6))
    assert split.labeling(range(6)) != relabeled.labeling(range(6))
    assert split.labeling(range(5)) == relabeled.labeling(range(5))
    assert split.labeling([0]) != in_memory(indices=torch.arange(6) + 1).labeling([0])


def test_the_content_of_files_is_their_bytes_not_their_names(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"{number}.bmp")
    files = tuple(f"{number}.bmp" for number in range(4))
    labels = torch.tensor([0, 1, 0, 1])
    split = StreamedSplit(tmp_path, files, labels, torch.arange(4), 8)
    before = split.content([0, 1]), split.content([2, 3])
    stat = (tmp_path / "1.bmp").stat()
    size = stat.st_size
    content = bytearray((tmp_path / "1.bmp").read_bytes())
    content[-1] ^= 255
    (tmp_path / "1.bmp").write_bytes(content)
    import os

    os.utime(tmp_path / "1.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tmp_path / "1.bmp").stat().st_size == size
    assert split.content([0, 1]) != before[0]
    assert split.content([2, 3]) == before[1]
    (tmp_path / "2.bmp").rename(tmp_path / "two.bmp")
    moved = StreamedSplit(
        tmp_path, ("0.bmp", "1.bmp", "two.bmp", "3.bmp"), labels, split.indices, 8
    )
    assert moved.content([2, 3]) == before[1]
    assert StreamedSplit(tmp_path, moved.files, labels, split.indices, 7).content([2]) != (
        moved.content([2])
    )


# A network on its way to a worker


class Switched(nn.Module):
    """Depends on a class attribute, which a worker's process does not have."""

    flip = False

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, images):
        return self.last((images.flip(-1) if type(self).flip else images).flatten(1))


class Restless(Switched):
    def forward(self, images):
        return super().forward(images) + torch.rand(len(images), 3)


def test_a_worker_that_computes_another_function_is_found(monkeypatch):
    """What a constructor sets outside the weights stays behind when a network is pickled."""
    torch.manual_seed(0)
    network = Switched().eval()
    sent = identity.Sent.of(network, (1, 2, 2))
    assert sent.on("cpu") is network
    monkeypatch.setattr(Switched, "flip", True)
    with pytest.raises(WorkError, match="another function than the command"):
        sent.on("cpu")


def test_a_random_network_may_be_sent():
    torch.manual_seed(0)
    sent = identity.Sent.of(Restless().eval(), (1, 2, 2))
    with torch.random.fork_rng():
        assert sent.on("cpu").training is False
    other = dataclasses.replace(sent, outputs=tuple(value + 1 for value in sent.outputs))
    with pytest.raises(WorkError, match="another function"):
        other.on("cpu")
    abroad = dataclasses.replace(other, device="cuda")  # where it drew other random numbers
    assert abroad.on("cpu") is sent.network


def test_digests_of_other_examples_are_no_sign_of_other_images():
    theirs = {"weights": "w", "outputs": (1.0,), "examples": 60, "data": "a", "labels": "a"}
    ours = theirs | {"examples": 50, "data": "b", "labels": "b"}
    assert differences(theirs, ours) == ["another protocol (examples: 60 -> 50)"]
    assert len(differences(theirs, ours | {"examples": 60})) == 2
