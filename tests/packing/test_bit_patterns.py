"""Bit patterns as keys."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.bit_patterns import hash_keys


@pytest.mark.parametrize("half", [0, 1])
def test_hashes_of_patterns_that_differ_in_one_half_differ(half: int) -> None:
    patterns = np.full((2**20, 2), 0x3FF0000000000000, np.uint64)
    patterns[:, half] = np.random.default_rng(0).integers(2**64, size=2**20, dtype=np.uint64)
    patterns[:65, half] = [0, *(2**k for k in range(64))]
    keys = np.sort(hash_keys(patterns))
    assert (keys[1:] != keys[:-1]).all()


def test_halves_of_a_pattern_have_a_meaning_of_their_own() -> None:
    patterns = np.array([[1, 2], [2, 1], [1, 1], [2, 2], [0, 0]], np.uint64)
    assert len(set(hash_keys(patterns).tolist())) == 5
