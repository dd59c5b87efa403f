"""Check that values are finite before they are ranked or clustered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_compress.constraints.layer import Layer, group_of


@torch.no_grad()
def check_finite(
    layers: Sequence[Layer], batches: Sequence[Sequence[int]], stacks: Iterable[Tensor], *, quantity: str, purpose: str
) -> None:
    """Check a tensor of each layer, such as this rank's shard of its weight; a collective if the layers are sharded.

    Args:
        layers: The layers that the message names.
        batches: Indices of layers that are checked together.
        stacks: For each batch a stack of floating-point tensors, (layers, ...).
        quantity: Plural noun for the tensors in the message, such as ``"weights"``.
        purpose: Participle in the message, such as ``"ranked"``.

    Raises:
        ValueError: On every rank, if a tensor holds NaN or infinity on any rank.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([1.0, torch.nan])))
    >>> check_finite([layer], [[0]], [layer.weight[None]], quantity="weights", purpose="ranked")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: 'fc.weight' has weights that are NaN or infinite, which cannot be ranked: ...
    """
    if not batches:
        return
    bad = torch.zeros(len(layers), dtype=torch.int32, device=layers[0].parameter.device)
    for batch, stacked in zip(batches, stacks, strict=True):
        if stacked.numel():
            largest = torch.linalg.vector_norm(stacked.flatten(1), torch.inf, dim=1)
            bad[torch.tensor(batch, device=bad.device)] = (~largest.isfinite()).to(bad)
    group = group_of(layers)
    if group is not None:
        # All ranks must raise, or those with finite shards would wait for the others in the next collective.
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bool(bad.any()):
        raise ValueError(
            f"{layers[int(bad.argmax())].name!r} has {quantity} that are NaN or infinite, which cannot be {purpose}: "
            "load finite weights, or find the step that made them with Trainer(detect_anomaly=True)."
        )
