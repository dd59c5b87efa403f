"""Integer attributes of modules, such as the number of heads, that go with the parts of a split dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.channels.operator_call import SplitDim


def split_attributes(
    splits: Sequence[SplitDim], channels: Tensor, num_channels: int, modules: Mapping[str, nn.Module]
) -> tuple[str, dict[str, int]]:
    """Return the module that splits channels into heads, and by path the amount that attributes lose per channel.

    Args:
        splits: Dimensions that operators split into parts.
        channels: Channel of the group for each label, -1 for labels of other groups.
        num_channels: Number of channels of the group.
        modules: Modules by name.

    Returns:
        The name is empty if no part of a split dimension is a channel.
    """
    heads = ""
    attributes: dict[str, int] = {}
    for split in splits:
        of_split = channels[split.labels]
        dim, per_channel = _parts_per_channel(of_split, num_channels)
        if dim is None:
            continue
        if dim < of_split.ndim - 1 and not heads:
            heads = split.module
        for attribute, amount in _amounts(modules[split.module], of_split.shape, dim, per_channel):
            attributes.setdefault(f"{split.module}.{attribute}".lstrip("."), amount)
    return heads, attributes


def _parts_per_channel(channels: Tensor, num_channels: int) -> tuple[int | None, int]:
    """Return the dimension along which the channels vary, and how many indices each occupies."""
    varying = [dim for dim in range(channels.ndim) if bool((channels != channels.narrow(dim, 0, 1)).any())]
    if len(varying) != 1:
        return None, 0
    along = channels
    for dim in range(channels.ndim):
        along = along if dim == varying[0] else along.narrow(dim, 0, 1)
    counts = along.flatten()[along.flatten() >= 0].bincount(minlength=num_channels)
    return (varying[0], int(counts[0])) if bool((counts == counts[0]).all()) and counts[0] else (None, 0)


def _amounts(module: nn.Module, shape: torch.Size, dim: int, per_channel: int) -> Iterator[tuple[str, int]]:
    """Yield attributes equal to the number of parts, or to the entries of all parts, and their loss per channel."""
    widths = {1, shape[dim + 1 :].numel()}
    for name, value in vars(module).items():
        for width in widths:
            if type(value) is int and value == shape[dim] * width:
                yield name, per_channel * width
                break
