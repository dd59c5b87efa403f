"""Tensors to pack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """All that a tensor is."""
    raw = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, raw.numpy().tobytes()


class Random:
    """Random tensors, the same each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def index(self, num_values: int, *shape: int) -> Tensor:
        return torch.randint(num_values, shape, generator=self.generator)

    def sparse(self, weight: Tensor, sparsity: float) -> Tensor:
        return weight.masked_fill(torch.rand(weight.shape, generator=self.generator) < sparsity, 0.0)


FEW = torch.tensor([-1.5, -0.5, 0.5, 1.25])


def dense(random: Random) -> Tensors:
    return {"dense": random.normal(3, 3)}


def exponents(random: Random) -> Tensors:
    return {"exponents": random.normal(64, 64)}


def sparse(random: Random) -> Tensors:
    """In one dimension, which has no columns to learn."""
    return {"sparse": random.sparse(random.normal(4096), 0.9)}


def half_sparse(random: Random) -> Tensors:
    return {"half sparse": random.sparse(random.normal(64, 64), 0.5)}


def sparse_columns(random: Random) -> Tensors:
    return {"columns": random.sparse(random.normal(64, 64), 0.5) * (torch.arange(64) % 2)}


def clustered(random: Random) -> Tensors:
    return {"clustered": FEW[random.index(4, 64, 64)]}


def sparse_clustered(random: Random) -> Tensors:
    return {"sparse clustered": random.sparse(FEW[random.index(4, 64, 64)], 0.8)}


def clustered_channels(random: Random) -> Tensors:
    return {"channels": random.sparse(random.normal(64, 4).gather(1, random.index(4, 64, 64)), 0.3)}


def clustered_vectors(random: Random) -> Tensors:
    return {"vectors": random.normal(8, 4)[random.index(8, 64, 16)].reshape(64, 64)}


def quantized(random: Random) -> Tensors:
    scale = random.normal(64).abs() + 0.1
    weight = torch.round(20 * random.normal(64, 32)).clamp(-127, 127) * scale[:, None]
    return {"q.weight": weight, "q.quant_weight_scale": scale}


def sorted_entries(random: Random) -> Tensors:
    return {"sorted": random.normal(16)[random.index(16, 32, 32)]}


def multiples(random: Random) -> Tensors:
    return {"uniform grid": (torch.round(2 * random.normal(32, 32)) + 0.0) * 0.037}


def smooth_kernels(random: Random) -> Tensors:
    """Kernels of one sign each, and rows of different magnitudes."""
    magnitudes = (random.normal(32, 1, 1, 1) + random.normal(32, 32, 1, 1)).exp()
    signs = random.normal(32, 32, 1, 1).sign()
    return {"neighbors": (magnitudes * signs * (1 + 0.2 * random.normal(32, 32, 3, 3))).round().clamp(-4, 4)}


def sparse_rows(random: Random) -> Tensors:
    """Rows and columns of different sparsity."""
    kept = torch.rand(96, 1, generator=random.generator) * torch.rand(96, generator=random.generator) > 0.3
    return {"mask": random.sparse(random.normal(96, 96), 0.2) * kept}


def uniform(random: Random) -> Tensors:
    """As frequent as each other: entropy coding has nothing to gain and a table to store."""
    return {"uniform": torch.tensor([0.5, 2.0]).repeat(1, 32)}


SAMPLES: dict[str, Callable[[Random], Tensors]] = {
    "raw": dense,
    "exponents": exponents,
    "gaps": sparse,
    "bitmask": half_sparse,
    "columns": sparse_columns,
    "codebook": clustered,
    "blocks": clustered_channels,
    "range": quantized,
    "indices": clustered_vectors,
    "symbols": sparse_clustered,
    "sorted": sorted_entries,
    "uniform": multiples,
    "neighbors": smooth_kernels,
    "mask": sparse_rows,
    "bits": uniform,
    "ans": sparse_clustered,
}
"""For each registered encoding, by its kind, tensors of which it is used for at least one."""


def state() -> Tensors:
    """The samples of all encodings, and other dtypes."""
    others = {"count": torch.tensor(7), "mask": torch.arange(40) % 3 == 0}
    return {name: tensor for make in SAMPLES.values() for name, tensor in make(Random()).items()} | others
