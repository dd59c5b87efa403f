"""What a model does, as one eager run shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.quantization.call_patcher import (
    CallPatcher,
    CallSite,
    canonical,
    install,
    is_floating,
    patcher_of,
    positional,
    uninstall,
)


@dataclass(frozen=True)
class Node:
    """A function call of a model.

    Attributes:
        module: Name of the module that made it.
        call: Which call in the module.
        operands: Values of the tensors it was given, in order; the values of a list stand in its place.
        weight: Name of the module's own parameter that was its second argument, if one was.
        outputs: Values of the tensors it returned.
        shapes: Shapes of the operands.
        is_tensor: Whether what it returned is a tensor, not a tuple that holds one.
    """

    module: str
    call: CallSite
    operands: tuple[int, ...]
    weight: str | None
    outputs: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    is_tensor: bool

    @property
    def name(self) -> str:
        """How messages and lists call it, ``"<module>.<function>"``."""
        return f"{self.module}.{self.call.function}".lstrip(".")


@dataclass
class Graph:
    """The calls of one run, in order, and the values between them.

    Attributes:
        nodes: The calls.
        maker: The call that made a value, by value; values from elsewhere have none.
        parameters: Values that are parameters or buffers.
        called: Modules that were called.
        written: Values that a call wrote into a tensor and returned, and that were then read from that tensor: what is
            done with what the call returned does not reach them.
    """

    nodes: list[Node] = field(default_factory=list)
    maker: dict[int, Node] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    written: set[int] = field(default_factory=set)

    def within(self, modules: Sequence[str]) -> Graph:
        """The part of the graph that lies in some modules; what comes from elsewhere has no maker in it."""
        prefixes = tuple(f"{name}." if name else "" for name in modules)
        nodes = [node for node in self.nodes if f"{node.module}.".startswith(prefixes)]
        kept = set(map(id, nodes))
        maker = {value: node for value, node in self.maker.items() if id(node) in kept}
        return Graph(nodes, maker, self.parameters, self.called, self.written)

    def users(self) -> dict[int, list[Node]]:
        """The calls that read a value, by value."""
        users: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value, []).append(node)
        return users


class _Recorder(CallPatcher):
    """CallPatcher that write down every call."""

    def __init__(self, name: str, run: _Run, parent: CallPatcher | None) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.parent = parent

    def begin(self, module: nn.Module) -> None:
        super().begin(module)
        # Calls from outside the parent's, such as a training step's of two views, are all the same call.
        self.repeat = self.repeat + 1 if self.parent is not None and self.parent.modes else 0
        self.run.graph.called.add(self.name)
        for child in module.children():
            sites = patcher_of(child)
            assert sites is not None
            sites.repeat = -1

    def handle(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = canonical(function)
        call = partial(function, *args, **kwargs)
        args, kwargs = positional(args, kwargs)  # to look at: not all functions have them in this order
        if not is_floating(args):
            return call()
        occurrence = self.counts.get(name, 0)
        self.counts[name] = occurrence + 1
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = tuple(self.run.value(tensor) for tensor in operands)
        shapes = tuple(tensor.shape for tensor in operands)
        version = _version(args[0])
        output = call()
        made = tuple(self.run.new_value(t) for t in tree_leaves(output) if isinstance(t, Tensor))
        if made:
            second = args[1] if len(args) > 1 else kwargs.get("weight")
            weight = next((n for n, p in module.named_parameters(recurse=False) if p is second), None)
            node = Node(
                self.name,
                CallSite(name, occurrence, self.repeat),
                values,
                weight,
                made,
                shapes,
                isinstance(output, Tensor),
            )
            self.run.graph.nodes.append(node)
            self.run.graph.maker.update(dict.fromkeys(made, node))
        return self.run.alias(output) if output is args[0] and _version(output) != version else output


class _Run:
    """Gives numbers to tensors, which it holds on to so that no identity is used twice."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self._values: dict[int, int] = {}
        self._held: list[Tensor] = []
        self._written: dict[int, int] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.graph.parameters[self.new_value(tensor)] = name

    def value(self, tensor: Tensor) -> int:
        value = self._values[id(tensor)] if id(tensor) in self._values else self.new_value(tensor)
        if self._written.get(id(tensor)) == value:
            self.graph.written.add(value)
        return value

    def new_value(self, tensor: Tensor) -> int:
        self._held.append(tensor)
        self._values[id(tensor)] = len(self._held) - 1
        return self._values[id(tensor)]

    def alias(self, tensor: Tensor) -> Tensor:
        """What a call in place returns, made another object than what it wrote into, to see which is read."""
        value = self._written[id(tensor)] = self._values[id(tensor)]
        alias = tensor.view_as(tensor)
        self._held.append(alias)
        self._values[id(alias)] = value
        return alias


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


@contextmanager
def recording(model: nn.Module) -> Iterator[Graph]:
    """While it lasts, writes down the calls that a model without sites makes.

    Args:
        model: The model; its modules are named relative to it.
    """
    run = _Run(model)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parent = patcher_of(modules[name.rpartition(".")[0]]) if name else None
        install(module, _Recorder(name, run, parent))
    try:
        yield run.graph
    finally:
        for module in modules.values():
            uninstall(module)
