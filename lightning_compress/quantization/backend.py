"""Runtimes for which a model is quantized: the integers that they take, and the calls that they compute with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class Backend:
    """Base class of the integer arithmetic of a runtime, for which quantizers are placed.

    Activations have 8 bits or fewer and one scale per tensor, weights are symmetric with a scale per output channel. A
    subclass with other attributes describes another runtime, such as that of a neural processing unit.

    Attributes:
        name: Name in messages.
        symmetric: Activations have the zero point 0; they are affine otherwise.
        functions: Functions that are computed from integers to integers, besides convolutions, linear layers, clipping
            activations and those that only move values.
        fuses_epilogues: Kernels of layers compute the FP32 operations behind them before the result is stored:
            activation functions, and the addition of a residual to a convolution. Only the inputs of layers are
            quantized, and the other operand of such an addition. Otherwise kernels return integers, so that every
            output is quantized.
        shares_scales: The operands of a concatenation and its result have one scale, so that it copies bytes.
        preserves_scales: Functions whose result has the scale of their operand, besides concatenations.
        integer_bias: Biases are INT32, in units of the product of the scales of input and weight; else FP32.

    >>> class Accelerator(Backend):
    ...     name, symmetric = "an accelerator", True
    >>> from lightning_compress import QuantizationAwareTraining
    >>> QuantizationAwareTraining(backend=Accelerator()).backend.functions[:3]
    ('add', 'sub', 'mul')
    """

    name: ClassVar[str]
    symmetric: ClassVar[bool] = False
    functions: ClassVar[tuple[str, ...]] = (
        "add", "sub", "mul", "cat", "stack",
        "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean",
        "hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu", "elu", "prelu",
    )  # fmt: skip
    fuses_epilogues: ClassVar[bool] = False
    shares_scales: ClassVar[bool] = False
    preserves_scales: ClassVar[tuple[str, ...]] = ()
    integer_bias: ClassVar[bool] = True


@dataclass(frozen=True)
class OnnxRuntime(Backend):
    """ONNX Runtime, and the runtimes that take the same placement: OpenVINO, and ExecuTorch's XNNPACK.

    >>> OnnxRuntime().fuses_epilogues
    False
    """

    name: ClassVar[str] = "ONNX Runtime"


@dataclass(frozen=True)
class TensorRT(Backend):
    """NVIDIA's TensorRT, which takes explicit quantize and dequantize nodes with zero point 0.

    Convolutions and linear layers read INT8 and return FP32 or FP16, with activation functions and a residual addition
    fused into the kernel: a quantizer in between would prevent the fusion. Concatenations have one scale. After
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html.

    >>> from lightning_compress import QuantizationAwareTraining
    >>> QuantizationAwareTraining(backend=TensorRT()).backend.symmetric
    True
    """

    name: ClassVar[str] = "TensorRT"
    symmetric: ClassVar[bool] = True
    functions: ClassVar[tuple[str, ...]] = ("add", "cat")
    fuses_epilogues: ClassVar[bool] = True
    shares_scales: ClassVar[bool] = True
    integer_bias: ClassVar[bool] = False


@dataclass(frozen=True)
class LiteRT(Backend):
    """Google's LiteRT (TensorFlow Lite).

    Concatenations and interpolations have one scale, and activation functions compute in FP32.

    >>> LiteRT().shares_scales
    True
    """

    name: ClassVar[str] = "LiteRT"
    functions: ClassVar[tuple[str, ...]] = (
        "add", "sub", "mul", "cat", "stack", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "mean", "interpolate",
    )  # fmt: skip
    shares_scales: ClassVar[bool] = True
    preserves_scales: ClassVar[tuple[str, ...]] = ("interpolate",)
