"""Runs an unmodified network on values other than tensors, by a table of rules.

`trace` traces a network once with torch.fx; `run` then walks the graph with the network's own
modules and parameters. Steps on tensors are the network's own; steps on values of a table's kind,
such as moments or boxes, apply the rule that the table has for the module, function or method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

Watch = Callable[[fx.Node, Any], None]


@dataclass(frozen=True)
class Table:
    """What a network may be run on.

    Attributes:
        rules: by module class, function, or name of a tensor method.
        kind: class of the values that the rules take in place of features.
        what: the values in words, for messages.
        register: the function that adds a rule, for messages.
        strict: whether a module class needs a rule of its own, not of a class it derives from, and
            modules with hooks are refused: rules do not run them.
    """

    rules: Mapping[Any, Callable[..., Any]]
    kind: type[Any]
    what: str
    register: str
    strict: bool = False


class _Tracer(fx.Tracer):
    """Treats torch's layers and all module classes with a rule as leaves."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.table.rules or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module, table: Table) -> fx.Graph:
    """Returns the graph of a network, which refers to modules by name.

    Raises:
        ValueError: the network cannot be traced because its forward pass depends on its input.
    """
    try:
        return _Tracer(table).trace(network)
    except Exception as error:  # a network's code may raise anything on proxies
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx: {error}; its forward pass "
            "must not branch on its input, unless the part that does is a separate module with a "
            f"rule ({table.register})"
        ) from error


def run(
    graph: fx.Graph,
    network: nn.Module,
    value: Any,
    table: Table,
    *,
    watch: Watch | None = None,
    head: fx.Node | None = None,
) -> Any:
    """Runs the graph on a value; returns the network's output, or with `head` the input of that
    node. Values are freed after their last use.

    Args:
        graph: result of `trace(network, table)`.
        network: the network.
        value: of the table's kind, or images (B, C, H, W).
        table: the rules.
        watch: called with each node and its value.
        head: node to stop at.

    Raises:
        ValueError: a step has no rule or an unsupported setting; names it.
    """
    values: dict[fx.Node, Any] = {}
    waiting = {node: len(node.users) for node in graph.nodes}
    inputs = iter([value])
    for node in graph.nodes:
        if node is head or node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(inputs, node.args[0] if node.args else None)
        else:
            values[node] = _step(node, network, values, table)
        if watch is not None:
            watch(node, values[node])
        for used in node.all_input_nodes:
            waiting[used] -= 1
            if not waiting[used]:
                del values[used]
    raise ValueError("the network returns nothing")


def named(
    defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of a call by name; `defaults` is in the order of the signature."""
    unknown = kwargs.keys() - defaults.keys()
    if unknown or len(args) > len(defaults):
        raise ValueError(f"the arguments {sorted(unknown) or args}")
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def _step(node: fx.Node, network: nn.Module, values: dict[fx.Node, Any], table: Table) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(network.get_submodule(owner), name)
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if not any(isinstance(values[used], table.kind) for used in node.all_input_nodes):
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
    what, rule = _rule(node, module, table)
    try:
        return rule(*(() if module is None else (module,)), *args, **kwargs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: no rule for {error}") from error


def _rule(node: fx.Node, module: nn.Module | None, table: Table) -> tuple[str, Callable[..., Any]]:
    """Returns the name of a step, for messages, and its rule."""
    if module is not None:
        kind: Any = type(module)
        what = f"layer '{node.target}' ({kind.__name__})"
        keys: tuple[Any, ...] = kind.__mro__[:1] if table.strict else kind.__mro__
        if table.strict and (module._forward_hooks or module._forward_pre_hooks):
            raise ValueError(f"{what} has hooks, which no rule for {table.what} runs; remove them")
    else:
        kind = node.target
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        what = f"step '{node.name}' ({name})"
        keys = (kind,)
    for key in keys:
        if key in table.rules:
            return what, table.rules[key]
    raise ValueError(
        f"{what} has no rule for {table.what}; add one with "
        f"{table.register}, or use a network of convolutions, linear layers, "
        "batch norm, (leaky) ReLU, pooling and sums"
    )
