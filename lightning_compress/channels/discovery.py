"""Discovery of the channel groups of a model, each verified by a trial removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_compress.channels.dependency_graph import dependency_groups
from lightning_compress.channels.groups import ChannelGroup, first_names
from lightning_compress.channels.heads import attention_heads
from lightning_compress.channels.members import RemovalError, build_group
from lightning_compress.channels.removal_check import make_removal_check
from lightning_compress.module_copies import copy_module


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the channel groups of a model, and the layers that cannot lose channels.

    Groups proposed by the dependency graph are verified: on a copy with random weights, some channels are set to zero
    and then removed; both copies must compute the same output and run in training mode. Groups that fail, because of a
    shortcut that pads or subsamples channels or because of a reshape, are left out.

    Args:
        model: The model, which is only copied.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.

    Returns:
        The groups in the order of the model's modules, and by layer name the reason why a layer keeps all of its
        channels.

    Raises:
        ValueError: If the model cannot be copied or run, or returns no tensors.
    """
    check = make_removal_check(model, args, dict(kwargs))
    groups = list(attention_heads(check.model))
    reasons: dict[str, str] = {}
    head_tensors = {channel_slice.tensor for group in groups for channel_slice in group.slices}
    for members in dependency_groups(copy_module(check.model), check.args, check.kwargs):
        try:
            group = build_group(members)
        except RemovalError as error:
            reasons[members[0].name] = str(error)
            continue
        if group.num_channels == 1:
            reasons[group.name] = "all of its channels depend on each other"
        elif head_tensors.isdisjoint(channel_slice.tensor for channel_slice in group.output_slices):
            groups.append(group)
    # One name for each tensor, so that a shared tensor loses the channels of all layers that use it.
    names = first_names(check.model)
    groups = [group.rename_tensors(names) for group in groups if group.num_channels > 1]
    removable = check.removable(groups)
    for group in groups:
        if group not in removable:
            reasons[group.name] = "the model computes a different output after the removal of some of its channels"
    return removable, reasons
