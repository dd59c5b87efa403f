"""Quantized tensors as operators of ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_compress.quantization.backend import Backend, Bias, QParams, Weight


class OnnxBackend(Backend):
    """Quantization as QuantizeLinear and DequantizeLinear nodes.

    Args:
        opset: Version of the operators.
        unsigned: Quantize activations to uint8, else to int8.
    """

    name = "ONNX"
    not_propagated = frozenset({
        "pad", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "index_select", "max_pool2d",
    })  # fmt: skip

    def __init__(self, opset: int, *, unsigned: bool) -> None:
        self.opset = opset
        self.unsigned = unsigned
        self._dtype = torch.uint8 if unsigned else torch.int8

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize; fewer bits than the type has are clipped in between."""
        scale, zero = torch.tensor(qparams.scale), torch.tensor(qparams.zero_point, dtype=self._dtype)
        q = self._op("QuantizeLinear", (x, scale, zero), {}, dtype=self._dtype, shape=x.shape)
        if not qparams.is_8_bit:
            ends = (torch.tensor(end, dtype=self._dtype) for end in (qparams.quant_min, qparams.quant_max))
            q = self._op("Clip", (q, *ends), {}, dtype=self._dtype, shape=x.shape)
        return self._op("DequantizeLinear", (q, scale, zero), {}, dtype=x.dtype, shape=x.shape)

    def weight(self, weight: Weight) -> Tensor:
        """Dequantize an int8 constant per channel."""
        return self._constant(weight.integers, weight.scale, weight.axis)

    def bias(self, bias: Bias) -> Tensor:
        """Dequantize an int32 constant per channel."""
        return self._constant(bias.integers, bias.scale, 0)

    def _constant(self, integers: Tensor, scale: Tensor, axis: int) -> Tensor:
        zeros = torch.zeros(scale.shape, dtype=integers.dtype)
        inputs, shape = (integers, scale, zeros), integers.shape
        return self._op("DequantizeLinear", inputs, {"axis": axis}, dtype=scale.dtype, shape=shape)

    def _op(self, name: str, inputs: Any, attributes: Any, *, dtype: torch.dtype, shape: Any) -> Tensor:
        return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape, version=self.opset)
