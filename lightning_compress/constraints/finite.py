"""Check that values are finite before they are ranked or clustered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_compress.constraints.layer import Layer


@torch.no_grad()
def check_finite(layers: Sequence[Layer], tensors: Sequence[Tensor], *, quantity: str, purpose: str) -> None:
    """Check one tensor per layer, such as this rank's shard of its weight; a collective if the layers are sharded.

    Args:
        layers: The layers that the message names.
        tensors: Floating-point tensors.
        quantity: Plural noun for the tensors in the message, such as ``"weights"``.
        purpose: Participle in the message, such as ``"ranked"``.

    Raises:
        ValueError: On every rank, if a tensor holds NaN or infinity on any rank.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([1.0, torch.nan])))
    >>> check_finite([layer], [layer.weight], quantity="weights", purpose="ranked")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: 'fc.weight' has weights that are NaN or infinite, which cannot be ranked: ...
    """
    if not layers:
        return
    bad = torch.zeros(len(layers), dtype=torch.int32, device=tensors[0].device)
    filled = [i for i, tensor in enumerate(tensors) if tensor.numel()]
    if filled:
        finite = torch.stack(torch._foreach_norm([tensors[i] for i in filled], torch.inf)).isfinite()
        bad[torch.tensor(filled, device=bad.device)] = (~finite).int()
    if layers[0].group is not None:
        # All ranks must raise, or those with finite shards would wait for the others in the next collective.
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=layers[0].group)
    if bool(bad.any()):
        raise ValueError(
            f"{layers[int(bad.argmax())].name!r} has {quantity} that are NaN or infinite, which cannot be {purpose}: "
            "load finite weights, or find the step that made them with Trainer(detect_anomaly=True)."
        )
