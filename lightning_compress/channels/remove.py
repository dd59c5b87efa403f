"""In-place removal of channels from a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.channels.groups import ChannelGroup, ChannelSlice, named_tensors
from lightning_compress.channels.module_sizes import module_sizes
from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.channels.tensor_cut import (
    TensorCut,
    cut_tensors_,
    get_attribute,
    replace_blocks_,
    set_attribute_,
)
from lightning_compress.masked_norms import detach_complete_


def remove_(model: nn.Module, removed: Mapping[ChannelGroup, Tensor]) -> RemovalLog:
    """Remove channels from a model in place, whatever their values.

    Args:
        model: The model; its parameters are replaced.
        removed: Channels to remove from each group, bool of shape ``(num_channels,)`` on the CPU; at least one channel
            of each group must remain.
    """
    blocks = [group.blocks[i] for group, dead in removed.items() if group.blocks for i in dead.nonzero().flatten()]
    removed = {group: channels for group, channels in removed.items() if not group.blocks}
    cuts = _cuts(named_tensors(model), removed)
    cut_tensors_(model, cuts)
    transposed = tuple(name for name in _transposed_weights(model) if name in cuts)
    log = RemovalLog(cuts, dict(_changed_attributes(model, removed)), transposed, tuple(blocks))
    for path, (_, after) in log.attributes.items():
        set_attribute_(model, path, after)
    detach_complete_(model)
    replace_blocks_(model, blocks)
    log.remember(model.named_parameters())
    return log


def remaining_group(group: ChannelGroup, removed: Tensor, log: RemovalLog) -> ChannelGroup:
    """Return what a group is in the model that a removal left.

    Args:
        group: The group in the model before.
        removed: Channels that were removed, bool of shape ``(num_channels,)``.
        log: The removal, perhaps of other groups, too.
    """
    channel = (~removed).cumsum(0) - 1

    def remaining(part: ChannelSlice) -> ChannelSlice:
        cut = log.cuts[part.tensor]
        is_kept = ~removed[part.channels]
        kept = torch.tensor(cut.kept.get(part.dim, range(cut.shape[part.dim])))
        positions = torch.searchsorted(kept, part.positions[is_kept])
        return replace(part, positions=positions, channels=channel[part.channels[is_kept]])

    return replace(
        group,
        num_channels=int((~removed).sum()),
        output_slices=tuple(map(remaining, group.output_slices)),
        carried_slices=tuple(map(remaining, group.carried_slices)),
        input_slices=tuple(map(remaining, group.input_slices)),
    )


def _cuts(tensors: Mapping[str, Tensor], removed: Mapping[ChannelGroup, Tensor]) -> dict[str, TensorCut]:
    positions: dict[str, dict[int, list[Tensor]]] = {}
    for group, channels in removed.items():
        for channel_slice in group.slices if channels.any() else ():
            by_dim = positions.setdefault(channel_slice.tensor, {})
            by_dim.setdefault(channel_slice.dim, []).append(channel_slice.positions_of(channels))
    cuts = {}
    for name, by_dim in positions.items():
        shape = tuple(tensors[name].shape)
        cuts[name] = TensorCut(shape, {dim: _kept(shape[dim], parts) for dim, parts in by_dim.items()})
    return cuts


def _kept(size: int, removed: list[Tensor]) -> tuple[int, ...]:
    kept = torch.ones(size, dtype=torch.bool).index_fill_(0, torch.cat(removed), False)
    return tuple(kept.nonzero().flatten().tolist())


def _changed_attributes(
    model: nn.Module, removed: Mapping[ChannelGroup, Tensor]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the path of each attribute that no longer fits the tensors, with its value before and after."""
    after = {
        f"{name}.{attribute}".lstrip("."): size
        for name, module in model.named_modules()
        for attribute, size in module_sizes(module).items()
    }
    for group, channels in removed.items():
        for path, per_channel in group.attributes_per_channel.items():
            # Several groups may hold parts of what an attribute counts.
            after[path] = after.get(path, get_attribute(model, path)) - per_channel * int(channels.sum())
    for path, size in after.items():
        if get_attribute(model, path) != size:
            yield path, (get_attribute(model, path), size)


def _transposed_weights(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, _ConvTransposeNd):
            yield f"{name}.weight".lstrip(".")
