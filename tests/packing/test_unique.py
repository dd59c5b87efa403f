"""Distinct values, and when there are too many."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.unique import unique_patterns


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", "<u8", "vectors"])
def test_up_to_half_of_the_elements_may_be_distinct(dtype: str) -> None:
    values = np.arange(100)[::-1] % 50
    patterns = np.stack([values, 7 * values], axis=1).astype("<u8") if dtype == "vectors" else values.astype(dtype)
    found = unique_patterns(patterns)
    assert found is not None
    assert len(found[0]) == 50
    assert np.array_equal(found[0][found[1]], patterns)
    assert patterns.ndim > 1 or np.array_equal(found[0], np.arange(50))
    patterns[0] = 99
    assert unique_patterns(patterns) is None


def test_one_element_is_distinct() -> None:
    for dtype in ("<u2", "<u4"):
        values, indices = unique_patterns(np.array([7], dtype)) or ([], [])
        assert [*values, *indices] == [7, 0]
