"""Entries of codebooks in the order of their values."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.ordered_entries import OrderedEntries

VALUES = [2.5, -0.25, -3.0, 0.125, 1024.0, -1.5, 1.5]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i2"])
@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("has_zero", [False, True])
def test_order(dtype: str, with_zero: bool, has_zero: bool) -> None:
    values = np.array([*VALUES, *([0.0] if has_zero else [])])
    values = (8 * values if dtype == "<i2" else values).astype(dtype)
    entries = values if dtype == "<i2" else values.view(f"<u{values.itemsize}")
    found = OrderedEntries.of(entries, with_zero=with_zero)
    added = [0.0] if with_zero and not has_zero else []
    expected = np.sort(np.append(values, added)).astype(dtype)
    assert np.array_equal(found.table.view(dtype), expected)
    assert np.array_equal(found.table[found.symbols], entries)
    assert found.zero == 3
    assert found.zero_added == bool(added)
    ranks = [-3, -2, -1, *([0] if with_zero or has_zero else []), 1, 2, 3, 4]
    assert found.meaning.ranks().tolist() == ranks


def test_a_negative_zero_is_the_largest_negative_number() -> None:
    entries = np.array([0.0, 1.0, -0.0, -1.0], "<f4")
    found = OrderedEntries.of(entries.view("<u4"), with_zero=True)
    assert found.table.view("<f4").tobytes() == np.array([-1.0, -0.0, 0.0, 1.0], "<f4").tobytes()
    assert (found.zero, found.zero_added, found.meaning.ranks().tolist()) == (2, False, [-2, -1, 0, 1])
