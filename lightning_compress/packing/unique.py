"""Distinct values of large arrays that have few of them, in linear time instead of by sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns, hash_keys

_SAMPLE = 2**13
_MAX_DISTINCT_SHARE = 0.75  # of a sample; with more distinct values a codebook does not pay off
_ROUNDS = 6
_MAX_ADDED = 2**15  # sampled elements without a table entry that are added per round
# Odd multipliers of the hash functions. Which ones work changes only the speed, never the result.
_MULTIPLIERS = np.random.default_rng(0).integers(2**63, size=32, dtype=np.uint64) | np.uint64(1)


def sorted_unique(keys: BitPatterns) -> NDArray[Any]:
    """Return the distinct values of an array in ascending order."""
    # For samples of this size faster than `np.unique`, which in some versions of NumPy hashes.
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def strided_sample(keys: BitPatterns, size: int = _SAMPLE) -> BitPatterns:
    """Return about ``size`` elements at equal distances."""
    return keys[:: max(len(keys) // size, 1)]


def unique_patterns(patterns: BitPatterns) -> tuple[BitPatterns, NDArray[Any]] | None:
    """Return the distinct bit patterns and the index of each element among them.

    Returns:
        Distinct patterns, little-endian, and indices; ``None`` if more than half of the elements are distinct.
    """
    found = unique_values(hash_keys(patterns), max_values=max(len(patterns) // 2, 1))
    if found is None:
        return None
    keys, indices = found
    if patterns.ndim == 1:
        return keys.astype(keys.dtype.newbyteorder("<")), indices
    # Any element with a hash gives its pattern; assignment keeps the last one.
    last = np.empty(len(keys), np.int64)
    last[indices] = np.arange(len(indices))
    distinct_patterns = patterns[last]
    # A collision would replace one pattern by another, so hashes are accepted only if all patterns come back.
    return (distinct_patterns, indices) if np.array_equal(distinct_patterns[indices], patterns) else None


def zero_order_entropy(patterns: BitPatterns) -> float | None:
    """Return the entropy of the frequencies of values, in bits per element, or ``None`` if most values are distinct.

    Args:
        patterns: Bit patterns.

    >>> zero_order_entropy(np.array([0, 0, 0, 0, 1, 1, 2, 2], np.uint8))
    1.5
    """
    if not len(patterns):
        return None
    found = unique_patterns(patterns)
    if found is None:
        return None
    shares = np.bincount(found[1]) / len(patterns)
    return float((shares * np.log2(1 / shares)).sum())


def unique_values(keys: BitPatterns, *, max_values: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return the distinct values in ascending order and each element's index, or ``None`` if there are too many.

    Args:
        keys: One-dimensional, unsigned integers.
        max_values: Largest number of distinct values.
    """
    if keys.itemsize <= 2:
        return _unique_short(keys, max_values)
    sample = strided_sample(keys)
    values = sorted_unique(sample)
    if len(values) > _MAX_DISTINCT_SHARE * len(sample) and len(sample) > 1:
        return None
    # A sample of weights with a codebook nearly always contains all of its entries. Elements that the table does not
    # have are found by the comparison and added, so that the result is exact whatever the sample contained.
    for _ in range(_ROUNDS):
        if len(values) > max_values:
            return None
        indices = _look_up(keys, values)
        missing = values[indices] != keys
        if not missing.any():
            return values, indices
        added = sorted_unique(strided_sample(keys[missing], _MAX_ADDED))
        values = sorted_unique(np.concatenate([values, added]))
    return None


def _unique_short(keys: BitPatterns, max_values: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    # Up to 16 bits a table of all possible keys is small enough to be indexed directly.
    present = np.zeros(2 ** (8 * keys.itemsize), np.bool_)
    present[keys] = True
    values = np.flatnonzero(present).astype(keys.dtype)
    if len(values) > max_values:
        return None
    ranks = np.zeros(len(present), np.min_scalar_type(len(values)))
    ranks[values] = np.arange(len(values))
    return values, ranks[keys]


def _look_up(keys: BitPatterns, values: NDArray[Any]) -> NDArray[Any]:
    """Return the index in ``values`` of each key that is among them, and an arbitrary index for other keys."""
    dtype = np.min_scalar_type(max(len(values) - 1, 0))
    hashed = _perfect_hash(values)
    if hashed is None:
        return np.minimum(np.searchsorted(values, keys), len(values) - 1).astype(dtype)
    multiplier, shift, num_slots = hashed
    # Two passes over the keys, against log2(len(values)) cache misses per key in a binary search.
    slots = np.zeros(num_slots, dtype)
    slots[(values * multiplier) >> shift] = np.arange(len(values))
    return slots[(keys * multiplier) >> shift]


def _perfect_hash(values: NDArray[Any]) -> tuple[Any, Any, int] | None:
    """Return multiplier, shift and table size of a hash function without collisions among the values.

    Multiplicative hashing (Dietzfelbinger et al. 1997): the upper bits of the product with an odd number. Returns
    ``None`` if none of the functions tried is free of collisions.
    """
    uint, size = values.dtype.type, 8 * values.itemsize
    # By the birthday bound, n values need about n**2 slots. Small tables stay in the cache, so they are tried first.
    for spare_bits in (4, 6, 8):
        bits = min(max(len(values), 2).bit_length() + spare_bits, 20)
        for odd in _MULTIPLIERS:
            multiplier, shift = uint(int(odd) % 2**size), uint(size - bits)
            if len(sorted_unique((values * multiplier) >> shift)) == len(values):
                return multiplier, shift, 2**bits
    return None
