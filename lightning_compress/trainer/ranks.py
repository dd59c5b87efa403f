"""Agreement between the processes of a fit."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer


def check_ranks_agree(trainer: Trainer, digest: bytes, name: str) -> None:
    """Compare a hash over all ranks; a collective.

    Args:
        trainer: The Trainer of the fit.
        digest: Hash of the state that must be equal.
        name: Name of that state in the message, such as ``"Pruning: masks"``.

    Raises:
        RuntimeError: On every rank, if the hash of any rank differs.
    """
    if trainer.world_size == 1:
        return
    local = torch.tensor(list(digest), dtype=torch.uint8, device=trainer.strategy.root_device)
    everywhere = [torch.empty_like(local) for _ in range(trainer.world_size)]
    dist.all_gather(everywhere, local)
    if any(not torch.equal(local, other) for other in everywhere):
        raise RuntimeError(f"{name} differ between ranks; do all ranks hold the same weights?")
