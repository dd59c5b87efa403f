"""Channel labels of activations: which parameters' indices each of their indices follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_compress.channels.channel_labels import (
    ChannelLabels,
    ChannelRole,
    compact,
    depends,
    narrow,
    unique_pairs,
    varying_dims,
)

# Labels of one tensor: each has the tensor's shape, expanded along dimensions that its channels do not depend on.
Axes = tuple[Tensor, ...]

FIXED_SIZE = "its channels are combined with a tensor of a fixed number of entries"


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor in a broadcast operation.

    Attributes:
        axes: Its labels, of its shape.
        shape: Its shape.
        adapts: True for constants whose shape follows from that of activations, such as ``zeros_like``.
    """

    axes: Axes
    shape: torch.Size
    adapts: bool = False

    def view(self, *dims: int | None) -> Operand:
        """Return the operand with its dimensions in another order, with dimensions of size 1 for None."""

        def arrange(tensor: Tensor) -> Tensor:
            ordered = tensor.permute([dim for dim in dims if dim is not None])
            return ordered[tuple(None if dim is None else slice(None) for dim in dims)]

        shape = torch.Size(1 if dim is None else self.shape[dim] for dim in dims)
        return Operand(tuple(map(arrange, self.axes)), shape, self.adapts)


class ActivationLabels:
    """Labels of activations while a model runs.

    Args:
        labels: Labels of the parameters and buffers.
        tensors: Parameters and buffers by name.
    """

    def __init__(self, labels: ChannelLabels, tensors: Mapping[str, Tensor]) -> None:
        self.labels = labels
        self._axes = WeakTensorKeyDictionary()
        # Tensors computed from parameters and buffers alone, and constants whose shape may follow from activations.
        self._weights = WeakTensorKeyDictionary()
        self._adapting = WeakTensorKeyDictionary()
        axes: dict[str, list[Tensor]] = {}
        for dim in labels.dims:
            tensor = tensors[dim.tensor]
            shape = [dim.size if i == dim.dim else 1 for i in range(tensor.ndim)]
            axis = torch.arange(dim.start, dim.start + dim.size).view(shape).expand(tensor.shape)
            axes.setdefault(dim.tensor, []).append(axis)
        for name, tensor in tensors.items():
            self.label(tensor, axes.get(name, ()))
            self._weights[tensor] = True

    def axes(self, tensor: Tensor) -> Axes:
        """Return the labels of a tensor; none if its shape is fixed."""
        return self._axes.get(tensor, ())

    def label(self, tensor: Tensor, axes: Iterable[Tensor]) -> None:
        """Set the labels of a tensor, without those that vary along none of its dimensions."""
        self._axes[tensor] = tuple(axis for axis in axes if varying_dims(axis))

    def operand(self, tensor: Tensor) -> Operand:
        """Return a tensor as an operand."""
        return Operand(self.axes(tensor), tensor.shape, tensor in self._adapting)

    def is_weight(self, tensor: Tensor) -> bool:
        """Return True if a tensor is computed from parameters and buffers alone."""
        return tensor in self._weights

    def is_adapting(self, tensor: Tensor) -> bool:
        """Return True for constants whose shape may follow from that of activations."""
        return tensor in self._adapting

    def follow(self, outputs: Iterable[Tensor], inputs: Sequence[Tensor]) -> None:
        """Record of outputs whether they are computed from weights alone, or from constants alone."""
        for output in outputs:
            if inputs and all(map(self.is_weight, inputs)):
                self._weights[output] = True
            elif all(map(self.is_adapting, inputs)):
                self._adapting[output] = True

    def mark(self, tensor: Tensor, role: ChannelRole) -> None:
        """Record a use of all labels of a weight."""
        for axis in self.axes(tensor) if self.is_weight(tensor) else ():
            self.labels.mark(axis, role)

    def fix(self, axes: Iterable[Tensor], reason: str) -> None:
        """Exclude labels from removal."""
        for axis in axes:
            self.labels.fix(axis, reason)

    def broadcast(self, operands: Sequence[Operand], reason: str) -> Axes:
        """Connect the labels of tensors in an elementwise operation, and return those of the result.

        Args:
            operands: The tensors.
            reason: Why channels stay where an operand has a fixed number of entries.
        """
        shape = torch.broadcast_shapes(*[operand.shape for operand in operands])
        axes: list[Tensor] = []
        for axis in (axis.expand(shape) for operand in operands for axis in operand.axes):
            axes = self._join(axes, axis)
        rigid = [set[int]().union(*[_rigid_dims(operand, axis) for operand in operands]) for axis in axes]
        return tuple(self._mix(axis, dims, reason) for axis, dims in zip(axes, rigid, strict=True))

    def contract(self, axes: Axes, dim: int) -> Axes:
        """Return the labels of a sum over a dimension; of labels that also vary along others, those connect."""
        for axis in axes:
            if varying_dims(axis) == {dim}:
                self.labels.mark_summed(axis)
        return tuple(axis.select(dim, 0) for axis in self.mix(axes, {dim}, "") if not depends(axis, dim))

    def mix(self, axes: Axes, dims: Iterable[int], reason: str) -> Axes:
        """Return the labels of an operation that mixes all entries along dimensions.

        Args:
            axes: Labels of its input.
            dims: The dimensions.
            reason: Why labels that vary along these dimensions alone stay; empty if zeros have no effect.
        """
        mixed = set(dims)
        return tuple(self._mix(axis, mixed & varying_dims(axis), reason) for axis in axes)

    def _mix(self, axis: Tensor, dims: set[int], reason: str) -> Tensor:
        if not dims:
            return axis
        if dims == varying_dims(axis):
            if reason:
                self.labels.fix(axis, reason)
            return axis
        first = narrow(axis, dims)
        self.labels.unite(axis, first.expand(axis.shape))
        return first.expand(axis.shape)

    def _join(self, axes: Sequence[Tensor], axis: Tensor) -> list[Tensor]:
        """Add labels to those of other operands, and connect those that vary along the same dimensions."""
        separate = []
        for other in axes:
            if not varying_dims(axis) & varying_dims(other):
                separate.append(other)
                continue
            # Constants such as rotary embeddings stay as they are where heads can be removed instead.
            if varying_dims(other) < varying_dims(axis) and self.labels.are_buffers(other):
                other, axis = axis, other
            if varying_dims(axis) < varying_dims(other) and self.labels.are_buffers(axis):
                self.labels.fix(axis, "its channels are combined with a buffer")
                axis = self._mix(other, varying_dims(axis), "")
                continue
            # Windows and heads that are merged into one dimension stay independent.
            if self.labels.are_buffers(axis) != self.labels.are_buffers(other) and _is_grid(axis, other):
                separate.append(other)
                continue
            self.labels.unite(axis, other)
            # Both are connected, and so are the labels along a dimension in which only one of them varies.
            axis = narrow(other, varying_dims(other) - varying_dims(axis)).expand(other.shape)
        return [*separate, axis]


def _rigid_dims(operand: Operand, axis: Tensor) -> set[int]:
    """Return the dimensions in which labels vary and an operand has entries, but no labels."""
    dims, offset = varying_dims(axis), axis.ndim - len(operand.shape)
    labeled = {dim + offset for other in operand.axes for dim in varying_dims(other)}
    if operand.adapts or dims & labeled:
        return set()
    return {dim for dim in dims if dim >= offset and operand.shape[dim - offset] > 1}


def _is_grid(axis: Tensor, other: Tensor) -> bool:
    """Return True if each of several labels meets each label of another axis."""
    pairs = unique_pairs(axis, other)
    sizes = [len(part.unique()) for part in pairs]
    return min(sizes) > 1 and pairs.shape[1] == sizes[0] * sizes[1]


def index_labels(axis: Tensor, dim: int) -> Tensor:
    """Return the labels along a dimension, int64 of shape ``(size,)``."""
    return narrow(axis, set(range(axis.ndim)) - {dim}).flatten()


def drop_constant_dims(axis: Tensor) -> Tensor:
    """Return labels expanded along the dimensions in which they do not vary."""
    small = compact(axis)[0]
    for dim in varying_dims(axis):
        first = small.narrow(dim, 0, 1)
        small = first if bool((small == first).all()) else small
    return small.expand(axis.shape)
