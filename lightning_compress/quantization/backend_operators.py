"""Data of a lowered model, and the operators in which an export target stores it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_compress.quantization.backend import Backend, OnnxRuntime


@dataclass(frozen=True)
class QParams:
    """Quantization parameters of an activation.

    Attributes:
        name: Name of the quantization point in the model.
        scale: Scale.
        zero_point: Zero point.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        offset: Difference of the integers from those of the fake-quantized model.
        is_requantized: The values have these parameters already and were only moved.
        is_input: The point is an input of a call, not its output.
    """

    name: str
    scale: float
    zero_point: int
    quant_min: int
    quant_max: int
    offset: int = 0
    is_requantized: bool = False
    is_input: bool = False

    @property
    def is_8_bit(self) -> bool:
        """True if the integers span 8 bits: 255 if affine, and 254 if symmetric, from -127 to 127."""
        return self.quant_max - self.quant_min >= 254

    def shifted(self, by: int) -> QParams:
        """Return parameters of the same values with integers that are larger by ``by``."""
        moved = {name: getattr(self, name) + by for name in ("zero_point", "quant_min", "quant_max", "offset")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Weight:
    """INT8 weight of a layer, with a folded batch norm.

    Attributes:
        name: Layer name.
        integers: int8, of the weight's shape.
        scale: Positive, ``(channels,)``, or ``(channels, groups)`` for groups of input features.
        axis: Channel dimension.
        zero_point: Zeros, int64, of the scale's shape; stored here, so that exporters find a constant.
        value: Dequantized weight, float32.
        bits: Bit width of the integers.
        is_weight_only: The input is in FP32: the weight is dequantized, and the layer computes in FP32.
    """

    name: str
    integers: Tensor
    scale: Tensor
    axis: int
    zero_point: Tensor
    value: Tensor
    bits: int = 8
    is_weight_only: bool = False

    @classmethod
    def of(
        cls, name: str, integers: Tensor, scale: Tensor, axis: int, *, bits: int = 8, is_weight_only: bool = False
    ) -> Weight:
        """Return the weight with its zero points and its dequantized value."""
        zeros = torch.zeros(scale.shape, dtype=torch.int64)
        value = _dequantize(integers, scale, axis)
        return cls(name, integers, scale, axis, zeros, value, bits, is_weight_only)

    def dequantize(self) -> Tensor:
        """Compute the weight in FP32 from its integers; a graph of it stores these."""
        return _dequantize(self.integers, self.scale, self.axis)


def _dequantize(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    if scale.ndim == 2:
        return (integers.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(2)).flatten(1)
    return integers * scale.view([-1 if dim == axis else 1 for dim in range(integers.ndim)])


@dataclass(frozen=True)
class Bias:
    """INT32 bias of a layer.

    Attributes:
        name: Layer name.
        integers: int32, ``(channels,)``.
        scale: Product of the scales of input and weight, ``(channels,)``.
        value: Dequantized bias, float32, ``(channels,)``.
    """

    name: str
    integers: Tensor
    scale: Tensor
    value: Tensor


@dataclass
class QuantizedLayer:
    """Call with a quantized weight.

    Attributes:
        name: Module name.
        function: Function name.
        weight: Weight.
        bias: Bias, if there is one; in FP32 if the input is FP32, or if groups of channels share scales.
        input: Quantization parameters of the input; ``None`` if it is FP32.
        bias_module: Name of the module that owns the bias: the layer, or the batch norm that is folded into it last;
            ``None`` if another affine map is folded last.
        bias_error: Rounding error of the bias, float64; ``None`` without an INT32 bias.
        is_integer: True if both input and output are quantized, so that an INT8 kernel can compute it.
    """

    name: str
    function: str
    weight: Weight
    bias: Bias | Tensor | None
    input: QParams | None
    bias_module: str | None
    bias_error: Tensor | None
    is_integer: bool


@dataclass(frozen=True)
class QuantizedOp:
    """Quantized call without a weight.

    Attributes:
        module: Module name.
        function: Function name.
        qparams: Quantization parameters of the output, after a clipping activation that alone reads it.
    """

    module: str
    function: str
    qparams: QParams

    @property
    def name(self) -> str:
        """Name of the call, ``"<module>.<function>"``."""
        return f"{self.module}.{self.function}".lstrip(".")


class BackendOperators(ABC):
    """Operators in which an export target stores quantized tensors, and its restrictions.

    Attributes:
        name: Name of the target, as messages give it.
        backend: Arithmetic of the runtime.
        unsigned: True if activations are quantized to uint8, False if to int8.
        not_propagated: Names of data-movement functions through which the target does not propagate quantization
            parameters; their results are quantized again.
    """

    name: str
    backend: Backend = OnnxRuntime()
    unsigned: bool = True
    not_propagated: frozenset[str] = frozenset()

    @abstractmethod
    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize an activation."""

    @abstractmethod
    def weight(self, weight: Weight) -> Tensor:
        """Dequantize a constant weight."""

    @abstractmethod
    def bias(self, bias: Bias) -> Tensor:
        """Dequantize a constant bias, or return its FP32 value."""

    def check(self, layers: Sequence[QuantizedLayer]) -> None:  # noqa: B027 (optional)
        """Check that the target supports the quantized layers.

        Raises:
            ValueError: If it does not support one of them.
        """
