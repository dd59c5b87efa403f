"""Tensors to pack."""

from __future__ import annotations

import torch
from torch import Tensor


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All that a tensor is."""
    raw = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, raw.numpy().tobytes()


def state() -> dict[str, Tensor]:
    """Tensors such that all ways of packing occur."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def sparse(weight: Tensor, share: float) -> Tensor:
        return weight.masked_fill(torch.rand(weight.shape, generator=generator) < share, 0.0)

    few = torch.tensor([-1.5, -0.5, 0.5, 1.25])
    index = torch.randint(4, (64, 64), generator=generator)
    columns = sparse(few[index], 0.5) * (torch.arange(64) % 2)
    scale = torch.rand(64, generator=generator) + 0.1
    return {
        "dense": normal(8, 8),
        "split": normal(64, 64),
        "sparse": sparse(normal(64, 64), 0.9),
        "bits": sparse(normal(64, 64), 0.5),
        "clustered": sparse(few[index], 0.8),
        "columns": columns,
        "channels": sparse(normal(64, 4).gather(1, index), 0.3),
        "vectors": normal(8, 4)[torch.randint(8, (64, 16), generator=generator)].reshape(64, 64),
        "q.weight": torch.round(20 * normal(64, 32)).clamp(-127, 127) * scale[:, None],
        "q.quant_weight_scale": scale,
        "count": torch.tensor(7),
        "mask": torch.rand(40, generator=generator) < 0.5,
        "few": few[torch.randint(4, (4096,), generator=generator)].reshape(1, 4096),
    }
