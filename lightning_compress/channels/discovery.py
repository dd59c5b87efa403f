"""Finds the channel groups of a network, and tries each before it is believed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_compress.channels.dependency_graph import coupled
from lightning_compress.channels.groups import ChannelGroup, first_names
from lightning_compress.channels.heads import attention_heads
from lightning_compress.channels.members import Unfit, group_of
from lightning_compress.channels.removal_check import make_removal_check


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The channel groups of a network, and why other layers are left whole.

    What the dependency graph proposes is tried: on a copy with random weights some of the channels are zeroed, then
    removed, and both must compute the same, and run in training. Where they do not (a shortcut that pads or subsamples
    channels, a reshape) the group is left out.

    Args:
        model: The network; it is only copied.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.

    Returns:
        The groups in the order of the network's modules, and reasons by the names of layers that are left whole.

    Raises:
        ValueError: If the network cannot be copied or run, or returns no tensors.
    """
    trial = make_removal_check(model, args, dict(kwargs))
    groups, whole = list(attention_heads(trial.model)), {}
    heads = {part.tensor for group in groups for part in group.slices}
    for members in coupled(copy.deepcopy(trial.model), trial.args, trial.kwargs):
        try:
            group = group_of(members)
        except Unfit as reason:
            whole[members[0].name] = str(reason)
            continue
        if group.num_channels == 1:
            whole[group.name] = "all its channels meet in one"
        elif heads.isdisjoint(part.tensor for part in group.output_slices):
            groups.append(group)
    names = first_names(trial.model)  # one for each tensor, so that a shared one loses what any of its layers loses
    groups = [group.renamed(names) for group in groups if group.num_channels > 1]
    sound = trial.sound(groups)
    whole |= {
        g.name: "without some of its channels the network does not compute the same" for g in groups if g not in sound
    }
    return sound, whole
