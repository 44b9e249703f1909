"""External networks that return logits in other forms or have weights of other dtypes."""

import collections
import copy
import types

import pytest
import torch
from torch import nn

from raybust.models.adapt import adapt

SHAPE, CLASSES = (1, 6, 6), 4
Named = collections.namedtuple("Named", "features logits")


class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = nn.Linear(36, CLASSES), form
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        flat = images.flatten(1).to(self.layer.weight.dtype)
        return self.form(self.layer(self.dropout(flat)), flat)


FORMS = {
    "a tuple": lambda z, x: (z, x),
    "a tuple, features first": lambda z, x: (x, z),
    "a list": lambda z, x: [z],
    "a dictionary": lambda z, x: {"features": x, "logits": z},
    "out": lambda z, x: {"aux": z + 1, "out": z},
    "an only item": lambda z, x: {"y": z},
    "an object": lambda z, x: types.SimpleNamespace(logits=z, loss=None),
    "a named tuple": lambda z, x: Named(x, z),
    "maps of one pixel": lambda z, x: z[:, :, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_picked_and_the_weights_keep_their_names(form):
    network = Net(FORMS[form])
    keys = list(network.state_dict())
    (note,) = adapt(network, SHAPE, CLASSES)
    assert "logits are extracted" in note
    assert list(network.state_dict()) == keys
    images = torch.rand(3, *SHAPE)
    plain = Net(lambda z, x: z).eval()
    assert network.training
    assert torch.equal(copy.deepcopy(network).eval()(images), plain(images))


def test_a_network_that_gives_logits_is_left_alone():
    network = Net(lambda z, x: z)
    assert adapt(network, SHAPE, CLASSES) == []
    assert not network._forward_hooks


@pytest.mark.parametrize("form", [lambda z, x: z[:, 0], lambda z, x: (x, x), lambda z, x: "logits"])
def test_what_holds_no_logits_is_left_to_the_check(form):
    assert adapt(Net(form), SHAPE, CLASSES) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types_are_cast_and_told(dtype):
    network = Net(lambda z, x: z).to(dtype)
    (note,) = adapt(network, SHAPE, CLASSES)
    assert str(dtype).removeprefix("torch.") in note
    assert network.layer.weight.dtype == torch.float32
    assert network.eval()(torch.rand(2, *SHAPE)).dtype == torch.float32


class WithHead(Net):
    """Returns a tuple in training mode only."""

    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


def test_logits_are_picked_where_only_training_gives_more():
    network = WithHead(lambda z, x: z)
    assert any("logits are extracted" in note for note in adapt(network, SHAPE, CLASSES))
    images = torch.rand(3, *SHAPE)
    assert network.train()(images).shape == (3, CLASSES)
    assert network.eval()(images).shape == (3, CLASSES)
