"""Channels that are really gone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import as_arguments
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.channels.remove import remove_


def shrink(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, RemovalLog]:
    """Removes the channels that are zero: a smaller network that computes the same.

    A channel is zero where every tensor that makes it is: weights, biases, batch norms' scales and shifts, of all
    layers that it couples. ``Pruning(pattern=Channels())`` leaves such channels. What is coupled is found and tried in
    runs of copies on the example inputs (DepGraph, Fang et al. 2023, arXiv:2301.12900); channels that cannot be removed
    without changing what the network computes stay, and a warning names them where they are zero.

    Args:
        model: The network, which is left as it is.
        example_inputs: What it is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        The smaller network, and the log with which the same is done to a fresh one before weights are loaded.

    Raises:
        ValueError: If the network cannot be run on the example inputs, or if it has quantizers, whose scales belong to
            the channels that it has.
    """
    quantizer = next((name for name, _ in model.named_buffers() if name.rpartition(".")[2].startswith("quant_")), None)
    if quantizer is not None:
        raise ValueError(
            f"shrink: {quantizer!r} is of a quantizer: shrink first, then train or calibrate for integers."
        )
    args, kwargs = as_arguments(example_inputs)
    groups, whole = find_groups(model, args, kwargs)
    tensors = named_tensors(model)
    _warn_of_zeros(tensors, whole)
    small = copy.deepcopy(model)
    log = remove_(small, {group: _all_but_one(group.dead(tensors)) for group in groups})
    log.remember(model.named_parameters())
    return small, log


def _all_but_one(dead: Tensor) -> Tensor:
    """The dead channels; where all are dead, one is kept, which computes nothing but zeros either."""
    return dead & (torch.arange(len(dead)) > 0) if dead.all() else dead


def _warn_of_zeros(tensors: Mapping[str, Tensor], whole: Mapping[str, str]) -> None:
    """Names layers that have channels of zeros and are left whole all the same."""
    weights = {layer: tensors[f"{layer}.weight"] for layer in whole if f"{layer}.weight" in tensors}
    zero = [layer for layer, weight in weights.items() if bool((weight == 0).flatten(1).all(dim=1).any())]
    if zero:
        reasons = "; ".join(f"{layer!r}: {whole[layer]}" for layer in zero[:3])
        warnings.warn(f"shrink: {len(zero)} layers have channels of zeros that stay ({reasons}).", stacklevel=3)
