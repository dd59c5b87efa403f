"""Symbols by each coder, and back."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.encoding_types import SymbolCoder
from lightning_compress.packing.symbol_coders import SYMBOL_CODERS

CODERS = pytest.mark.parametrize("coder", SYMBOL_CODERS, ids=lambda coder: coder.kind)


@CODERS
@pytest.mark.parametrize("num_values", [1, 2, 3, 255, 256, 257, 2**16])
def test_symbols_come_back_in_the_narrowest_type(coder: SymbolCoder, num_values: int) -> None:
    symbols = np.random.default_rng(0).integers(num_values, size=500)
    symbols[:2] = 0, num_values - 1
    counts = np.bincount(symbols)
    data = coder.encode(symbols, counts)
    found = coder.decode(data, len(symbols), num_values)
    assert np.array_equal(found, symbols)
    assert found.dtype == coder.decode(b"", 0, num_values).dtype == np.min_scalar_type(num_values - 1)
    assert abs(len(data) - coder.num_bytes(counts)) <= 4
