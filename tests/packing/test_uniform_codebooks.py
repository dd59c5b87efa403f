"""Codebooks of the multiples of a step."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.uniform_codebooks import uniform_codebook


def multiples(*factors: float) -> np.ndarray:
    return (np.array(factors, np.float32) * np.float32(0.037)).view("<u4")


@pytest.mark.parametrize(
    ("factors", "table"),
    [
        ([-2, -1, 1, 2, 3], [-2, -1, 1, 2, 3]),
        ([3, -3, 1, 5, 4], [-3, -2, -1, 1, 2, 3, 4, 5]),
        ([2, 3, 5, 7, 8], [2, 3, 4, 5, 6, 7, 8]),
        ([-7, -5, -4, -3, 3], [-7, -6, -5, -4, -3, -2, -1, 1, 2, 3]),
        ([1, 2, 3, 4, 1024], [*range(1, 1025)]),
    ],
)
def test_the_step_is_the_largest(factors: list[int], table: list[int]) -> None:
    entries = multiples(*factors)
    found = uniform_codebook(entries)
    assert found is not None
    assert np.array_equal(found[1], multiples(*table))
    assert np.array_equal(found[1][found[2]], entries)


@pytest.mark.parametrize(
    "factors",
    [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 1025],
        [1, 2, 3, 4.3, 5],
        [-1, 1, 2, 3, -0.0],
        [4, 5, 6, 7, 9],
        [1, 2, 3, 4, np.inf],
        [1, 2, 3, 4, np.nan],
    ],
)
def test_other_codebooks(factors: list[float]) -> None:
    assert uniform_codebook(multiples(*factors)) is None
    assert uniform_codebook(multiples(1, 2, 3, 4, 5).astype("<u8")) is None
