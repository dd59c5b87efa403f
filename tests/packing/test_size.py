"""How small files are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_compress.packing.packed_file import PackedFile

Pack = Callable[..., PackedFile]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def entropy(symbols: Tensor) -> float:
    """Zero-order, in bytes."""
    counts = symbols.unique(return_counts=True, dim=0)[1].double()
    return float((counts * (counts.sum() / counts).log2()).sum()) / 8


def clustered(shape: tuple[int, ...], num_values: int, zeros: float) -> Tensor:
    weight = torch.randn(shape, generator=generator())
    weight = (weight / 6 * num_values).round().clamp(-num_values // 2, num_values // 2) * 0.01 + 0.003
    return weight.masked_fill(torch.rand(shape, generator=generator()) < zeros, 0.0)


@pytest.mark.parametrize("num_values", [2, 15, 200])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 0.99])
def test_within_a_hundredth_of_the_entropy(packed: Pack, num_values: int, zeros: float) -> None:
    weight = clustered((1000, 500), num_values, zeros)
    bound = entropy(weight.flatten()) + 4 * len(weight[weight != 0].unique())
    assert packed(weight).num_bytes - 400 < 1.01 * bound


def test_codebooks_of_channels_cost_their_entropy(packed: Pack) -> None:
    index = torch.randint(16, (256, 2304), generator=generator())
    file = packed(torch.randn(256, 16, generator=generator()).gather(1, index))
    assert "codebook per group" in file.tensors[0].encoding
    assert file.num_bytes - 400 < 1.02 * (index.numel() / 2 + 4 * 256 * 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_codebooks_of_channels_of_each_type(packed: Pack, dtype: torch.dtype) -> None:
    index = torch.randint(2, (64, 256), generator=generator())
    file = packed(torch.randn(64, 2, generator=generator()).to(dtype).gather(1, index))
    assert "codebook per group" in file.tensors[0].encoding
    assert file.tensors[0].num_bytes <= index.numel() // 8 + 64 * (2 * dtype.itemsize + 2)


def test_codebooks_of_groups_in_a_row_cost_their_entropy(packed: Pack) -> None:
    index = torch.randint(4, (2048, 128), generator=generator())
    file = packed(torch.randn(2048, 4, generator=generator()).gather(1, index).reshape(256, 1024))
    assert file.num_bytes - 400 < 1.05 * (index.numel() / 4 + 4 * 2048 * 4)


@pytest.mark.parametrize("width", [2, 4])
def test_codebooks_of_vectors_cost_their_entropy(packed: Pack, width: int) -> None:
    index = torch.randint(256, (256, 576 // width), generator=generator())
    file = packed(torch.randn(256, width, generator=generator())[index].reshape(256, 64, 3, 3))
    assert f"vectors of {width}" in file.tensors[0].encoding
    assert file.num_bytes - 400 < 1.02 * (index.numel() + 4 * 256 * width)


def test_pruned_alone(packed: Pack) -> None:
    weight = torch.randn(512, 512, generator=generator())
    weight[torch.rand(512, 512, generator=generator()) < 0.9] = 0.0
    file = packed(weight)
    assert file.num_bytes - 400 < entropy((weight != 0).flatten()) + 4 * int((weight != 0).sum())


def test_columns_that_are_zero_cost_next_to_nothing(packed: Pack) -> None:
    weight = clustered((300, 784), 15, 0.85)
    weight[:, torch.rand(784, generator=generator()) < 0.6] = 0.0
    file = packed(weight)
    inside = weight[:, weight.any(dim=0)]
    assert "column-wise mask model" in file.tensors[0].encoding
    assert file.num_bytes < 0.9 * entropy(weight.flatten())
    assert file.num_bytes - 700 < 1.03 * (entropy(inside.flatten()) + 784 / 2)


def test_dense_weights_are_a_little_smaller(packed: Pack) -> None:
    assert packed(torch.randn(300, 300, generator=generator())).num_bytes < 0.88 * 4 * 300 * 300


def test_a_header_is_small(packed: Pack) -> None:
    named = {f"layer{i}.{j}.bn{k}.{leaf}": torch.ones(64) for i in range(4) for j in range(4) for k in range(3)
             for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    header = packed(**named).items[-1]
    assert header.name == "header"
    assert header.num_bytes < 250 + len(named)


def test_rounding_of_frequencies_is_small() -> None:
    from lightning_compress.packing.entropy import frequencies, rounded

    counts = np.array([*range(5000), 2**20 + 1, 2**31, 2**33 - 1])
    back = frequencies(rounded(counts))
    assert (abs(back - counts) <= counts / 16).all()
    assert (back[1:] > 0).all()
    assert back[:16].tolist() == list(range(16))
