"""How ATen operators pass channel labels on; operators without a rule fix the channels that reach them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_compress.channels.activation_labels import ActivationLabels, Axes, Operand
from lightning_compress.channels.channel_labels import FIXED, ChannelRole, compact, depends, narrow, varying_dims
from lightning_compress.channels.convolution_labels import convolution
from lightning_compress.channels.movement_rules import MOVEMENTS, labels_of
from lightning_compress.channels.operator_call import OperatorCall

Rule = Callable[[ActivationLabels, OperatorCall], None]

FIXED_SIZE = "its channels are combined with a tensor of a fixed number of entries"
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


def _batch_norm(state: ActivationLabels, call: OperatorCall) -> None:
    x = call.arguments["input"]
    axes = state.axes(x)
    vectors = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    if vectors[0] is None and call.arguments.get("running_mean") is not None:
        state.fix(axes, f"its channels pass through {call.place} has no scale per channel")
    for vector in vectors:
        if vector is not None:
            state.mark(vector, ChannelRole.PRODUCED)
            operand = state.operand(vector).view(0, *[None] * (x.ndim - 2))
            axes = state.broadcast([Operand(axes, x.shape), operand], FIXED_SIZE)
    state.label(call.outputs[0], axes)


def _norm(state: ActivationLabels, call: OperatorCall) -> None:
    x = call.arguments["input"]
    dims = range(1, x.ndim)
    if "normalized_shape" in call.arguments:
        dims = range(x.ndim - len(call.arguments["normalized_shape"]), x.ndim)
    along = [axis for axis in state.axes(x) if call.is_narrowed and varying_dims(axis) == set(dims)]
    if along:
        # Of several, such as pixels that were merged into channels, those with the most labels are the channels.
        return _narrowed_norm(state, call, max(along, key=lambda axis: len(compact(axis)[0].unique())))
    _mix(state, call, x, list(dims))
    for name in ("weight", "bias"):
        if call.arguments.get(name) is not None:
            state.fix(state.axes(call.arguments[name]), f"its channels pass through {call.place} mixes channels")
    return None


def _narrowed_norm(state: ActivationLabels, call: OperatorCall, axis: Tensor) -> None:
    """Connect the channels of a norm over the last dimension with its scale and shift."""
    x = call.arguments["input"]
    last, channels = x.ndim - 1, (axis,)
    for vector in (call.arguments.get("weight"), call.arguments.get("bias")):
        if vector is not None:
            operand = state.operand(vector).view(*[None] * last, 0)
            channels = state.broadcast([Operand(channels, x.shape), operand], FIXED_SIZE)
    others = tuple(other for other in state.axes(x) if other is not axis)
    mixed = state.mix(others, {last}, f"its channels pass through {call.place} mixes channels")
    state.label(call.outputs[0], [*channels, *(axis for axis in mixed if not depends(axis, last))])


def _mix(state: ActivationLabels, call: OperatorCall, x: Tensor, dims: list[int]) -> None:
    """Let channels that an operator mixes with others stay."""
    axes = state.mix(state.axes(x), dims, f"its channels pass through {call.place} mixes channels")
    kept = [axis for axis in axes if not varying_dims(axis) & set(dims)]
    for output in call.outputs:
        state.label(output, [axis for axis in kept if axis.shape == output.shape])


def _softmax(state: ActivationLabels, call: OperatorCall) -> None:
    x = call.arguments["self"]
    _mix(state, call, x, [call.arguments["dim"] % x.ndim])


def _reduction(state: ActivationLabels, call: OperatorCall, *, additive: bool) -> None:
    if len(call.tensors) > 1:  # max and min of two tensors
        return pointwise(state, call)
    x = call.tensors[0]
    dims = _dims(call, x)
    axes = state.axes(x)
    if additive:
        for axis in axes:
            if varying_dims(axis) <= dims:
                state.labels.mark_summed(axis)
    zeros_stay = additive or call.is_narrowed
    axes = state.mix(axes, dims, "" if zeros_stay else f"its channels pass through {call.place} mixes channels")
    kept = [narrow(axis, dims) for axis in axes if not varying_dims(axis) & dims]
    for output in call.outputs:
        if output.ndim < x.ndim:
            kept = [axis.squeeze(tuple(dims)) for axis in kept]
        state.label(output, [axis for axis in kept if axis.shape == output.shape])
    return None


def _dims(call: OperatorCall, x: Tensor) -> set[int]:
    given = call.arguments.get("dim")
    if given is None or given == []:
        return set(range(x.ndim))
    return {dim % x.ndim for dim in ([given] if isinstance(given, int) else given)}


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
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm"), _norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
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
