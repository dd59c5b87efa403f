from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.ans_stack import stack_of
from lightning_compress.packing.entropy import pop_symbols, push_symbols


@pytest.mark.parametrize("num_values", [1, 2, 3, 256, 257])
@pytest.mark.parametrize("num_symbols", [0, 1, 500])
def test_symbols_of_two_streams_come_back_in_the_narrowest_type(num_values: int, num_symbols: int) -> None:
    symbols = np.arange(num_symbols)[::-1] % num_values
    stack = stack_of(b"")
    for _ in range(2):
        push_symbols(stack, symbols, np.bincount(symbols, minlength=num_values))
    for _ in range(2):
        found = pop_symbols(stack, num_symbols, num_values)
        assert found.dtype == (np.uint16 if num_values > 256 else np.uint8)
        assert found.tolist() == symbols.tolist()
    assert stack.is_empty()
