"""Specification of each quantizer of a model, placed by a traced run or by a state dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_compress.layer_kinds import TRANSPOSED_CONVOLUTIONS
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.function_names import CHANNEL_AXIS
from lightning_compress.quantization.insertion import insert_quantizers, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.placement import Placement, QuantizationPoint, weight_point
from lightning_compress.quantization.quantizer import PREFIX, Quantizer
from lightning_compress.quantization.tracing import Graph
from lightning_compress.serialization import plain_mapping
from lightning_compress.targets import COMPILED, Target, matches, shorten

QuantizationSpec = Int | Mapping[str, Int | None] | None
"""One specification for all modules, or by globs over module names, the first match first; ``None`` keeps FP32."""

_Table = dict[str, dict[QuantizationPoint, Quantizer]]


class QuantizerPlan:
    """Specifications of the quantizers of a model.

    Args:
        weights: Specification of the targets' weights.
        activations: Specification of the inputs and outputs of the targets.
        is_target: By module name, True if the weight of the module is a target.
        backend: Arithmetic of the runtime.

    Raises:
        ValueError: If activations have a granularity other than ``"tensor"``, or a zero point that the backend does
            not take.
    """

    def __init__(
        self,
        weights: QuantizationSpec,
        activations: QuantizationSpec,
        is_target: Mapping[str, bool],
        backend: Backend = OnnxRuntime(),
    ) -> None:
        self.backend = backend
        self.weights = _by_glob(weights, Int.for_weights)
        self.activations = _by_glob(activations, partial(Int.for_activations, backend=backend))
        # A layer whose glob gives FP32 weights is not a target. With weights=None all targets stay, so that their
        # activations are quantized.
        self.is_target = {
            name: chosen and (weights is None or _first_match(self.weights, name) is not None)
            for name, chosen in is_target.items()
        }

    def insert_traced(self, model: nn.Module, graph: Graph) -> Placement:
        """Insert quantizers into a model that has none, at the quantization points of its graph.

        Args:
            model: The model.
            graph: Graph of a run of it, or of a copy; module names are relative to it.

        Raises:
            ValueError: If a glob matches nothing, if a target is no linear or convolutional layer, if a group size
                does not divide the input features of a layer, or if tensors that are concatenated cannot have one
                scale although the backend requires it.
        """
        placement = Placement(graph, dict(self.is_target), self.backend)
        self._check_kinds(model, graph)
        shapes: dict[QuantizationPoint, torch.Size] = {}
        functions: dict[QuantizationPoint, str] = {}
        for node in placement.weights():
            functions[weight_point(node)] = node.call.function
            shapes[weight_point(node)] = node.shapes[1]
        table: _Table = {}
        for point, function in functions.items():
            self._add_weight(table, point, CHANNEL_AXIS[function])
            _check_groups(_first_match(self.weights, point.module), point.module, shapes[point])
        for point in placement.activations():
            self._add_activation(table, point)
        _check_globs(self.weights, list(self.is_target), "weights")
        _check_globs(self.activations, [point.module for point in placement.activations()], "activations")
        insert_quantizers(
            model, table, lambda point, quantizer: quantizer.scale_shape(shapes.get(point, torch.Size())), graph
        )
        self._share_scales(model, placement)
        return placement

    def insert_stored(self, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
        """Insert quantizers into a model that has none, at the points for which a state dict has scales."""
        table: _Table = {}
        shapes: dict[QuantizationPoint, torch.Size] = {}
        for key, tensor in stored.items():
            module, _, name = key.rpartition(".")
            if name.startswith(PREFIX) and name.endswith("_scale"):
                point = QuantizationPoint.from_name(module, name.removeprefix(PREFIX).removesuffix("_scale"))
                shapes[point] = tensor.shape
                if point.role == "weight":
                    self._add_weight(table, point, _channel_axis(model.get_submodule(module), point))
                else:
                    self._add_activation(table, point)
                if point in table.get(module, {}):
                    table[module][point].ready = bool((tensor != 0).all())
        insert_quantizers(model, table, lambda point, quantizer: shapes[point])

    def check_same(self, model: nn.Module, graph: Graph | None) -> None:
        """Check that the quantizers of a model have the specifications of the plan.

        Activation quantizers at points that the graph does not have are not checked: a model may have been calibrated
        as a whole, and be called in parts.

        Args:
            model: The model.
            graph: As for :meth:`insert_traced`; without it, quantizers that the model lacks are not noticed.

        Raises:
            ValueError: If a quantizer differs; with the first one.
        """
        specs = {ref.name: ref.quantizer.spec for ref in quantizers_of(model)}
        points = [QuantizationPoint.from_name(ref.layer, ref.quantizer.name) for ref in quantizers_of(model)]
        if graph is not None:
            placement = Placement(graph, dict(self.is_target), self.backend)
            points += [*map(weight_point, placement.weights()), *placement.activations()]
        for point in points:
            name = point.full_name.replace(COMPILED, "")
            if specs.get(name) != self.spec_at(point):
                raise ValueError(
                    f"The model is quantized already, with {specs.get(name) or 'FP32'} at {name!r} where the callback "
                    f"requires {self.spec_at(point) or 'FP32'}: pass the same weights, activations and targets as "
                    "before, or start from lc.float_copy(model).requires_grad_().train()."
                )

    def _share_scales(self, model: nn.Module, placement: Placement) -> None:
        """Let quantizers observe together where the backend requires one scale, as for concatenated tensors."""
        quantizers = {ref.name: ref.quantizer for ref in quantizers_of(model)}
        for points in placement.shared_scales():
            names = [point.full_name for point in points]
            shared = [quantizers[name] for name in names if name in quantizers]
            if len({quantizer.spec for quantizer in shared}) > 1 or any(quantizer.is_learned for quantizer in shared):
                raise ValueError(
                    f"{self.backend.name} computes with one scale for {shorten(names)}, which are quantized "
                    "differently or have learned scales: give them one Int, with another observer than "
                    "Learned()."
                )
            for quantizer in shared:
                quantizer.shared = shared

    def _check_kinds(self, model: nn.Module, graph: Graph) -> None:
        """Check that a called target computes by a function with a quantized form, or is a container of such calls."""
        for node in graph.nodes:
            for value in node.operands:
                owner, _, parameter = graph.parameters.get(value, "").rpartition(".")
                is_chosen = parameter == "weight" and owner == node.module and self.is_target.get(owner, False)
                if is_chosen and node.call.function not in CHANNEL_AXIS and not _is_layer(model.get_submodule(owner)):
                    kind = type(model.get_submodule(owner)).__name__
                    raise ValueError(
                        f"The target {owner!r} ({kind}) computes by {node.call.function!r}, for which there is no "
                        f"quantized form: remove {kind} from Targets(types=...), or replace it by nn.Linear."
                    )

    def spec_at(self, point: QuantizationPoint) -> Int | None:
        """Return the specification of a quantization point; ``None`` for FP32."""
        if point.role != "weight":
            return _first_match(self.activations, point.module)
        targets = {name.replace(COMPILED, "") for name, chosen in self.is_target.items() if chosen}
        return _first_match(self.weights, point.module) if point.module.replace(COMPILED, "") in targets else None

    def _add_weight(self, table: _Table, point: QuantizationPoint, axis: int) -> None:
        spec = _first_match(self.weights, point.module)
        if spec is not None:
            table.setdefault(point.module, {})[point] = Quantizer(point.name, spec, axis=axis, is_weight=True)

    def _add_activation(self, table: _Table, point: QuantizationPoint) -> None:
        spec = _first_match(self.activations, point.module)
        if spec is not None:
            table.setdefault(point.module, {})[point] = Quantizer(point.name, spec)


def owning_modules(targets: Iterable[Target]) -> dict[str, bool]:
    """Return the names of the modules that own the targets, as the model spells them, each with True."""
    return {target.name.rpartition(".")[0]: True for target in targets}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))


def _channel_axis(module: nn.Module, point: QuantizationPoint) -> int:
    if point.call.function:
        return CHANNEL_AXIS[point.call.function]
    return int(isinstance(module, TRANSPOSED_CONVOLUTIONS))


def _by_glob(spec: QuantizationSpec, complete: Callable[[Int], Int]) -> dict[str, Int | None]:
    spec = plain_mapping(spec)
    given = spec if isinstance(spec, Mapping) else {"*": spec}
    return {glob: None if value is None else complete(value) for glob, value in given.items()}


def _first_match(specs: Mapping[str, Int | None], name: str) -> Int | None:
    name = name.replace(COMPILED, "")
    return next((spec for glob, spec in specs.items() if glob == "*" or matches(glob, name)), None)


def _check_groups(spec: Int | None, layer: str, shape: torch.Size) -> None:
    group = None if spec is None else spec.granularity
    if isinstance(group, int) and (len(shape) != 2 or shape[1] % group):
        raise ValueError(
            f"weights: Int(granularity={group}) requires linear layers with a multiple of {group} input features, and "
            f"the weight of {layer!r} is {list(shape)}: give it granularity='channel' by a glob of its own."
        )


def _check_globs(specs: Mapping[str, Int | None], names: Sequence[str], argument: str) -> None:
    for glob in specs:
        if glob != "*" and not any(matches(glob, name.replace(COMPILED, "")) for name in names):
            raise ValueError(
                f"{argument}: {glob!r} matches nothing that is quantized; the modules are "
                f"{shorten(sorted(set(names)))}."
            )
