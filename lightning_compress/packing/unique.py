"""Finding the few values that a large array consists of, or that there are too many, without sorting it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import Words

_SAMPLE = 2**13
_MOST_DIFFERENT = 0.75  # of a sample: what is more is no codebook
_ROUNDS = 6
_EXTRA = 2**15  # values missing from the table that are looked at in one round
_ODD = np.random.default_rng(0).integers(2**63, size=32, dtype=np.uint64) | np.uint64(1)


def distinct(keys: Words) -> NDArray[Any]:
    """The values of an array, sorted; by sorting, which here is faster than ``np.unique``."""
    ordered = np.sort(keys)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def sample_of(keys: Words, size: int = _SAMPLE) -> Words:
    """Some elements from all over an array."""
    return keys[:: max(len(keys) // size, 1)]


def find_values(keys: Words, *, most: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The distinct values and each element's index among them, or ``None`` if they are too many to be worth it.

    Args:
        keys: One-dimensional, unsigned integers.
        most: How many there may be.
    """
    if keys.itemsize <= 2:
        return _find_short(keys, most)
    sample = sample_of(keys)
    values = distinct(sample)
    if len(values) > _MOST_DIFFERENT * len(sample) and len(sample) > 1:
        return None
    for _ in range(_ROUNDS):
        if len(values) > most:
            return None
        indices = _look_up(keys, values)
        wrong = values[indices] != keys
        if not wrong.any():
            return values, indices
        values = distinct(np.concatenate([values, distinct(sample_of(keys[wrong], _EXTRA))]))
    return None


def _find_short(keys: Words, most: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    present = np.zeros(2 ** (8 * keys.itemsize), np.bool_)
    present[keys] = True
    values = np.flatnonzero(present).astype(keys.dtype)
    if len(values) > most:
        return None
    places = np.zeros(len(present), np.min_scalar_type(len(values)))
    places[values] = np.arange(len(values))
    return values, places[keys]


def _look_up(keys: Words, values: NDArray[Any]) -> NDArray[Any]:
    """Of every key that is among the values its index, of others any index."""
    dtype = np.min_scalar_type(max(len(values) - 1, 0))
    hashed = _perfect_hash(values)
    if hashed is None:
        return np.minimum(np.searchsorted(values, keys), len(values) - 1).astype(dtype)
    multiplier, shift, num_slots = hashed
    slots = np.zeros(num_slots, dtype)
    slots[(values * multiplier) >> shift] = np.arange(len(values))
    return slots[(keys * multiplier) >> shift]


def _perfect_hash(values: NDArray[Any]) -> tuple[Any, Any, int] | None:
    """Multiplier and shift that send no two values to the same slot, if any of a few tried does."""
    kind, size = values.dtype.type, 8 * values.itemsize
    for spare in (4, 6, 8):
        bits = min(max(len(values), 2).bit_length() + spare, 20)
        for odd in _ODD:
            multiplier, shift = kind(int(odd) % 2**size), kind(size - bits)
            if len(distinct((values * multiplier) >> shift)) == len(values):
                return multiplier, shift, 2**bits
    return None
