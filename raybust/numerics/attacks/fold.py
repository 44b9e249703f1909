"""Folds batch norms into the preceding convolutions for the duration of an attack.

In eval mode BN(conv(x)) is a convolution with weights w gamma / sqrt(var + eps) (Jacob et al.,
2018, arXiv:1712.05877, section 3.2): ten attack steps save ten passes over every feature map at the
price of scaling the weights once. The network's own modules still run, so hooks, counters and
autocast see the same calls.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]
_PAIRS: WeakKeyDictionary[nn.Module, list[Pair]] = WeakKeyDictionary()


def foldable(network: nn.Module) -> list[Pair]:
    """Returns the convolutions whose only consumer is a batch norm, each with that batch norm.

    Networks that torch.fx cannot trace, or that are compiled, have none and are attacked as they
    are. Cached for the lifetime of the network.
    """
    if network not in _PAIRS:
        _PAIRS[network] = _find(network)
    return _PAIRS[network]


@contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Folds the pairs of a network in eval mode, with its current weights, inside the block."""
    pairs = [pair for pair in foldable(network) if not _hooked(*pair)]
    try:
        for conv, norm in pairs:
            _fold(conv, norm)
        yield
    finally:
        for conv, norm in pairs:
            vars(conv).pop("forward", None)
            vars(norm).pop("forward", None)


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None, "only batch norms with statistics are folded"
    assert norm.running_var is not None, "as above"
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )

    def forward(features: Tensor) -> Tensor:
        result: Tensor = conv._conv_forward(features, weight, bias)
        return result

    vars(conv)["forward"] = forward
    vars(norm)["forward"] = _same


def _same(features: Tensor) -> Tensor:
    return features


def _hooked(conv: nn.Module, norm: nn.Module) -> bool:
    """Returns whether a hook may read or change what passes between the two."""
    return bool(conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks)


def _find(network: nn.Module) -> list[Pair]:
    if any(module._compiled_call_impl is not None for module in network.modules()):
        return []
    if not any(type(module) is nn.BatchNorm2d for module in network.modules()):
        return []
    graph = _trace(network)
    if graph is None:
        return [pair for child in network.children() for pair in foldable(child)]
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = [modules[str(node.target)] for node in graph.nodes if node.op == "call_module"]
    pairs: list[Pair] = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
            continue
        if calls.count(conv) == calls.count(norm) == 1 and norm.running_var is not None:
            pairs.append((conv, norm))
    return pairs


def _trace(network: nn.Module) -> fx.Graph | None:
    """Returns the graph of a network, or None if it cannot be traced.

    Traces a copy, since a forward may store proxies in the module.
    """
    try:
        return fx.Tracer().trace(copy.deepcopy(network))
    except Exception:  # a forward may raise anything on proxies
        return None
