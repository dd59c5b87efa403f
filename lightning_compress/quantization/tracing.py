"""Graph of the function calls of a model, recorded in one eager run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.arguments import call_model
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
    """Function call of a model.

    Attributes:
        module: Name of the module that makes the call.
        call: Call inside the module.
        operands: Values of the tensor arguments in order, with lists flattened.
        weight: Name of the module's own parameter that is the second argument, if it is one.
        outputs: Values of the returned tensors.
        shapes: Shapes of the operands.
        is_tensor: The call returns a tensor, not a tuple that holds one.
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
        """Name in messages and lists, ``"<module>.<function>"``."""
        return f"{self.module}.{self.call.function}".lstrip(".")


@dataclass
class Graph:
    """Calls of one run in order, and the values that flow between them.

    Attributes:
        nodes: Calls.
        producer: Call that returned a value, by value; inputs of the model, parameters and buffers have none.
        parameters: Names of parameters and buffers, by value.
        called: Names of the modules that were called.
        written: Values that an in-place call returned, and that were then read from the tensor it had written into.
            Replacing the returned tensor does not reach these readers.
    """

    nodes: list[Node] = field(default_factory=list)
    producer: dict[int, Node] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    written: set[int] = field(default_factory=set)

    def within(self, modules: Sequence[str]) -> Graph:
        """Return the subgraph of some modules; values from outside have no producer in it."""
        prefixes = tuple(f"{name}." if name else "" for name in modules)
        nodes = [node for node in self.nodes if f"{node.module}.".startswith(prefixes)]
        kept = set(map(id, nodes))
        producer = {value: node for value, node in self.producer.items() if id(node) in kept}
        return Graph(nodes, producer, self.parameters, self.called, self.written)

    def users(self) -> dict[int, list[Node]]:
        """Return the calls that read a value, by value."""
        users: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value, []).append(node)
        return users


class _Recorder(CallPatcher):
    """CallPatcher that records every call and changes none."""

    def __init__(self, name: str, run: _Run, parent: CallPatcher | None) -> None:
        super().__init__()
        self.name = name
        self.run = run
        self.parent = parent

    def begin(self, module: nn.Module) -> None:
        super().begin(module)
        # Only passes inside one pass of the parent are distinguished: a training step that calls the network on two
        # views makes the same call twice.
        self.repeat = self.repeat + 1 if self.parent is not None and self.parent.modes else 0
        self.run.graph.called.add(self.name)
        for child in module.children():
            patcher = patcher_of(child)
            assert patcher is not None
            patcher.repeat = -1

    def handle(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = canonical(function)
        call = partial(function, *args, **kwargs)
        args, kwargs = positional(args, kwargs)  # for inspection only: some functions have another order of arguments
        if not is_floating(args):
            return call()
        occurrence = self.counts.get(name, 0)
        self.counts[name] = occurrence + 1
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = tuple(self.run.value(tensor) for tensor in operands)
        shapes = tuple(tensor.shape for tensor in operands)
        version = _version(args[0])
        output = call()
        outputs = tuple(self.run.new_value(t) for t in tree_leaves(output) if isinstance(t, Tensor))
        if outputs:
            second = args[1] if len(args) > 1 else kwargs.get("weight")
            weight = next((n for n, p in module.named_parameters(recurse=False) if p is second), None)
            node = Node(
                self.name,
                CallSite(name, occurrence, self.repeat),
                values,
                weight,
                outputs,
                shapes,
                isinstance(output, Tensor),
            )
            self.run.graph.nodes.append(node)
            self.run.graph.producer.update(dict.fromkeys(outputs, node))
        # An increased version counter identifies in-place calls, whatever their names.
        return self.run.alias(output) if output is args[0] and _version(output) != version else output


class _Run:
    """Numbering of the tensors of a run, which are kept alive so that no ``id`` is used twice."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self._values: dict[int, int] = {}
        self._kept_alive: list[Tensor] = []
        self._written: dict[int, int] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.graph.parameters[self.new_value(tensor)] = name

    def value(self, tensor: Tensor) -> int:
        value = self._values[id(tensor)] if id(tensor) in self._values else self.new_value(tensor)
        if self._written.get(id(tensor)) == value:
            self.graph.written.add(value)
        return value

    def new_value(self, tensor: Tensor) -> int:
        self._kept_alive.append(tensor)
        self._values[id(tensor)] = len(self._kept_alive) - 1
        return self._values[id(tensor)]

    def alias(self, tensor: Tensor) -> Tensor:
        """Return the result of an in-place call as another object, so that their readers can be distinguished."""
        value = self._written[id(tensor)] = self._values[id(tensor)]
        alias = tensor.view_as(tensor)
        self._kept_alive.append(alias)
        self._values[id(alias)] = value
        return alias


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


@contextmanager
def record_graph(model: nn.Module) -> Iterator[Graph]:
    """Record the calls that a model without patchers makes inside the context.

    Args:
        model: The model; module names in the graph are relative to it.
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


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Record the calls of a model without quantizers in eval mode; a copy of the model is run."""
    traced = copy.deepcopy(model).eval()
    with record_graph(traced) as graph, torch.no_grad():
        call_model(traced, inputs)
    return graph
