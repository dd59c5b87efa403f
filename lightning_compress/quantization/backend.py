"""Runtimes for which a model is quantized: the integers that they take, and the calls that they compute with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Integer arithmetic of a runtime, for which quantizers are placed.

    The defaults are those of ONNX Runtime, OpenVINO and XNNPACK (ExecuTorch): 8-bit activations with one scale and zero
    point per tensor, symmetric weights with a scale per output channel, and kernels from integers to integers. For
    another runtime, such as that of a neural processing unit, give its own arithmetic.

    Args:
        name: Name in messages.
        symmetric: Activations have the zero point 0; they are affine otherwise.
        functions: Functions that are computed from integers to integers, besides convolutions, linear layers, clipping
            activations and those that only move values.
        fuses_epilogues: Kernels of layers compute the FP32 operations behind them before the result is stored:
            activation functions, and the addition of a residual to a convolution. Only the inputs of layers are
            quantized, and the other operand of such an addition. Otherwise kernels return integers, so that every
            output is quantized.
        shares_scales: The operands of a concatenation and its result have one scale, so that it copies bytes.
        integer_bias: Biases are INT32, in units of the product of the scales of input and weight; else FP32.

    >>> Backend(name="an accelerator", symmetric=True).functions[:3]
    ('add', 'sub', 'mul')
    """

    name: str = "ONNX Runtime"
    symmetric: bool = False
    functions: tuple[str, ...] = (
        "add", "sub", "mul", "cat", "stack",
        "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean",
        "hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu", "elu", "prelu",
    )  # fmt: skip
    fuses_epilogues: bool = False
    shares_scales: bool = False
    integer_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class TensorRT(Backend):
    """NVIDIA's TensorRT, which takes explicit quantize and dequantize nodes with zero point 0.

    Convolutions and linear layers read INT8 and return FP32 or FP16, with activation functions and a residual addition
    fused into the kernel: a quantizer in between would prevent the fusion. Concatenations have one scale. After
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html.

    >>> from lightning_compress import QuantizationAwareTraining
    >>> QuantizationAwareTraining(backend=TensorRT()).backend.symmetric
    True
    """

    name: str = "TensorRT"
    symmetric: bool = True
    functions: tuple[str, ...] = ("add", "cat")
    fuses_epilogues: bool = True
    shares_scales: bool = True
    integer_bias: bool = False
