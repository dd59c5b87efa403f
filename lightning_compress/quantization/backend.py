"""What lowering makes, and how a target writes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class QParams:
    """Integers of an activation.

    Attributes:
        name: Of the place in the model.
        scale: Step.
        zero_point: Integer that stands for 0.0.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        offset: What was added to the integers of the simulation.
        is_again: Whether the same numbers were on this grid before, and have only been moved.
        is_read: Whether it is of what a call reads, not of what one makes.
    """

    name: str
    scale: float
    zero_point: int
    quant_min: int
    quant_max: int
    offset: int = 0
    is_again: bool = False
    is_read: bool = False

    def shifted(self, by: int) -> QParams:
        """The same numbers, with integers that are larger by ``by``."""
        moved = {name: getattr(self, name) + by for name in ("zero_point", "quant_min", "quant_max", "offset")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Weight:
    """Integers of a layer's weight, after folding.

    Attributes:
        name: Of the layer.
        integers: int8, of the weight's shape.
        scale: Positive, ``(channels,)``.
        axis: Dimension of the channels.
        zero_point: Zeros, int64, ``(channels,)``: made here, so that exporters find a constant.
    """

    name: str
    integers: Tensor
    scale: Tensor
    axis: int
    zero_point: Tensor

    def value(self) -> Tensor:
        """The weight as floats."""
        sides = [-1 if dim == self.axis else 1 for dim in range(self.integers.ndim)]
        return self.integers * self.scale.view(sides)


@dataclass(frozen=True)
class Bias:
    """Integers of a layer's bias.

    Attributes:
        name: Of the layer.
        integers: int32, ``(channels,)``.
        scale: Products of the input's and the weight's scales, ``(channels,)``.
        value: The bias as floats, rounded to the integers: float32, ``(channels,)``.
    """

    name: str
    integers: Tensor
    scale: Tensor
    value: Tensor


@dataclass
class QuantizedLayer:
    """A call whose weight is integers now.

    Attributes:
        name: Name of the module.
        function: Name of the function.
        weight: The weight.
        bias: The bias, if there is one: float32 where the input is float, or where channels share scales.
        input: QParams of the input, unless that is float.
        biased: Name of the module whose bias it is: the layer, or the batch norm that is folded into it.
        rounding: What rounding added to the bias, float64; ``None`` without a bias of integers.
        is_integer: Whether it can compute with integers, as what it reads and what it makes are on grids.
    """

    name: str
    function: str
    weight: Weight
    bias: Bias | Tensor | None
    input: QParams | None
    biased: str
    rounding: Tensor | None
    is_integer: bool


@dataclass(frozen=True)
class QuantizedOp:
    """What a call that reads no weight makes of integers.

    Attributes:
        module: Name of the module.
        function: Name of the function.
        grid: QParams of the result, clipped where nothing else reads it.
    """

    module: str
    function: str
    grid: QParams

    @property
    def name(self) -> str:
        """Name of the call, ``"<module>.<function>"``."""
        return f"{self.module}.{self.function}".lstrip(".")


class Backend(ABC):
    """Target of an export: the form in which it stores quantized tensors, and its restrictions.

    Attributes:
        name: Name of the target, as messages give it.
        unsigned: True if activations are quantized to uint8, False if to int8.
        opaque: Names of data-movement functions through which the target does not propagate quantization parameters;
            their results are quantized again.
    """

    name: str
    unsigned: bool = True
    opaque: frozenset[str] = frozenset()

    @abstractmethod
    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize an activation."""

    @abstractmethod
    def weight(self, weight: Weight) -> Tensor:
        """Dequantize a constant weight."""

    @abstractmethod
    def bias(self, bias: Bias) -> Tensor:
        """Dequantize a constant bias, or return its FP32 value."""

    def check(self, layers: Sequence[QuantizedLayer]) -> None:
        """Check that the target supports the quantized layers.

        Raises:
            ValueError: If it does not support one of them.
        """
