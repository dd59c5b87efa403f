"""Quantized tensors as operators of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_compress.export.onnx.stored_constants import CONTRIB, dequantize
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, Weight

# One operator for each quantized activation: capturing and translating a graph costs some milliseconds per node.
_LIBRARY = torch.library.Library("lightning_compress", "DEF")
_LIBRARY.define(
    "quantize_dequantize(Tensor x, float scale, int zero_point, int quant_min, int quant_max, bool unsigned) -> Tensor"
)


def _quantize_dequantize(
    x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, unsigned: bool
) -> Tensor:
    return (torch.clamp(torch.round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale


_LIBRARY.impl("quantize_dequantize", _quantize_dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("lightning_compress::quantize_dequantize", lambda x, *_: torch.empty_like(x), lib=_LIBRARY)


class OnnxOperators(BackendOperators):
    """Quantization as QuantizeLinear and DequantizeLinear nodes.

    Weights and biases are FP32 constants in the captured graph, which :meth:`dequantize_constants` replaces by nodes.

    Args:
        opset: Version of the operators; ``None`` for 21, or 20 with int8 activations: ONNX Runtime's conversion of int8
            to uint8 activations leaves the type of opset 21 behind.
        unsigned: Quantize activations to uint8, else to int8; symmetric ones of a backend are always int8.
        backend: Arithmetic of the runtime.
        contrib: Use operators of ONNX Runtime that are not in the standard.
    """

    name = "ONNX"
    not_propagated = frozenset({
        "pad", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "index_select", "max_pool2d", "roll",
        "pixel_shuffle", "pixel_unshuffle", "expand", "expand_as", "repeat",
    })  # fmt: skip

    def __init__(
        self,
        opset: int | None = None,
        *,
        unsigned: bool = True,
        backend: Backend = OnnxRuntime(),
        contrib: bool = False,
    ) -> None:
        self.unsigned = unsigned and not backend.symmetric
        self.opset = opset or (21 if self.unsigned else 20)
        self.backend = backend
        self.contrib = contrib
        self._constants: dict[int, Weight | Bias] = {}

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantize and dequantize."""
        given = qparams.scale, qparams.zero_point, qparams.quant_min, qparams.quant_max
        return torch.ops.lightning_compress.quantize_dequantize.default(x, *given, self.unsigned)

    def weight(self, weight: Weight) -> Tensor:
        """Return the FP32 constant."""
        self._constants[weight.value.data_ptr()] = weight
        return weight.value

    def bias(self, bias: Bias) -> Tensor:
        """Return the FP32 constant."""
        self._constants[bias.value.data_ptr()] = bias
        return bias.value

    def translations(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """Return the translations of operators that ``torch.onnx.export`` takes."""
        import onnxscript

        op: Any = getattr(onnxscript, f"opset{self.opset}")
        dtype = torch.uint8 if self.unsigned else torch.int8

        def quantize_dequantize(
            x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, unsigned: bool
        ) -> Any:
            def constant(value: float, dtype: torch.dtype) -> Any:
                return op.Constant(value=_as_proto(torch.tensor(value, dtype=dtype)))

            step, zero = constant(scale, torch.float32), constant(zero_point, dtype)
            q = op.QuantizeLinear(x, step, zero)
            # Fewer bits than the type has are clipped.
            if quant_max - quant_min < 254:
                q = op.Clip(q, constant(quant_min, dtype), constant(quant_max, dtype))
            return op.DequantizeLinear(q, step, zero)

        return {torch.ops.lightning_compress.quantize_dequantize.default: quantize_dequantize}

    def dequantize_constants(self, program: ExportedProgram, model: Any) -> None:
        """Replace weights and biases in a translated program by integers and DequantizeLinear nodes, in place.

        Args:
            program: The captured program.
            model: Its translation, an ``onnx_ir.Model``.
        """
        for name, tensor in program.constants.items():
            stored = self._constants.get(tensor.data_ptr()) if isinstance(tensor, Tensor) else None
            if stored is not None and name in model.graph.initializers:
                dequantize(model.graph, name, stored, opset=self.opset, contrib=self.contrib)
        if any(node.domain == CONTRIB for node in model.graph):
            model.opset_imports[CONTRIB] = 1


def _as_proto(tensor: Tensor) -> Any:
    import onnx

    return onnx.numpy_helper.from_array(tensor.numpy())
