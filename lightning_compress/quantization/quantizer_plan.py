"""Which places of a model get which integers: told by a run of it, or by a state dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.quantization.insertion import add_quantizers, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.placement import CHANNEL_AXIS, Placement, QuantizationPoint, weight_place
from lightning_compress.quantization.quantizer import PREFIX, Quantizer
from lightning_compress.quantization.tracing import Graph
from lightning_compress.targets import COMPILED, Target, matches, shorten

QuantizationSpec = Int | Mapping[str, Int | None] | None
"""One specification for all, or the first glob's that matches the name of the module; ``None`` is float."""


class QuantizerPlan:
    """Which places get which integers.

    Args:
        weights: Of the targets' weights.
        activations: Of what the targets read and make.
        is_target: Whether a module's weight is a target.

    Raises:
        ValueError: For activations that do not share one scale per tensor.
    """

    def __init__(self, weights: QuantizationSpec, activations: QuantizationSpec, is_target: Mapping[str, bool]) -> None:
        self.weights = _each(weights, Int.for_weights)
        self.activations = _each(activations, Int.for_activations)
        self.is_target = {
            name: chosen and (weights is None or _first(self.weights, name) is not None)
            for name, chosen in is_target.items()
        }

    def insert_traced(self, model: nn.Module, graph: Graph) -> Placement:
        """Hangs quantizers into a model that has none, where one run of it shows that they belong.

        Args:
            model: The model.
            graph: What a run of it, or of a copy, has shown; names are relative to it.

        Raises:
            ValueError: For globs that match no place.
        """
        placement = Placement(graph, dict(self.is_target))
        shapes: dict[QuantizationPoint, torch.Size] = {}
        functions: dict[QuantizationPoint, str] = {}
        for node in placement.weights():
            functions[weight_place(node)] = node.call.function
            shapes[weight_place(node)] = node.shapes[1]
        table: dict[str, dict[QuantizationPoint, Quantizer]] = {}
        for place, function in functions.items():
            self._add_weight(table, place, CHANNEL_AXIS[function])
            _check_groups(_first(self.weights, place.module), place.module, shapes[place])
        for place in placement.activations():
            self._add_activation(table, place)
        _check_globs(self.weights, list(self.is_target), "weights")
        _check_globs(self.activations, [place.module for place in placement.activations()], "activations")
        add_quantizers(model, table, lambda place, quantizer: quantizer.scale_shape(shapes.get(place, torch.Size())))
        return placement

    def insert_stored(self, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
        """Hangs quantizers into a model that has none, where a state dict of such a model has them."""
        table: dict[str, dict[QuantizationPoint, Quantizer]] = {}
        shapes: dict[QuantizationPoint, torch.Size] = {}
        for key, tensor in stored.items():
            module, _, name = key.rpartition(".")
            if name.startswith(PREFIX) and name.endswith("_scale"):
                place = QuantizationPoint.named(module, name.removeprefix(PREFIX).removesuffix("_scale"))
                shapes[place] = tensor.shape
                if place.role == "weight":
                    self._add_weight(table, place, _axis(model.get_submodule(module), place))
                else:
                    self._add_activation(table, place)
                if place in table.get(module, {}):
                    table[module][place].ready = bool((tensor != 0).all())
        add_quantizers(model, table, lambda place, quantizer: shapes[place])

    def check_same(self, model: nn.Module, graph: Graph | None) -> None:
        """Refuses a model whose quantizers are others than the plan's.

        Activations that the plan does not see are none of its business: a model may have been calibrated as a whole,
        and be called in parts.

        Args:
            model: The model.
            graph: As for :meth:`insert_traced`; without it, places that are missing in the model are not noticed.

        Raises:
            ValueError: With the first place that differs.
        """
        there = {attached.name: attached.quantizer.integers for attached in quantizers_of(model)}
        places = [QuantizationPoint.named(attached.layer, attached.quantizer.name) for attached in quantizers_of(model)]
        if graph is not None:
            placement = Placement(graph, dict(self.is_target))
            places += [*map(weight_place, placement.weights()), *placement.activations()]
        for place in places:
            name = f"{place.module}.{place.name}".lstrip(".").replace(COMPILED, "")
            if there.get(name) != self._at(place):
                raise ValueError(
                    f"The model is quantized already, with {there.get(name) or 'floats'} at {name!r} where now "
                    f"{self._at(place) or 'floats'} are wanted: give the same numbers and targets as before, or begin "
                    "with lc.float_copy(model).requires_grad_().train()."
                )

    def _at(self, place: QuantizationPoint) -> Int | None:
        """The integers of a place."""
        if place.role != "weight":
            return _first(self.activations, place.module)
        targets = {name.replace(COMPILED, "") for name, chosen in self.is_target.items() if chosen}
        return _first(self.weights, place.module) if place.module.replace(COMPILED, "") in targets else None

    def _add_weight(
        self, table: dict[str, dict[QuantizationPoint, Quantizer]], place: QuantizationPoint, axis: int
    ) -> None:
        integers = _first(self.weights, place.module)
        if integers is not None:
            quantizer = Quantizer(place.name, integers, axis=axis, is_weight=True)
            table.setdefault(place.module, {})[place] = quantizer

    def _add_activation(self, table: dict[str, dict[QuantizationPoint, Quantizer]], place: QuantizationPoint) -> None:
        integers = _first(self.activations, place.module)
        if integers is not None:
            table.setdefault(place.module, {})[place] = Quantizer(place.name, integers)


def owners_of(targets: Iterable[Target]) -> dict[str, bool]:
    """The names of the modules whose weights are targets, as the model spells them."""
    return {target.name.rpartition(".")[0]: True for target in targets}


def _axis(module: nn.Module, place: QuantizationPoint) -> int:
    if place.call.function:
        return CHANNEL_AXIS[place.call.function]
    return int(isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)))


def _each(numbers: QuantizationSpec, complete: Callable[[Int], Int]) -> dict[str, Int | None]:
    given = numbers if isinstance(numbers, Mapping) else {"*": numbers}
    return {glob: None if integers is None else complete(integers) for glob, integers in given.items()}


def _first(numbers: Mapping[str, Int | None], name: str) -> Int | None:
    name = name.replace(COMPILED, "")
    return next((integers for glob, integers in numbers.items() if glob == "*" or matches(glob, name)), None)


def _check_groups(integers: Int | None, layer: str, shape: torch.Size) -> None:
    group = None if integers is None else integers.granularity
    if isinstance(group, int) and (len(shape) != 2 or shape[1] % group):
        raise ValueError(
            f"weights: Int(granularity={group}) is for linear layers whose inputs are so many or a multiple, and the "
            f"weight of {layer!r} is {list(shape)}: give it granularity='channel' by a glob of its own."
        )


def _check_globs(numbers: Mapping[str, Int | None], names: Sequence[str], what: str) -> None:
    for glob in numbers:
        if glob != "*" and not any(matches(glob, name.replace(COMPILED, "")) for name in names):
            raise ValueError(
                f"{what}: {glob!r} matches nothing that is quantized; the places are {shorten(sorted(set(names)))}."
            )
