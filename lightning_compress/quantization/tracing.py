"""Graph of the function calls of a model, recorded in one eager run."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.arguments import call_model
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.call_patcher import (
    Action,
    CallIndex,
    CallPatcher,
    CallSite,
    Position,
    install,
    is_patchable,
    patcher_of,
    replace_patcher,
    uninstall,
)
from lightning_compress.quantization.forward_pass import PassPath, active
from lightning_compress.quantization.function_names import CHANNEL_AXIS, is_floating, name_of_call, positional


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
        is_floating: All operands are floating-point tensors.
        is_tensor: The call returns a tensor, not a tuple that holds one.
        path: Modules around the call, from the one that was called from outside.
        arguments: Arguments of a layer or an affine map, with ``None`` for the tensors that are not constant.
        action: Action at the call, if the model that was run had one.
        in_training: The module was in training mode.
    """

    module: str
    call: CallSite
    operands: tuple[int, ...]
    weight: str | None
    outputs: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    is_floating: bool
    is_tensor: bool
    path: tuple[str, ...] = ()
    arguments: tuple[Any, Any] | None = field(default=None, compare=False, repr=False)
    action: Action | None = field(default=None, compare=False, repr=False)
    in_training: bool = False

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
        constants: Parameters, buffers and the tensors that are computed from them alone, by value.
        called: Names of the modules that were called.
        index: By module name, the positions of its calls, by which they are found again in other runs.
        masks: Values with entries of -10,000 or less, or infinite ones, as attention masks have them.
        outputs: Tensors that a module returned, by module name; no numbers, as losses are.
        returned: Tensors that the model returned; ``None`` if they come from calls that are not recorded.
        opaque: Names of TorchScript modules, the calls of which are not seen.
        written: Values that an in-place call returned, and that were then read from the tensor it had written into.
            Replacing the returned tensor does not reach these readers.
    """

    nodes: list[Node] = field(default_factory=list)
    producer: dict[int, Node] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict, repr=False)
    called: set[str] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    index: dict[str, CallIndex] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    opaque: list[str] = field(default_factory=list)
    outputs: dict[str, set[int]] = field(default_factory=dict)
    returned: set[int] | None = None

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
        return replace(self, nodes=nodes, producer=producer)

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

    @property
    def live_values(self) -> set[int]:
        """Values on which something that the model returned depends."""
        if self.returned is None:
            return {value for node in self.nodes for value in (*node.operands, *node.outputs)}
        return self.ancestors(self.returned)

    def without_dead_calls(self) -> list[Node]:
        """Return the calls on which something that the model returned depends."""
        live = self.live_values
        return [node for node in self.nodes if not live.isdisjoint(node.outputs)]

    def users(self) -> dict[int, list[Node]]:
        """Return the calls that read a value, by value."""
        users: dict[int, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value, []).append(node)
        return users


# Functions of which the constant arguments are kept: layers, and what can be folded into them.
_WITH_CONSTANTS = {*CHANNEL_AXIS, "batch_norm", "mul", "add", "sub", "div", "truediv"}


class _Recorder(CallPatcher):
    """CallPatcher that records every call, and leaves it to the patcher that the module has, if there is one."""

    def __init__(self, name: str, run: _Run, inner: CallPatcher | None) -> None:
        super().__init__()
        self.inner = inner or CallPatcher()
        # Positions in the model that was traced for the inner patcher, of which this model may be a part.
        self.name = self.inner.name or name
        self.module_name = name
        self.run = run

    def handle(
        self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any, frame: FrameType | None
    ) -> Any:
        name = name_of_call(function, args, kwargs)
        given = args, kwargs
        args, kwargs = positional(args, kwargs)  # for inspection only: some functions have another order of arguments
        if not is_floating(args):
            return function(*given[0], **given[1])
        assert frame is not None, "traced runs are eager"
        current = active[-1]
        position = Position.of(current, name, frame)
        path = tuple(module_name for module_name, _ in current.path)
        site = CallSite(name, current.count(name), self.run.repeat_of(self.module_name, current.path))
        index = self.inner.index
        action = self.inner.action_at(name, site if index is None else index.find(current, name, position))
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        values = tuple(self.run.value(tensor) for tensor in operands)
        shapes = tuple(tensor.shape for tensor in operands)
        version = _version(args[0])
        output = function(*given[0], **given[1]) if action is None else action(module, function, args, kwargs)
        outputs = tuple(self.run.new_value(t) for t in tree_leaves(output) if isinstance(t, Tensor))
        if outputs:
            self.run.note_constants(values, output)
            second = args[1] if len(args) > 1 else kwargs.get("weight")
            weight = next((n for n, p in module.named_parameters(recurse=False) if p is second), None)
            node = Node(
                module=self.module_name,
                call=site,
                operands=values,
                weight=weight,
                outputs=outputs,
                shapes=shapes,
                is_floating=all(tensor.is_floating_point() for tensor in operands),
                is_tensor=isinstance(output, Tensor),
                path=path,
                arguments=self.run.constants_of((args, kwargs)) if name in _WITH_CONSTANTS else None,
                action=action,
                in_training=module.training,
            )
            self.run.graph.nodes.append(node)
            self.run.graph.producer.update(dict.fromkeys(outputs, node))
            self.run.graph.index.setdefault(self.module_name, CallIndex()).add(current.path, position, site)
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
            value = self.new_value(tensor)
            self.graph.parameters[value] = name
            self.graph.constants[value] = tensor

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

    def known_values(self, tensors: Iterable[Tensor]) -> set[int] | None:
        """Return the values of tensors; ``None`` if one of them is new."""
        values = [self._values.get(id(tensor)) for tensor in tensors]
        return None if None in values or not values else {value for value in values if value is not None}

    def note_constants(self, operands: Sequence[int], output: Any) -> None:
        """Note the results of a call on constants alone."""
        if operands and all(value in self.graph.constants for value in operands):
            self.graph.constants.update({self.value(t): t for t in tree_leaves(output) if isinstance(t, Tensor)})

    def constants_of(self, arguments: Any) -> Any:
        """Return arguments of a call with ``None`` for the tensors that are not constant."""
        constants = self.graph.constants
        return tree_map_only(Tensor, lambda t: t if self._values.get(id(t)) in constants else None, arguments)

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
    """Record the calls that a model makes inside the context; actions of its patchers are carried out.

    Args:
        model: The model; module names in the graph are relative to it.
    """
    run = _Run(model)
    modules = {name: module for name, module in model.named_modules() if is_patchable(module)}
    run.graph.opaque = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    handles = []
    inner = {name: patcher_of(module) for name, module in modules.items()}
    for name, module in modules.items():
        recorder = _Recorder(name, run, inner[name])
        install(module, recorder) if inner[name] is None else replace_patcher(module, recorder)
        handles.append(module.register_forward_pre_hook(partial(_note_call, run.graph.called, name)))
        handles.append(module.register_forward_hook(partial(_note_output, run, name)))
    try:
        yield run.graph
    finally:
        for handle in handles:
            handle.remove()
        for name, module in modules.items():
            patcher = inner[name]
            uninstall(module) if patcher is None else replace_patcher(module, patcher)


def _note_call(called: set[str], name: str, module: nn.Module, args: Any) -> None:
    called.add(name)


def _note_output(run: _Run, name: str, module: nn.Module, args: Any, output: Any) -> None:
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    if name == "":
        run.graph.returned = run.known_values(leaf for leaf in leaves if isinstance(leaf, Tensor))
    tensors = (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim)
    run.graph.outputs.setdefault(name, set()).update(map(run.value, tensors))


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Record the calls of a model without quantizers in eval mode; a copy of the model is run."""
    traced = copy_module(model).eval()
    with record_graph(traced) as graph, torch.no_grad():
        call_model(traced, inputs)
    return graph
