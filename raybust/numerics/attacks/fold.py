"""Batch norms folded into the convolutions before them, for as long as an attack runs.

In eval mode BN(conv(x)) is a convolution with weights w gamma / sqrt(var + eps) (Jacob et al.,
2018, arXiv:1712.05877, section 3.2): ten attack steps save ten passes over every feature map, at
the price of scaling the weights once. The network's own modules do the work, so that hooks,
counters and autocast around it see the same calls. Part of numerics.
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
    """Returns the convolutions whose only reader is a batch norm, with that batch norm.

    A network that torch.fx cannot trace, or that torch.compile compiled, has none: it is attacked
    as it is. The answer is kept for as long as the network lives.
    """
    if network not in _PAIRS:
        _PAIRS[network] = _find(network)
    return _PAIRS[network]


@contextmanager
def folded(network: nn.Module) -> Iterator[None]:
    """Folds the pairs of a network in eval mode, on its present weights; undone afterwards."""
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
    """Whether somebody looks at, or changes, what passes between the two."""
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
    """Returns the graph of a network, or None where its forward is more than a graph.

    A copy is traced: what a forward notes in passing must not be of proxies.
    """
    try:
        return fx.Tracer().trace(copy.deepcopy(network))
    except Exception:  # a forward may fail under proxies in any way
        return None
