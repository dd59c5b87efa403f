"""Channels taken out of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.members import sizes
from lightning_compress.channels.removal_log import RemovalLog, TensorCut, cut_, get, set_


def remove_(model: nn.Module, chosen: Mapping[ChannelGroup, Tensor]) -> RemovalLog:
    """Takes channels out of a network, whatever their values.

    Args:
        model: The network; its parameters are replaced.
        chosen: Which channels of each group go, one bool each; at least one of each has to stay.
    """
    cuts = _cuts(named_tensors(model), chosen)
    cut_(model, cuts)
    log = RemovalLog(cuts, dict(_resized(model, chosen)), tuple(name for name in _transposed(model) if name in cuts))
    for path, (_, after) in log.attributes.items():
        set_(model, path, after)
    log.remember(model.named_parameters())
    return log


def _cuts(tensors: Mapping[str, Tensor], chosen: Mapping[ChannelGroup, Tensor]) -> dict[str, TensorCut]:
    gone: dict[str, dict[int, list[Tensor]]] = {}
    for group, channels in chosen.items():
        for part in group.slices if channels.any() else ():
            gone.setdefault(part.tensor, {}).setdefault(part.dim, []).append(part.of(channels))
    return {
        name: TensorCut(
            tuple(tensors[name].shape), {dim: _kept(tensors[name].shape[dim], parts) for dim, parts in dims.items()}
        )
        for name, dims in gone.items()
    }


def _kept(size: int, gone: list[Tensor]) -> tuple[int, ...]:
    kept = torch.ones(size, dtype=torch.bool).index_fill_(0, torch.cat(gone), False)
    return tuple(kept.nonzero().flatten().tolist())


def _resized(model: nn.Module, chosen: Mapping[ChannelGroup, Tensor]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Attributes before and after, of modules whose tensors have lost channels."""
    after = {
        f"{name}.{key}".lstrip("."): size
        for name, module in model.named_modules()
        for key, size in sizes(module).items()
    }
    for group, channels in chosen.items():
        after.update({path: get(model, path) - n * int(channels.sum()) for path, n in group.counts.items()})
    for path, size in after.items():
        if get(model, path) != size:
            yield path, (get(model, path), size)


def _transposed(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, _ConvTransposeNd):
            yield f"{name}.weight".lstrip(".")
