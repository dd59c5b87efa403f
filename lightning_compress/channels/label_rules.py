"""How ATen operators pass channel labels on; operators without a rule fix the channels that reach them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_compress.channels.activation_labels import FIXED_SIZE, ActivationLabels, Axes, Operand
from lightning_compress.channels.channel_labels import FIXED, ChannelRole, compact, depends, narrow, varying_dims
from lightning_compress.channels.convolution_labels import convolution
from lightning_compress.channels.movement_rules import MOVEMENTS, labels_of
from lightning_compress.channels.normalization_rules import batch_norm, norm, reduction, softmax
from lightning_compress.channels.operator_call import OperatorCall

Rule = Callable[[ActivationLabels, OperatorCall], None]

_SCALES = ("mul", "div", "_prelu_kernel", "where")


def opaque(state: ActivationLabels, call: OperatorCall) -> None:
    """Fix all channels."""
    for tensor in call.tensors:
        state.fix(state.axes(tensor), f"its channels pass through {call.place} is not supported")
    for output in call.outputs:
        state.label(output, ())


def pointwise(state: ActivationLabels, call: OperatorCall) -> None:
    """Connect the channels of all operands."""
    operands = [state.operand(tensor) for tensor in call.tensors]
    if not all(map(state.is_weight, call.tensors)):
        for tensor in call.tensors:
            # A shift by one entry per channel is masked with the channel; a scale has no effect on zeros.
            is_shift = call.name not in _SCALES and tensor.numel() == max(tensor.shape, default=1)
            state.mark(tensor, ChannelRole.PRODUCED if is_shift else ChannelRole.CARRIED)
    axes = state.broadcast(operands, FIXED_SIZE)
    for output in call.outputs:
        state.label(output, [axis for axis in axes if axis.shape == output.shape])


def _matrix_product(state: ActivationLabels, call: OperatorCall, *, bias: str = "", first: str, second: str) -> None:
    left, right = call.arguments[first], call.arguments[second]
    batch = (0,) if left.ndim == 3 else ()
    row, inner, column = len(batch), len(batch) + 1, len(batch) + 1
    operands = [
        state.operand(left).view(*batch, row, inner, None),
        state.operand(right).view(*batch, None, row, column),
    ]
    for tensor, inner_dim in ((left, inner), (right, row)):
        _mark_weight(state, tensor, inner_dim)
    axes = state.contract(state.broadcast(operands, FIXED_SIZE), inner)
    if bias:
        shift = call.arguments[bias]
        state.mark(shift, ChannelRole.PRODUCED)
        axes = state.broadcast([Operand(axes, call.outputs[0].shape), state.operand(shift)], FIXED_SIZE)
    state.label(call.outputs[0], axes)


def _mark_weight(state: ActivationLabels, tensor: Tensor, inner: int) -> None:
    """Mark the channels that a weight consumes along a dimension, and those that it produces along others."""
    for axis in state.axes(tensor) if state.is_weight(tensor) else ():
        state.labels.mark(axis, ChannelRole.CONSUMED if varying_dims(axis) == {inner} else ChannelRole.PRODUCED)


def _reduction(state: ActivationLabels, call: OperatorCall, *, additive: bool) -> None:
    if len(call.tensors) > 1:  # max and min of two tensors
        return pointwise(state, call)
    return reduction(state, call, additive=additive)


def _along_dim(state: ActivationLabels, call: OperatorCall) -> None:
    """Pass labels on where an operator reorders or accumulates along another dimension."""
    x = call.tensors[0]
    _mix_and_resize(state, call, {call.arguments["dim"] % x.ndim} if x.ndim else set())


def _spatial(state: ActivationLabels, call: OperatorCall) -> None:
    """Pass the labels of samples and channels on where pixels are pooled or resized."""
    x = call.tensors[0]
    digit = re.search(r"(\d)_?d", call.name)
    _mix_and_resize(state, call, set(range(x.ndim - (int(digit[1]) if digit else 2), x.ndim)))


def _mix_and_resize(state: ActivationLabels, call: OperatorCall, dims: set[int]) -> None:
    axes = state.mix(state.axes(call.tensors[0]), dims, f"its channels pass through {call.place} mixes channels")
    kept = [compact(axis)[0] for axis in axes if not varying_dims(axis) & dims]
    for output in call.outputs:
        state.label(output, [axis.expand(output.shape) for axis in kept if axis.ndim == output.ndim])


def _gated(state: ActivationLabels, call: OperatorCall) -> None:
    """Connect the halves of a gated linear unit."""
    x, dim = call.arguments["self"], call.arguments["dim"] % call.arguments["self"].ndim
    halves = [axis.chunk(2, dim) for axis in state.axes(x)]
    for first, second in halves:
        if depends(first, dim):
            state.labels.unite(first, second)
    state.label(call.outputs[0], [first for first, _ in halves])


def _joined(state: ActivationLabels, call: OperatorCall) -> None:
    """Pass labels on through a concatenation, and connect those along other dimensions."""
    if not all(map(state.is_weight, call.tensors)):  # such as a class token
        for tensor in call.tensors:
            state.mark(tensor, ChannelRole.PRODUCED)
    parts = [tensor for tensor in call.tensors if tensor.ndim == call.outputs[0].ndim]
    _join(state, call, parts, [state.axes(part) for part in parts], call.arguments["dim"] % parts[0].ndim)


def _stacked(state: ActivationLabels, call: OperatorCall) -> None:
    dim = call.arguments["dim"] % call.outputs[0].ndim
    axes = [tuple(axis.unsqueeze(dim) for axis in state.axes(tensor)) for tensor in call.tensors]
    _join(state, call, [tensor.unsqueeze(dim) for tensor in call.tensors], axes, dim)


def _join(state: ActivationLabels, call: OperatorCall, parts: Sequence[Tensor], axes: Sequence[Axes], dim: int) -> None:
    side = [tuple(narrow(axis, {dim}) for axis in of_part if not depends(axis, dim)) for of_part in axes]
    shape = torch.Size(1 if i == dim else size for i, size in enumerate(call.outputs[0].shape))
    adapts = [state.is_adapting(tensor) for tensor in call.tensors]
    operands = [Operand(part, shape, constant) for part, constant in zip(side, adapts, strict=False)]
    joined = [axis.expand(call.outputs[0].shape) for axis in state.broadcast(operands, FIXED_SIZE)]
    along = [next((axis for axis in of_part if depends(axis, dim)), None) for of_part in axes]
    if any(axis is not None for axis in along):
        joined.append(_concatenate(along, [part.shape[dim] for part in parts], dim, call.outputs[0]))
    state.label(call.outputs[0], joined)


def _concatenate(along: Sequence[Tensor | None], sizes: Sequence[int], dim: int, output: Tensor) -> Tensor:
    """Concatenate labels; parts without labels are fixed."""
    fixed = torch.full((1,) * output.ndim, FIXED)
    full = compact(*[fixed.expand(_with_size(output.shape, dim, size)) if axis is None else axis
                     for axis, size in zip(along, sizes, strict=True)])  # fmt: skip
    shape = torch.broadcast_shapes(*[_with_size(part.shape, dim, 1) for part in full])
    parts = [part.expand(_with_size(shape, dim, size)) for part, size in zip(full, sizes, strict=True)]
    return torch.cat(parts, dim).expand(output.shape)


def _with_size(shape: Sequence[int], dim: int, size: int) -> list[int]:
    return [*shape[:dim], size, *shape[dim + 1 :]]


def _embedding(state: ActivationLabels, call: OperatorCall) -> None:
    weight = call.arguments["weight"]
    columns = [axis for axis in state.axes(weight) if varying_dims(axis) == {1}]
    state.fix([axis for axis in state.axes(weight) if varying_dims(axis) != {1}], FIXED_SIZE)
    for axis in columns:
        if state.is_weight(weight):
            state.labels.mark(axis, ChannelRole.PRODUCED)
    state.label(call.outputs[0], [axis[0].expand(call.outputs[0].shape) for axis in columns])


def _unchanged(state: ActivationLabels, call: OperatorCall) -> None:
    for output in call.outputs:
        state.label(output, [axis for axis in state.axes(call.tensors[0]) if axis.shape == output.shape])


def _restrided(state: ActivationLabels, call: OperatorCall) -> None:
    """Pass labels on where global pooling changes the strides of dimensions of size 1, for channels-last tensors."""
    x, output = call.arguments["self"], call.outputs[0]
    same = output.shape[2:].numel() == 1 and all(axis.shape == output.shape for axis in state.axes(x))
    return _unchanged(state, call) if same else opaque(state, call)


def _copy(state: ActivationLabels, call: OperatorCall) -> None:
    if state.axes(call.arguments["self"]):
        return pointwise(state, call)
    state.fix(state.axes(call.arguments["src"]), "its channels are written into a tensor of a fixed size")
    return None


def _shape_only(state: ActivationLabels, call: OperatorCall) -> None:
    """Record constants whose shape follows from that of an activation."""
    state.follow(call.outputs, ())


def _movement(state: ActivationLabels, call: OperatorCall, *, move: Callable[[Tensor, OperatorCall], Any]) -> None:
    moved = [labels_of(move(axis, call)) for axis in state.axes(call.tensors[0])]
    for index, output in enumerate(call.outputs):
        parts = [labels[index] for labels in moved]
        state.label(output, parts)
        for axis, part in zip(state.axes(call.tensors[0]), parts, strict=True):
            if not varying_dims(part) and varying_dims(axis) and part.numel():
                state.labels.fix(part, "one of its channels is selected by its index")


RULES: dict[str, Rule] = {
    "convolution": convolution,
    "mm": partial(_matrix_product, first="self", second="mat2"),
    "bmm": partial(_matrix_product, first="self", second="mat2"),
    "addmm": partial(_matrix_product, bias="self", first="mat1", second="mat2"),
    "baddbmm": partial(_matrix_product, bias="self", first="batch1", second="batch2"),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), batch_norm),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm"), norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(("sum", "linalg_vector_norm", "norm"), partial(_reduction, additive=True)),
    **dict.fromkeys(
        ("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp"),
        partial(_reduction, additive=False),
    ),
    **dict.fromkeys(("cumsum", "cumprod", "sort", "topk", "logcumsumexp"), _along_dim),
    **dict.fromkeys(
        (
            *(
                f"{kind}_pool{n}d"
                for kind in ("avg", "_adaptive_avg", "adaptive_avg", "adaptive_max")
                for n in (1, 2, 3)
            ),
            *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
            *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "trilinear3d")),
            *(f"{aa}upsample_{kind}" for aa in ("", "_") for kind in ("bicubic2d", "linear1d", "nearest_exact2d")),
            *(f"_upsample_{kind}_aa" for kind in ("bilinear2d", "bicubic2d")),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
            *("grid_sampler_2d", "grid_sampler_3d", "torchvision::roi_align", "torchvision::roi_pool"),
        ),
        _spatial,
    ),
    "embedding": _embedding,
    **dict.fromkeys(("native_dropout", "fill", "zero", "bernoulli", "uniform", "normal"), _unchanged),
    **dict.fromkeys(
        ("_prelu_kernel", "hardswish", "masked_fill", "log_sigmoid_forward", "rrelu_with_noise"), pointwise
    ),
    "copy": _copy,
    "as_strided": _restrided,
    "glu": _gated,
    "cat": _joined,
    "stack": _stacked,
    **dict.fromkeys(
        (
            *(f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randn")),
            *(f"new_{kind}" for kind in ("zeros", "ones", "full", "empty", "empty_strided")),
        ),
        _shape_only,
    ),
    **{name: partial(_movement, move=move) for name, move in MOVEMENTS.items()},
}
