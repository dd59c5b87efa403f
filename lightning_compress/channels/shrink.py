"""Physical removal of zero channels from a trained model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import as_arguments
from lightning_compress.channels.block_discovery import block_group, find_blocks, zero_modules
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.channels.remove import remove_
from lightning_compress.masked_norms import masked_norms
from lightning_compress.sharded_modules import copy_whole


def shrink(model: nn.Module, example_inputs: Any, *, width: bool = False) -> tuple[nn.Module, RemovalLog]:
    """Remove zero channels from a model and return a smaller one that computes the same function.

    A channel is zero if it is zero in every tensor that produces it: weights, biases, and scales and shifts of batch
    norms, of all layers in its channel group. ``Pruning(pattern=Channels())`` leaves such channels. Groups are found
    by following each channel through the operators of a run, and verified by trial removals on copies of the model.
    Channels that cannot be removed without a change in the output are kept, and a warning names the layers in which
    they are zero. Residual blocks with no weight other than zero, which ``Pruning(pattern=Depth())`` leaves, become
    ``nn.Identity``.

    ``Pruning(pattern=Channels(width=True))`` also masks channels that LayerNorms and RMSNorms normalize over. In the
    fitted model, and in one that the callback prepared for evaluation, these norms skip masked channels; they become
    plain, narrower norms. With ``width=True``, zero channels of the norms of any model are taken for such.

    Args:
        model: The model, which is left unchanged. A sharded one is gathered on each rank: call it on all of them.
        example_inputs: Inputs of its forward: a tensor, a tuple of arguments, or a dict of keyword arguments.
        width: Remove zero channels of LayerNorms and RMSNorms from a model whose norms do not skip them, such as a
            plain model with the weights of a checkpoint.

    Returns:
        The smaller model, and the log that repeats the removal on a fresh model before weights are loaded. Of a group
        without any nonzero channel, one channel is kept.

    Raises:
        ValueError: If the model cannot be run on the example inputs, or if it contains quantizers, because their scales
            have one entry per channel.

    >>> import lightning_compress as lc
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> for tensor in net[0].parameters():
    ...     _ = nn.init.zeros_(tensor[5:])
    >>> images = torch.randn(2, 3, 6, 6)
    >>> small, log = lc.shrink(net, images)
    >>> small[0]
    Conv2d(3, 5, kernel_size=(3, 3), stride=(1, 1))
    >>> torch.allclose(small(images), net(images), atol=1e-6)
    True
    """
    quantizer = next((name for name, _ in model.named_buffers() if name.rpartition(".")[2].startswith("quant_")), None)
    if quantizer is not None:
        raise ValueError(
            f"shrink: {quantizer!r} belongs to a quantizer: shrink first, then calibrate or train with quantization."
        )
    args, kwargs = as_arguments(example_inputs)
    small = copy_whole(model)
    log = _remove_blocks_(small, args, kwargs)
    groups, reasons = find_groups(small, args, kwargs, width=width or bool(masked_norms(model)))
    tensors = named_tensors(small)
    _warn_of_remaining_zeros(tensors, reasons)
    log = log.then(remove_(small, {group: _keep_one(group.dead(tensors)) for group in groups}))
    # Parameters of the original are recorded too: carry_optimizer_state looks up both.
    log.remember(model.named_parameters())
    return small, log


def _remove_blocks_(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RemovalLog:
    """Replace residual blocks without nonzero weights by the identity; they are searched for if there may be some."""
    outermost = list(zero_modules(model))
    if not outermost:
        return RemovalLog()
    inside = tuple(f"{name}." for name in outermost)
    dead = [name for name in find_blocks(model, args, kwargs)[0] if f"{name}.".startswith(inside)]
    return remove_(model, {block_group(model, dead): torch.ones(len(dead), dtype=torch.bool)}) if dead else RemovalLog()


def _keep_one(dead: Tensor) -> Tensor:
    """Return the dead channels without the first if all are dead: layers need at least one channel."""
    return dead & (torch.arange(len(dead)) > 0) if dead.all() else dead


def _warn_of_remaining_zeros(tensors: Mapping[str, Tensor], reasons: Mapping[str, str]) -> None:
    weights = {layer: tensors[f"{layer}.weight"] for layer in reasons if f"{layer}.weight" in tensors}
    zero = [layer for layer, weight in weights.items() if bool((weight == 0).flatten(1).all(dim=1).any())]
    if zero:
        examples = "; ".join(f"{layer!r}: {reasons[layer]}" for layer in zero[:3])
        warnings.warn(f"shrink: zero channels of {len(zero)} layers cannot be removed ({examples}).", stacklevel=3)
