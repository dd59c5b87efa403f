"""Entries of a codebook in ascending order of their values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.context_coding import SignedSymbols


@dataclass(frozen=True)
class OrderedEntries:
    """Entries in ascending order.

    Attributes:
        table: Entries.
        symbols: Place of each of the original entries in the table.
        zero: Place of zero in the table, or of the first positive entry if zero is not there.
        zero_added: True if zero is not among the original entries.
        meaning: Meaning of the places as symbols.
    """

    table: BitPatterns
    symbols: NDArray[np.intp]
    zero: int
    zero_added: bool
    meaning: SignedSymbols

    @staticmethod
    def of(entries: BitPatterns, *, with_zero: bool) -> OrderedEntries:
        """Return entries in ascending order, and zero if ``with_zero``.

        Args:
            entries: Signed integers, or bit patterns of floating-point numbers as unsigned integers.
            with_zero: If True, zero is added unless it is an entry already.
        """
        num_entries, zero_added = len(entries), with_zero and not (entries == 0).any()
        if zero_added:
            entries = np.append(entries, np.zeros(1, entries.dtype))
        order = np.argsort(_keys(entries), kind="stable")
        table, symbols = entries[order], np.empty(len(entries), np.intp)
        symbols[order] = np.arange(len(entries))
        num_negative = int((_keys(entries) < 0).sum())
        meaning = SignedSymbols(len(table), num_negative, bool((entries == 0).any()))
        return OrderedEntries(table, symbols[:num_entries], num_negative, bool(zero_added), meaning)


def _keys(entries: BitPatterns) -> NDArray[np.int64]:
    """Return integers in the order of the values."""
    if entries.dtype.kind == "i":
        return entries.astype(np.int64)
    # Floating-point numbers are sign and magnitude, and magnitudes are in the order of their bit patterns.
    sign = 1 << (8 * entries.itemsize - 1)
    negative = entries >= entries.dtype.type(sign)
    magnitudes = (entries & entries.dtype.type(sign - 1)).astype(np.int64)
    return np.where(negative, ~magnitudes, magnitudes)
