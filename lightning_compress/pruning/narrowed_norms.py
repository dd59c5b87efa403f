"""Norms of a model during and after a fit that masks the channels which they normalize over."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.masked_norms import MaskedNorm, attach_norms_, find_norms, kept_channels, masked_norms
from lightning_compress.targets import Targets

_ORDINARY = Targets().types


def norms_of(groups: Sequence[ChannelGroup], prefix: str = "") -> dict[str, MaskedNorm]:
    """Return the norms over the channels of groups, by module name behind a prefix such as ``"net."``."""
    return {prefix + name: norm for group in groups for name, norm in group.norms.items()}


def attach_for_evaluation_(model: nn.Module) -> None:
    """Let the norms of a fresh model skip channels that are masked in the weights to be loaded.

    Which channels were pruned is not known without the state of the fit: norms without masked channels are unaffected.

    Args:
        model: The deployable submodule; if a fit has prepared its norms, it is left unchanged.
    """
    if not masked_norms(model):
        attach_norms_(model, find_norms(model))


def check_scales(model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
    """Check that zeros in scale and shift of a norm mark masked channels only.

    Args:
        model: The traced module.
        groups: Its channel groups.

    Raises:
        ValueError: If scale and shift of a norm are zero in other channels.
    """
    tensors = named_tensors(model)
    for group in groups:
        dead = group.dead(tensors)
        for item in group.output_slices:
            owner = item.tensor.rpartition(".")[0]
            if owner in group.norms:
                kept = kept_channels(model.get_submodule(owner)).cpu()[item.positions]
                zero = ~kept & ~dead[item.channels]
                if zero.any():
                    raise ValueError(
                        f"Channels(width=True): scale and shift of {owner!r} are zero in {int(zero.sum())} of "
                        f"{len(zero)} channels, by which norms recognize masked channels: initialize its scale to a "
                        "small number other than zero."
                    )


def goes_along(name: str, model: nn.Module, targets: Targets) -> bool:
    """Return True for a tensor of no layer that targets select, but that is part of the embedding of a network.

    Class tokens, embeddings of positions and of words are narrowed with the layers, unless the user leaves them out.

    Args:
        name: Name of the parameter.
        model: The LightningModule.
        targets: Selection of layers.
    """
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    return not isinstance(module, _ORDINARY) and not targets.leaves_out(owner, module)


def has_width(groups: Sequence[ChannelGroup]) -> bool:
    """Return True if channels that norms normalize over are among groups."""
    return any(group.norms for group in groups)


def width_factor(group: ChannelGroup) -> float:
    """Return the factor of normalized scores of a group, one without norms.

    A channel of a residual stream is part of many layers. Its score, which is normalized within the group, is divided
    by the square root of what it saves in all of them; with the root of their number, streams and single layers lose
    about the same fraction of their channels.
    """
    weights = {item.tensor for item in group.output_slices if item.tensor.endswith("weight")} - {
        f"{name}.weight" for name in group.norms
    }
    return math.sqrt(max(len(weights), 1)) if group.norms else 1.0
