"""Labels of the indices of parameters and buffers, and which of them can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

# Label of indices that no parameter or buffer follows, such as padding.
FIXED = 0


class ChannelRole(IntEnum):
    """Use of a dimension of a tensor; of several uses, the greatest counts."""

    UNUSED = 0
    CARRIED = 1  # entries per channel that scale or shift activations
    CONSUMED = 2  # weights along the dimension that is summed over
    PRODUCED = 3  # weights and biases that make the channels


@dataclass(frozen=True)
class LabeledDim:
    """A dimension of a tensor, whose indices have the labels ``start`` to ``start + size - 1``."""

    tensor: str
    dim: int
    start: int
    size: int


class ChannelLabels:
    """Labels of all indices of the dimensions of tensors, and their connections.

    Args:
        tensors: Parameters and buffers by name, each tensor once.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.dims: list[LabeledDim] = []
        end = FIXED + 1
        for name, tensor in tensors.items():
            for dim, size in enumerate(tensor.shape):
                self.dims.append(LabeledDim(name, dim, end, size))
                end += size
        self._of_buffer = torch.zeros(end, dtype=torch.bool)
        for labeled in self.dims:
            is_buffer = not isinstance(tensors[labeled.tensor], nn.Parameter)
            self._of_buffer[labeled.start : labeled.start + labeled.size] = is_buffer
        self._roles = torch.zeros(end, dtype=torch.int8)
        self._summed = torch.zeros(end, dtype=torch.bool)
        self._pairs: list[Tensor] = []
        self._fixed: list[tuple[Tensor, str]] = []

    def unite(self, labels: Tensor, others: Tensor) -> None:
        """Connect labels that can only be removed together; the shapes are broadcast."""
        pairs = unique_pairs(labels, others)
        constant = (pairs == FIXED).any(dim=0)
        if constant.any():
            self.fix(pairs[:, constant], "its channels are added to padding or to others of a fixed number")
        self._pairs.append(pairs[:, ~constant])

    def fix(self, labels: Tensor, reason: str) -> None:
        """Exclude labels from removal; the reason is empty for channels of the model's outputs."""
        unique = compact(labels)[0].unique()
        self._fixed.append((unique[unique != FIXED], reason))

    def are_buffers(self, labels: Tensor) -> bool:
        """Return True if all labels belong to buffers."""
        return bool(self._of_buffer[compact(labels)[0]].all())

    def mark(self, labels: Tensor, role: ChannelRole) -> None:
        """Record a use of labels."""
        unique = compact(labels)[0].unique()
        self._roles[unique] = self._roles[unique].clamp_min(int(role))

    def mark_summed(self, labels: Tensor) -> None:
        """Record that channels are summed over: their number does not show in what follows."""
        self._summed[compact(labels)[0].flatten()] = True

    def role(self, dim: LabeledDim) -> ChannelRole:
        """Return the use of a dimension."""
        return ChannelRole(int(self._roles[dim.start : dim.start + dim.size].max())) if dim.size else ChannelRole.UNUSED

    def components(self) -> Tensor:
        """Return the least label that is connected to each label, int64 of shape ``(num_labels,)``."""
        pairs = torch.cat(self._pairs, dim=1) if self._pairs else torch.empty(2, 0, dtype=torch.int64)
        return connected_components(len(self._roles), pairs[0], pairs[1])

    def fixed_reasons(self, components: Tensor) -> dict[int, str]:
        """Return the first reason why a component cannot be removed, for those that cannot."""
        reasons: dict[int, str] = {FIXED: ""}
        for labels, reason in self._fixed:
            for component in components[labels].unique().tolist():
                reasons[component] = reasons.get(component) or reason
        return reasons

    def summed_components(self, components: Tensor) -> set[int]:
        """Return the components that are summed over somewhere."""
        return set(components[self._summed].tolist())


def connected_components(num_labels: int, first: Tensor, second: Tensor) -> Tensor:
    """Return the least label connected to each label by pairs.

    >>> connected_components(5, torch.tensor([4, 2]), torch.tensor([2, 1])).tolist()
    [0, 1, 1, 3, 1]
    """
    component = torch.arange(num_labels)
    while True:
        least = torch.minimum(component[first], component[second])
        following = component.scatter_reduce(0, component[first], least, "amin")
        following = following.scatter_reduce(0, component[second], least, "amin")
        following = following[following]
        if torch.equal(following, component):
            return component
        component = following


def unique_pairs(labels: Tensor, others: Tensor) -> Tensor:
    """Return the pairs of labels at the same place, each once; the shapes are broadcast.

    Returns:
        Int64 of shape ``(2, num_pairs)``.

    >>> unique_pairs(torch.tensor([3, 3]), torch.tensor([1])).tolist()
    [[3], [1]]
    """
    first, second = (part.flatten() for part in torch.broadcast_tensors(*compact(labels, others)))
    # As one number per pair: columns of a tensor take many times as long to sort.
    base = int(second.max()) + 1 if len(second) else 1
    unique = (first * base + second).unique()
    return torch.stack([unique // base, unique % base])


def depends(labels: Tensor, dim: int) -> bool:
    """Return True if labels vary along a dimension; along others they are expanded."""
    return labels.shape[dim] > 1 and labels.stride(dim) != 0


def varying_dims(labels: Tensor) -> set[int]:
    """Return the dimensions along which labels vary."""
    return {dim for dim in range(labels.ndim) if depends(labels, dim)}


def compact(*labels: Tensor) -> Sequence[Tensor]:
    """Return labels of equally many dimensions with size 1 along those in which none of them varies."""
    varying = set().union(*map(varying_dims, labels))
    return [narrow(part, set(range(part.ndim)) - varying) for part in labels]


def narrow(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """Return the first entries along dimensions."""
    for dim in dims:
        labels = labels.narrow(dim, 0, min(1, labels.shape[dim]))
    return labels
