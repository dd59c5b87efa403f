"""How operators that move entries pass channel labels on: they are applied to the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.channels.activation_labels import drop_constant_dims
from lightning_compress.channels.channel_labels import FIXED, depends, narrow, varying_dims
from lightning_compress.channels.label_views import split_labels, view_labels
from lightning_compress.channels.operator_call import OperatorCall, SplitDim


def labels_of(result: Any) -> list[Tensor]:
    """Return the labels among the results of a movement."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _view(axis: Tensor, call: OperatorCall) -> Tensor:
    shape = call.outputs[0].shape
    call.splits.extend(SplitDim(call.module, labels) for labels in split_labels(axis, shape))
    return drop_constant_dims(view_labels(axis, shape))


def _same_view(axis: Tensor, call: OperatorCall) -> Any:
    """Apply an operator that returns a view: it keeps the strides of expanded dimensions."""
    return _apply(axis, call)


def _gathered(axis: Tensor, call: OperatorCall) -> Any:
    """Apply an operator that copies entries."""
    return tree_map_only(Tensor, drop_constant_dims, _apply(axis, call))


def _apply(axis: Tensor, call: OperatorCall) -> Any:
    return call.func(axis, *call.args[1:], **call.kwargs)


def _same(axis: Tensor, call: OperatorCall) -> Tensor:
    return axis


def _rolled(axis: Tensor, call: OperatorCall) -> Tensor:
    small = narrow(axis, set(range(axis.ndim)) - varying_dims(axis))
    return call.func(small, *call.args[1:], **call.kwargs).expand(axis.shape)


def _split(axis: Tensor, call: OperatorCall) -> Sequence[Tensor]:
    dim = call.arguments["dim"] % axis.ndim
    sizes = {output.shape[dim] for output in call.outputs}
    if depends(axis, dim) and len(sizes) == 1 and len(call.outputs) > 1:
        _record_parts(axis, dim, len(call.outputs), call)
    return [leaf for leaf in tree_leaves(_apply(axis, call)) if isinstance(leaf, Tensor)]


def _slice(axis: Tensor, call: OperatorCall) -> Tensor:
    dim, size = call.arguments["dim"] % axis.ndim, call.outputs[0].shape[call.arguments["dim"]]
    if depends(axis, dim) and size and size < axis.shape[dim] and axis.shape[dim] % size == 0:
        _record_parts(axis, dim, axis.shape[dim] // size, call)
    return _apply(axis, call)


def _record_parts(axis: Tensor, dim: int, parts: int, call: OperatorCall) -> None:
    labels = narrow(axis, varying_dims(axis) - {dim} | (set(range(axis.ndim)) - {dim})).reshape(parts, -1)
    call.splits.append(SplitDim(call.module, labels))


def _padded(axis: Tensor, call: OperatorCall) -> Tensor:
    small = narrow(axis, set(range(axis.ndim)) - varying_dims(axis))
    pad = [amount if depends(axis, axis.ndim - 1 - i // 2) else 0 for i, amount in enumerate(call.arguments["pad"])]
    return torch.constant_pad_nd(small, pad, FIXED).expand(call.outputs[0].shape)


MOVEMENTS: dict[str, Callable[[Tensor, OperatorCall], Any]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy"), _view),
    **dict.fromkeys(
        ("permute", "transpose", "t", "expand", "select", "squeeze", "unsqueeze", "unbind", "diagonal", "unfold"),
        _same_view,
    ),
    **dict.fromkeys(("index", "index_select", "gather", "repeat", "pixel_shuffle", "pixel_unshuffle"), _gathered),
    **dict.fromkeys(("channel_shuffle", "masked_select"), _gathered),
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy", "to", "contiguous", "lift_fresh", "dropout"), _same),
    **dict.fromkeys(("roll",), _rolled),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"), _split),
    "slice": _slice,
    "constant_pad_nd": _padded,
}
