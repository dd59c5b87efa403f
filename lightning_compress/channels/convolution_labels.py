"""How convolutions pass channel labels on."""

from __future__ import annotations

from torch import Tensor

from lightning_compress.channels.activation_labels import ActivationLabels, index_labels
from lightning_compress.channels.channel_labels import ChannelRole, varying_dims
from lightning_compress.channels.operator_call import OperatorCall

_REASON = "its channels are read by a convolution with a weight of a fixed size"


def convolution(state: ActivationLabels, call: OperatorCall) -> None:
    """Connect the channels of the input with those that the weight consumes; the output has those that it produces."""
    x, weight, bias = (call.arguments[name] for name in ("input", "weight", "bias"))
    groups, transposed = call.arguments["groups"], call.arguments["transposed"]
    batch, channels = _input_axes(state, x, call)
    consumed, produced = _weight_axes(state, weight, transposed=transposed)
    if groups > 1 and weight.shape[1] == 1 and (not transposed or weight.shape[0] == groups):
        produced = _depthwise(state, channels, consumed if transposed else produced, weight.shape[0] // groups)
    elif groups > 1 and transposed:
        state.fix(_present(channels, consumed, produced), "a grouped transposed convolution is not supported")
        produced = None
    else:
        _pair(state, channels, consumed, groups)
        _tie_groups(state, produced, groups)
    if bias is not None:
        _pair(state, produced, _vector(state, bias), 1)
        state.mark(bias, ChannelRole.PRODUCED)
    output = call.outputs[0]
    axes = [] if produced is None else [produced.view(-1, *[1] * (output.ndim - 2)).expand(output.shape)]
    state.label(
        output, axes + [axis[(slice(None),) + (slice(1),) * (x.ndim - 1)].expand(output.shape) for axis in batch]
    )


def _input_axes(state: ActivationLabels, x: Tensor, call: OperatorCall) -> tuple[list[Tensor], Tensor | None]:
    """Return the labels of the samples and of the channels; those of pixels are mixed."""
    reason = f"its channels pass through {call.place} mixes channels"
    spatial = set(range(2, x.ndim))
    axes = [axis for axis in state.mix(state.axes(x), spatial, reason) if not varying_dims(axis) & spatial]
    axes = list(state.mix(tuple(axes), {0}, "")) if any(varying_dims(axis) == {0, 1} for axis in axes) else axes
    channels = [index_labels(axis, 1) for axis in axes if varying_dims(axis) == {1}]
    return [axis for axis in axes if varying_dims(axis) == {0}], next(iter(channels), None)


def _weight_axes(state: ActivationLabels, weight: Tensor, *, transposed: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the labels that a weight consumes and produces."""
    found: list[Tensor | None] = []
    for dim, role in ((0 if transposed else 1, ChannelRole.CONSUMED), (1 if transposed else 0, ChannelRole.PRODUCED)):
        axis = next((axis for axis in state.axes(weight) if varying_dims(axis) == {dim}), None)
        if axis is not None and state.is_weight(weight):
            state.labels.mark(axis, role)
        found.append(None if axis is None else index_labels(axis, dim))
    state.fix(
        [axis for axis in state.axes(weight) if not varying_dims(axis) <= {0} and not varying_dims(axis) <= {1}],
        _REASON,
    )
    return found[0], found[1]


def _depthwise(
    state: ActivationLabels, channels: Tensor | None, weight: Tensor | None, multiplier: int
) -> Tensor | None:
    if weight is not None:
        state.labels.mark(weight, ChannelRole.PRODUCED)
    _pair(state, None if channels is None else channels.repeat_interleave(multiplier), weight, 1)
    return weight


def _pair(state: ActivationLabels, first: Tensor | None, second: Tensor | None, groups: int) -> None:
    """Connect channels with those of one group of a weight."""
    if first is None or second is None:
        return state.fix(_present(first, second), _REASON)
    state.labels.mark_summed(second)
    return state.labels.unite(first.view(groups, -1), second.view(1, -1))


def _tie_groups(state: ActivationLabels, produced: Tensor | None, groups: int) -> None:
    """Let the groups of a convolution lose the same offsets."""
    if produced is not None and groups > 1:
        offsets = produced.view(groups, -1)
        state.labels.unite(offsets, offsets[:1])


def _vector(state: ActivationLabels, bias: Tensor) -> Tensor | None:
    return next(iter(state.axes(bias)), None)


def _present(*labels: Tensor | None) -> list[Tensor]:
    return [part for part in labels if part is not None]
