"""Quantized tensors and palettized weights as operators of Core ML's intermediate language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_compress.export.palettes import Palette, find_palette
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, Weight

_LIBRARY = torch.library.Library("lightning_compress", "FRAGMENT")
_LIBRARY.define("coreml_activation(Tensor x, float scale, int zero_point, int quant_min, int quant_max) -> Tensor")
_LIBRARY.define("coreml_integers(Tensor integers, Tensor scale, str name) -> Tensor")
_LIBRARY.define("coreml_palette(Tensor weight, str name) -> Tensor")
_OPS: Any = torch.ops.lightning_compress


def _activation(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    return (torch.clamp(torch.round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale


def _integers(integers: Tensor, scale: Tensor, name: str) -> Tensor:
    repeats = [size // groups for size, groups in zip(integers.shape, scale.shape, strict=True)]
    for axis, number in enumerate(repeats):
        if number > 1 and scale.shape[axis] > 1:
            scale = scale.repeat_interleave(number, axis)
    return integers * scale


for _name, _function in (
    ("coreml_activation", _activation),
    ("coreml_integers", _integers),
    ("coreml_palette", lambda weight, name: weight.clone()),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"lightning_compress::{_name}",
        lambda x, *_: torch.empty(x.shape, dtype=torch.float32, device=x.device),
        lib=_LIBRARY,
    )


class CoremlOperators(BackendOperators):
    """Quantization as ``constexpr_blockwise_shift_scale`` of weights, and ``quantize`` and ``dequantize``.

    Attributes:
        weights: Quantized weights by the names of their operators in the file.
        palettes: Palettes by the names of their operators in the file.
        layers: Names of the layers, or of the parameters of palettes, by the names of their operators.
    """

    name = "Core ML"
    unsigned = False

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self.palettes: dict[str, Palette] = {}
        self.layers: dict[str, str] = {}
        self._names: dict[int, str] = {}

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize; other ranges than -128 to 127 are clipped before."""
        return _OPS.coreml_activation(x, qparams.scale, qparams.zero_point, qparams.quant_min, qparams.quant_max)

    def weight(self, weight: Weight) -> Tensor:
        """Dequantize an INT4 constant, or an INT8 one where its values need more bits."""
        # The same layer is called once for the run, and once for each captured graph.
        name = self._names.setdefault(weight.integers.data_ptr(), self._new_name(weight.name))
        self.weights[name], self.layers[name] = weight, weight.name
        return _OPS.coreml_integers(weight.integers, shaped_scale(weight), name)

    def bias(self, bias: Bias) -> Tensor:
        """Return the FP32 value."""
        return bias.value

    def palettize_(self, program: ExportedProgram) -> None:
        """Mark the weights of a program that have few values, in place, so that they are stored as palettes."""
        for spec in program.graph_signature.input_specs:
            weight = program.state_dict.get(spec.target) if spec.target is not None else None
            palette = find_palette(weight.detach()) if isinstance(weight, Tensor) else None
            if palette is None:
                continue
            name = self._new_name(str(spec.target))
            self.palettes[name], self.layers[name] = palette, str(spec.target)
            placeholder = next(node for node in program.graph.nodes if node.name == spec.arg.name)
            first = next(node for node in program.graph.nodes if node.op != "placeholder")
            with program.graph.inserting_before(first):
                marked = program.graph.call_function(_OPS.coreml_palette.default, (placeholder, name))
            marked.meta["val"] = placeholder.meta["val"]
            placeholder.replace_all_uses_with(marked, delete_user_cb=lambda user, marked=marked: user is not marked)
        program.graph_module.recompile()

    def _new_name(self, layer: str) -> str:
        """Return a name that Core ML takes, and that no other weight has."""
        return f"weight{len(self.layers)}_" + "".join(c if c.isalnum() else "_" for c in layer)


def integer_type(integers: np.ndarray) -> str:
    """Return the name of the smallest type of Core ML that stores integers of a weight.

    >>> integer_type(np.array([-8, 7])), integer_type(np.array([8]))
    ('int4', 'int8')
    """
    return "int4" if integers.min() >= -8 and integers.max() <= 7 else "int8"


def shaped_scale(weight: Weight) -> Tensor:
    """Return the scale of a weight with as many dimensions as the weight."""
    if weight.scale.ndim == 2:  # groups of input features
        return weight.scale
    return weight.scale.view([-1 if dim == weight.axis else 1 for dim in range(weight.integers.ndim)])


def register_translations(palettes: Mapping[str, Palette]) -> None:
    """Register the translations of the operators above with coremltools.

    Args:
        palettes: Palettes by the names of their operators.
    """
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import types

    def dtype(name: str) -> Any:
        return types.nptype_from_builtin(types.string_to_builtin(name))

    def coreml_activation(context: Any, node: Any) -> None:
        x, *numbers = _get_inputs(context, node)
        scale, zero_point, quant_min, quant_max = (number.val for number in numbers)
        if (quant_min, quant_max) != (-128, 127):
            ends = ((end - zero_point) * scale for end in (quant_min, quant_max))
            x = Builder.clip(x=x, **dict(zip(("alpha", "beta"), map(np.float32, ends), strict=True)))
        qparams = {"scale": np.float32(scale), "zero_point": np.int8(zero_point)}
        integers = Builder.quantize(input=x, output_dtype="int8", **qparams)
        context.add(Builder.dequantize(input=integers, name=node.name, **qparams))

    def coreml_integers(context: Any, node: Any) -> None:
        integers, scale, name = _get_inputs(context, node)
        data = integers.val.astype(dtype(integer_type(integers.val)))
        weight = Builder.constexpr_blockwise_shift_scale(data=data, scale=scale.val, name=name)
        context.add(weight, torch_name=node.name)

    def coreml_palette(context: Any, node: Any) -> None:
        _, name = _get_inputs(context, node)
        palette = palettes[name]
        indices = palette.indices.numpy().astype(dtype(f"uint{palette.bits}"))
        context.add(
            Builder.constexpr_lut_to_dense(indices=indices, lut=palette.table.numpy(), name=name), torch_name=node.name
        )

    translations: list[Callable[[Any, Any], None]] = [coreml_activation, coreml_integers, coreml_palette]
    for translation in translations:
        register_torch_op(translation, torch_alias=[f"lightning_compress::{translation.__name__}"], override=True)
