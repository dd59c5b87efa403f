"""Weights and biases as integers in an ONNX graph, with the node that dequantizes them or computes with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.quantization.backend_operators import Bias, Weight

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

_MIN_OPSET = 21  # of DequantizeLinear with blocks and with INT4
_MIN_BLOCK, _MAX_BLOCK = 16, 256  # of MatMulNBits, powers of two


def dequantize(graph: Any, name: str, stored: Weight | Bias, *, opset: int, contrib: bool) -> None:
    """Replace an FP32 constant of a graph by its integers, in place.

    Args:
        graph: Graph in the intermediate representation of ``onnx_ir``.
        name: Name of the constant.
        stored: The integers.
        opset: Version of ONNX's operators.
        contrib: Let ONNX Runtime multiply by the integers of weight-only layers (MatMulNBits).

    Raises:
        ValueError: If the opset has no operator for them.
    """
    value = graph.initializers.pop(name)
    for number, (reader, position) in enumerate(list(value.uses())):
        prefix = f"{name}_{number}"
        if contrib and isinstance(stored, Weight) and _block_size(stored) and _multiply(graph, prefix, reader, stored):
            continue
        if reader.op_type == "Transpose":
            # Integers are stored as they are read: a transposition in between would hide them from other readers.
            transposed = _dequantized(graph, prefix, stored, list(reader.attributes["perm"].as_ints()), opset)
            reader.outputs[0].replace_all_uses_with(transposed)
            graph.remove(reader)
        else:
            reader.replace_input_with(
                position, _dequantized(graph, prefix, stored, [*range(stored.integers.ndim)], opset)
            )


def _dequantized(graph: Any, prefix: str, stored: Weight | Bias, perm: list[int], opset: int) -> Any:
    """Return the output of a new DequantizeLinear node at the beginning of a graph."""
    import onnx_ir as ir

    integers, scale = stored.integers.permute(perm), stored.scale
    attributes = {"axis": perm.index(stored.axis if isinstance(stored, Weight) else 0)}
    is_blocked = isinstance(stored, Weight) and scale.ndim == 2
    if is_blocked:
        # Blocks lie along the input features.
        attributes = {"axis": perm.index(1), "block_size": stored.integers.shape[1] // scale.shape[1]}
        scale = scale.permute(perm)
    is_packed = isinstance(stored, Weight) and stored.is_weight_only and stored.bits <= 4
    if (is_blocked or is_packed) and opset < _MIN_OPSET:
        raise ValueError(
            f"the weights of {stored.name!r} have 4 bits or groups of inputs, for which opset={opset} has no operator: "
            f"pass opset={_MIN_OPSET}"
        )
    dtype = ir.DataType.INT4 if is_packed else None
    zeros = torch.zeros(scale.shape, dtype=integers.dtype)
    inputs = []
    # Without a zero point it is 0, and the file smaller.
    roles = [("integers", integers, dtype), ("scale", scale, None)]
    roles += [] if is_blocked or is_packed else [("zero_point", zeros, None)]
    for role, tensor, kind in roles:
        inputs.append(_initializer(graph, f"{prefix}_{role}", tensor.contiguous(), kind))
    node = ir.node("DequantizeLinear", inputs, attributes=attributes)
    value = node.outputs[0]
    value.name, value.shape, value.dtype = f"{prefix}_value", ir.Shape(integers.shape), ir.DataType.FLOAT
    graph.insert_before(graph[0], node)
    return value


def _multiply(graph: Any, prefix: str, reader: Any, weight: Weight) -> bool:
    """Replace the matrix products that read a weight by MatMulNBits nodes; return False if there is something else."""
    if reader.op_type == "Gemm":
        products, bias = [reader], (reader.inputs[2] if len(reader.inputs) > 2 else None)
        is_product = reader.attributes.get_int("transB", 0) == 1 and reader.attributes.get_int("transA", 0) == 0
    else:
        products, bias = [node for node, _ in reader.outputs[0].uses()], None
        is_product = reader.op_type == "Transpose" and all(
            node.op_type == "MatMul" and node.inputs[1] is reader.outputs[0] for node in products
        )
    if not is_product or not products:
        return False
    constants = _packed(graph, prefix, weight)
    for node in products:
        _replace(graph, node, constants, bias, weight)
    if reader.op_type == "Transpose":
        graph.remove(reader)
    return True


def _replace(graph: Any, product: Any, constants: list[Any], bias: Any, weight: Weight) -> None:
    import onnx_ir as ir

    num_outputs, num_inputs = weight.integers.shape
    attributes = {
        "K": num_inputs, "N": num_outputs, "bits": _stored_bits(weight), "block_size": _block_size(weight),
    }  # fmt: skip
    inputs = [product.inputs[0], *constants, *([None, None, bias] if bias is not None else [])]
    node = ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIB)
    old, new = product.outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(product, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def _packed(graph: Any, prefix: str, weight: Weight) -> list[Any]:
    """Return the integers of a weight, ``(channels, blocks, bytes)`` in uint8, and their scales."""
    block, bits = _block_size(weight), _stored_bits(weight)
    # Unsigned around 2 ** (bits - 1), the zero point that the operator has by default.
    unsigned = (weight.integers.int() + 2 ** (bits - 1)).to(torch.uint8).unflatten(1, (-1, block))
    if bits == 4:
        unsigned = unsigned[..., ::2] | (unsigned[..., 1::2] << 4)
    scale = weight.scale if weight.scale.ndim == 2 else weight.scale.unsqueeze(1)
    scale = scale.repeat_interleave(unsigned.shape[1] // scale.shape[1], dim=1)
    return [
        _initializer(graph, f"{prefix}_integers", unsigned.contiguous(), None),
        _initializer(graph, f"{prefix}_scale", scale.contiguous(), None),
    ]


def _block_size(weight: Weight) -> int:
    """Return the largest power of two that divides the groups of a weight-only layer; 0 if it is too small."""
    if not weight.is_weight_only:
        return 0
    num_groups = weight.scale.shape[1] if weight.scale.ndim == 2 else 1
    block = math.gcd(weight.integers.shape[1] // num_groups, _MAX_BLOCK)
    return block if block >= _MIN_BLOCK else 0


def _stored_bits(weight: Weight) -> int:
    return 4 if weight.bits <= 4 else 8


def _initializer(graph: Any, key: str, tensor: Tensor, dtype: Any) -> Any:
    import onnx_ir as ir

    array: np.ndarray = tensor.numpy()
    if dtype is not None:
        array = array.astype(dtype.numpy())
    value = ir.val(key, const_value=ir.tensor(array, name=key))
    graph.register_initializer(value)
    return value
