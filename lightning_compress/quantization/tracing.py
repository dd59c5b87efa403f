"""Graph of the function calls of a model, recorded in one eager run."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.arguments import call_model
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.call_patcher import (
    CallIndex,
    CallPatcher,
    CallSite,
    Position,
    install,
    is_patchable,
    uninstall,
)
from lightning_compress.quantization.forward_pass import PassPath, active
from lightning_compress.quantization.function_names import is_floating, name_of_call, positional


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
        path: Modules around the call, from the one that was called from outside.
    """

    module: str
    call: CallSite
    operands: tuple[int, ...]
    weight: str | None
    outputs: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    is_tensor: bool
    path: tuple[str, ...] = ()

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
        index: By module name, the positions of its calls, by which they are found again in other runs.
        masks: Values with entries of -10,000 or less, or infinite ones, as attention masks have them.
        outputs: Tensors that a module returned, by module name; no numbers, as losses are.
        opaque: Names of TorchScript modules, the calls of which are not seen.
        written: Values that an in-place call returned, and that were then read from the tensor it had written into.
            Replacing the returned tensor does not reach these readers.
    """

    nodes: list[Node] = field(default_factory=list)
    producer: dict[int, Node] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    index: dict[str, CallIndex] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    opaque: list[str] = field(default_factory=list)
    outputs: dict[str, set[int]] = field(default_factory=dict)

    def within(self, modules: Sequence[str], layers: Sequence[str] = ()) -> Graph:
        """Return the subgraph of some modules; values from outside have no producer in it.

        Calls on which no output of the modules depends are left out: they compute losses and metrics.

        Args:
            modules: Names of the modules.
            layers: Names of layers that belong to the subgraph also where they are called from outside of ``modules``.
        """
        prefixes = tuple(f"{name}." if name else "" for name in modules)
        around = {layer.split(".")[0] for layer in layers}
        live = self.ancestors(value for name in modules for value in self.outputs.get(name, ()))
        nodes = [
            node
            for node in self.nodes
            if f"{node.module}.".startswith(prefixes)
            and (not around or not set(modules).isdisjoint(node.path) or node.module.split(".")[0] in around)
            and (not live or set(modules).isdisjoint(node.path) or not live.isdisjoint(node.outputs))
        ]
        kept = set(map(id, nodes))
        producer = {value: node for value, node in self.producer.items() if id(node) in kept}
        return Graph(
            nodes,
            producer,
            self.parameters,
            self.called,
            self.written,
            self.index,
            self.masks,
            self.opaque,
            self.outputs,
        )

    def ancestors(self, values: Iterable[int], through: Container[str] | None = None) -> set[int]:
        """Return values and all that they are computed from, by the given functions only if there are any."""
        found: set[int] = set()
        remaining = list(values)
        while remaining:
            value = remaining.pop()
            producer = self.producer.get(value)
            if value not in found and producer is not None and (through is None or producer.call.function in through):
                remaining += producer.operands
            found.add(value)
        return found

    def users(self) -> dict[int, list[Node]]:
        """Return the calls that read a value, by value."""
        users: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value, []).append(node)
        return users


class _Recorder(CallPatcher):
    """CallPatcher that records every call and changes none."""

    def __init__(self, name: str, run: _Run) -> None:
        super().__init__()
        self.name = name
        self.run = run

    def handle(
        self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any, frame: FrameType | None
    ) -> Any:
        name = name_of_call(function, args, kwargs)
        call = partial(function, *args, **kwargs)
        args, kwargs = positional(args, kwargs)  # for inspection only: some functions have another order of arguments
        if not is_floating(args):
            return call()
        assert frame is not None, "traced runs are eager"
        current = active[-1]
        position = Position.of(current, name, frame)
        path = tuple(module_name for module_name, _ in current.path)
        site = CallSite(name, current.count(name), self.run.repeat_of(self.name, current.path))
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = tuple(self.run.value(tensor) for tensor in operands)
        shapes = tuple(tensor.shape for tensor in operands)
        version = _version(args[0])
        output = call()
        outputs = tuple(self.run.new_value(t) for t in tree_leaves(output) if isinstance(t, Tensor))
        if outputs:
            second = args[1] if len(args) > 1 else kwargs.get("weight")
            weight = next((n for n, p in module.named_parameters(recurse=False) if p is second), None)
            node = Node(self.name, site, values, weight, outputs, shapes, isinstance(output, Tensor), path)
            self.run.graph.nodes.append(node)
            self.run.graph.producer.update(dict.fromkeys(outputs, node))
            self.run.graph.index.setdefault(self.name, CallIndex()).add(current.path, position, site)
        # An increased version counter identifies in-place calls, whatever their names.
        return self.run.alias(output) if output is args[0] and _version(output) != version else output


_MASKING = -1e4  # no activation is that far out, and the exponential of it is 0 in any precision


class _Run:
    """Numbering of the tensors of a run, which are kept alive so that no ``id`` is used twice."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self._values: dict[int, int] = {}
        self._kept_alive: list[Tensor] = []
        self._written: dict[int, int] = {}
        self._repeats: dict[str, dict[PassPath, int]] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.graph.parameters[self.new_value(tensor)] = name

    def repeat_of(self, module: str, path: PassPath) -> int:
        """Return the number of a pass among the passes of a module with different paths, in the order of the run."""
        repeats = self._repeats.setdefault(module, {})
        return repeats.setdefault(path, len(repeats))

    def value(self, tensor: Tensor) -> int:
        value = self._values[id(tensor)] if id(tensor) in self._values else self.new_value(tensor)
        if self._written.get(id(tensor)) == value:
            self.graph.written.add(value)
        return value

    def new_value(self, tensor: Tensor) -> int:
        self._kept_alive.append(tensor)
        value = self._values[id(tensor)] = len(self._kept_alive) - 1
        if tensor.is_floating_point() and tensor.ndim and tensor.numel() and bool(tensor.detach().amin() <= _MASKING):
            self.graph.masks.add(value)
        return value

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
    modules = {name: module for name, module in model.named_modules() if is_patchable(module)}
    run.graph.opaque = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    handles = []
    for name, module in modules.items():
        install(module, _Recorder(name, run))
        handles.append(module.register_forward_pre_hook(partial(_note_call, run.graph.called, name)))
        handles.append(module.register_forward_hook(partial(_note_output, run, name)))
    try:
        yield run.graph
    finally:
        for handle in handles:
            handle.remove()
        for module in modules.values():
            uninstall(module)


def _note_call(called: set[str], name: str, module: nn.Module, args: Any) -> None:
    called.add(name)


def _note_output(run: _Run, name: str, module: nn.Module, args: Any, output: Any) -> None:
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim)
    run.graph.outputs.setdefault(name, set()).update(map(run.value, tensors))


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Record the calls of a model without quantizers in eval mode; a copy of the model is run."""
    traced = copy_module(model).eval()
    with record_graph(traced) as graph, torch.no_grad():
        call_model(traced, inputs)
    return graph
