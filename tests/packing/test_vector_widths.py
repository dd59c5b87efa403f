"""Vectors that are worth a codebook."""

from __future__ import annotations

import pytest
from torch import Tensor

from lightning_compress.packing.bit_patterns import num_columns_of
from lightning_compress.packing.vector_widths import candidate_widths
from tests.packing.samples import FEW, Random


def vectors(width: int, num_vectors: int = 8) -> Tensor:
    """4096 elements."""
    random = Random()
    return random.normal(num_vectors, width)[random.index(num_vectors, 4096 // width)]


@pytest.mark.parametrize(
    ("tensor", "widths"),
    [
        (vectors(4).reshape(64, 64), [4]),
        (vectors(4).reshape(64, 16, 2, 2), [4]),
        (vectors(2, num_vectors=64).reshape(64, 64), [2]),
        (vectors(4).double().reshape(64, 64), [2]),  # four of them are longer than a pattern
        (vectors(4).reshape(-1), []),
        (vectors(4).reshape(4096, 1), []),
        (vectors(4)[:-1].reshape(12, 341), []),  # rows are not whole vectors
        (FEW[Random().index(4, 64, 64)], []),  # pairs take as many bits as two elements
        (Random().normal(64, 64), []),
        (vectors(4, num_vectors=1024).reshape(64, 64), []),
    ],
)
def test_widths(tensor: Tensor, widths: list[int]) -> None:
    assert candidate_widths(tensor, num_columns_of(tuple(tensor.shape))) == widths
