"""Channels that no layer reads, as unstructured pruning leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.label_tracing import plain_operators


@torch.no_grad()
def zero_unused_(
    model: nn.Module, groups: Sequence[ChannelGroup], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Set the channels to zero, in place, that only zero weights read, and those that only such channels read.

    The outputs stay the same to the last bit: groups in which they do not, because something else reads their channels,
    are left as they are.

    Args:
        model: Model.
        groups: Its channel groups.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
    """
    tensors = named_tensors(model)
    if not _with_unused(groups, tensors):
        return

    def run() -> list[Tensor]:
        return _outputs(model, args, kwargs)

    training = {module: module.training for module in model.modules()}
    try:
        expected = run()
        # All at once as a rule; one by one if there is a group in which the outputs change.
        if not _zeroed_alike(groups, tensors, run, expected):
            left = list(groups)
            while found := _with_unused(left, tensors):
                left = [g for g in left if g not in found or _zeroed_alike([g], tensors, run, expected)]
    finally:
        for module, mode in training.items():
            module.training = mode


def _zeroed_alike(
    groups: Sequence[ChannelGroup],
    tensors: Mapping[str, Tensor],
    run: Callable[[], list[Tensor]],
    expected: list[Tensor],
) -> bool:
    """Set unused channels of groups to zero until there are none; undo it and return False if outputs change."""
    names = {part.tensor for group in groups for part in group.output_slices}
    before = {name: tensors[name].clone() for name in names}
    while unused := _with_unused(groups, tensors):
        for group, mask in unused.items():
            group.zero_(tensors, mask)
    found = run()
    if len(found) == len(expected) and all(map(torch.equal, found, expected)):
        return True
    for name, value in before.items():
        tensors[name].copy_(value)
    return False


def _with_unused(groups: Sequence[ChannelGroup], tensors: Mapping[str, Tensor]) -> dict[ChannelGroup, Tensor]:
    """Return the groups with channels that are unused and not zero yet, and masks of these channels."""
    masks = ((group, group.unused(tensors) & ~group.dead(tensors)) for group in groups)
    return {group: mask for group, mask in masks if mask.any()}


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with plain_operators(model.eval()), torch.random.fork_rng(devices=[]):
        return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
