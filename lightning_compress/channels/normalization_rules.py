"""How norms, softmax and reductions pass channel labels on."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.channels.activation_labels import FIXED_SIZE, ActivationLabels, Axes, Operand
from lightning_compress.channels.channel_labels import ChannelRole, compact, depends, narrow, varying_dims
from lightning_compress.channels.operator_call import OperatorCall


def batch_norm(state: ActivationLabels, call: OperatorCall) -> None:
    """Connect the channels with scale, shift and running statistics."""
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


def norm(state: ActivationLabels, call: OperatorCall) -> None:
    """Fix the channels that a norm mixes, or connect them with its scale and shift if it can be narrowed with them."""
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
    last = x.ndim - 1
    channels: Axes = (axis,)
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


def softmax(state: ActivationLabels, call: OperatorCall) -> None:
    """Fix the channels along the dimension that softmax normalizes."""
    x = call.arguments["self"]
    _mix(state, call, x, [call.arguments["dim"] % x.ndim])


def reduction(state: ActivationLabels, call: OperatorCall, *, additive: bool) -> None:
    """Remove the labels of reduced dimensions; channels that are reduced stay, unless zeros have no effect on it.

    Args:
        state: Labels of activations.
        call: The call.
        additive: True for sums, on which zeros have no effect.
    """
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
    for output in call.outputs:  # values, and perhaps their indices
        of_output = [axis.squeeze(tuple(dims)) for axis in kept] if output.ndim < x.ndim else kept
        state.label(output, [axis for axis in of_output if axis.shape == output.shape])


def _dims(call: OperatorCall, x: Tensor) -> set[int]:
    given = call.arguments.get("dim")
    if given is None or given == []:
        return set(range(x.ndim))
    return {dim % x.ndim for dim in ([given] if isinstance(given, int) else given)}
