"""Channel groups from the connections of channel labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lightning_compress.channels.channel_labels import ChannelLabels, ChannelRole, LabeledDim, narrow
from lightning_compress.channels.groups import ChannelGroup, ChannelSlice
from lightning_compress.channels.operator_call import SplitDim
from lightning_compress.channels.split_attributes import split_attributes
from lightning_compress.masked_norms import MaskedNorm

_CONNECTED = "all of its channels depend on each other"


class LabeledGroups:
    """Channel groups of a traced model.

    Args:
        model: The model.
        labels: Labels of its parameters and buffers after the trace.
        splits: Dimensions that operators split into equal parts.
        norms: Norms that can be narrowed, by module name.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: ChannelLabels,
        splits: Sequence[SplitDim],
        norms: Mapping[str, MaskedNorm] = MappingProxyType({}),
    ) -> None:
        self._norms = norms
        self._modules = dict(model.named_modules())
        self._parameters = {name for name, _ in model.named_parameters()}
        self._labels, self._splits = labels, splits
        self._components = _tie_parts(labels, splits)
        self._reasons = labels.fixed_reasons(self._components)

    def groups(self) -> list[ChannelGroup]:
        """Return the groups in the order of the tensors that produce their channels."""
        dims = [dim for dim in self._labels.dims if self._role(dim) != ChannelRole.UNUSED]
        by_component: dict[int, list[LabeledDim]] = {}
        for dim in dims:
            for component in self._components[dim.start : dim.start + dim.size].unique().tolist():
                by_component.setdefault(component, []).append(dim)
        summed = self._labels.summed_components(self._components)
        grouped: dict[tuple[LabeledDim, ...], list[int]] = {}
        for component, of_component in by_component.items():
            if component not in self._reasons and component in summed:
                grouped.setdefault(tuple(of_component), []).append(component)
        return [
            self._group(of_group, components) for of_group, components in grouped.items() if self._produces(of_group)
        ]

    def reason(self, tensor: str, dim: int) -> str:
        """Return why the channels along a dimension cannot be removed; empty if some of them can."""
        components = self._components_of(tensor, dim)
        if any(component not in self._reasons for component in components):
            return _CONNECTED if len(components) == 1 else ""
        return next((self._reasons[component] for component in components if self._reasons[component]), "")

    def is_output(self, tensor: str, dim: int) -> bool:
        """Return True if the channels along a dimension are not computed, or are those of the model's output."""
        components = self._components_of(tensor, dim)
        fixed = all(component in self._reasons for component in components)
        unused = all(self._role(item) == ChannelRole.UNUSED for item in self._labels.dims if item.tensor == tensor)
        return unused or (fixed and not self.reason(tensor, dim))

    def _components_of(self, tensor: str, dim: int) -> list[int]:
        labeled = next(item for item in self._labels.dims if (item.tensor, item.dim) == (tensor, dim))
        return self._components[labeled.start : labeled.start + labeled.size].unique().tolist()

    def _produces(self, dims: Iterable[LabeledDim]) -> bool:
        return any(self._role(dim) == ChannelRole.PRODUCED for dim in dims)

    def _role(self, dim: LabeledDim) -> ChannelRole:
        role = self._labels.role(dim)
        # Buffers are not trained, so they are not masked.
        return role if dim.tensor in self._parameters else min(role, ChannelRole.CARRIED)

    def _group(self, dims: Sequence[LabeledDim], components: Sequence[int]) -> ChannelGroup:
        root = next(dim for dim in dims if self._role(dim) == ChannelRole.PRODUCED)
        found = self._components[root.start : root.start + root.size].tolist()
        members = set(components)
        ordered = [component for component in dict.fromkeys(found) if component in members]
        channel = torch.full((int(self._components.max()) + 1,), -1).index_put_(
            (torch.tensor(ordered),), torch.arange(len(ordered))
        )
        channels = channel[self._components]
        slices = {
            role: tuple(
                _slice(dim, channels, dim.tensor in self._parameters) for dim in dims if self._role(dim) == role
            )
            for role in ChannelRole
        }
        owners = (item.tensor.rpartition(".")[0] for item in slices[ChannelRole.PRODUCED])
        name, attributes = split_attributes(self._splits, channels, len(ordered), self._modules)
        return ChannelGroup(
            name or root.tensor.rpartition(".")[0] or root.tensor,
            len(ordered),
            slices[ChannelRole.PRODUCED],
            slices[ChannelRole.CARRIED],
            slices[ChannelRole.CONSUMED],
            attributes,
            {owner: self._norms[owner] for owner in dict.fromkeys(owners) if owner in self._norms},
        )


def _slice(dim: LabeledDim, channels: Tensor, is_parameter: bool) -> ChannelSlice:
    of_dim = channels[dim.start : dim.start + dim.size]
    positions = (of_dim >= 0).nonzero().flatten()
    return ChannelSlice(dim.tensor, dim.dim, positions, of_dim[positions], is_parameter=is_parameter)


def _tie_parts(labels: ChannelLabels, splits: Sequence[SplitDim]) -> Tensor:
    """Connect equal offsets of split dimensions, unless their parts can only be removed as a whole."""
    while True:
        components = labels.components()
        loose = [split.labels for split in splits if len(varying(components[split.labels])) > 1]
        for part in loose:
            labels.unite(part, narrow(part, range(part.ndim - 1)).expand(part.shape))
        if not loose:
            return components


def varying(values: Tensor) -> list[int]:
    """Return the dimensions along which values vary."""
    return [dim for dim in range(values.ndim) if bool((values != values.narrow(dim, 0, 1)).any())]
