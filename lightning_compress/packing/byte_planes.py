"""Integers by their bytes: those of each significance entropy-coded where that pays off.

Differences of similar tensors are small, so that their upper bytes are nearly always zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.ans_stack import AnsCoder, bytes_of, check_empty, stack_of
from lightning_compress.packing.entropy import num_bytes, pop_symbols, push_symbols

_WORTH_IT = 0.98  # of the bytes as they are


@dataclass(frozen=True)
class _Plane:
    symbols: NDArray[np.uint8]
    counts: NDArray[np.int64]  # up to the largest byte

    @property
    def is_coded(self) -> bool:
        return num_bytes(self.counts) < _WORTH_IT * len(self.symbols)


def plan_planes(values: NDArray[Any]) -> float:
    """Return the size of :func:`encode_planes` in bytes, exact to within a few bytes."""
    planes = _planes(values)
    sizes = [num_bytes(plane.counts) + 1 if plane.is_coded else len(plane.symbols) for plane in planes]
    return 1 + sum(sizes) + 4


def encode_planes(values: NDArray[Any]) -> bytes:
    """Return unsigned integers as bytes.

    One stack holds all planes that are coded, so that their lengths need not be stored.
    """
    planes = _planes(values)
    coded = [plane for plane in planes if plane.is_coded]
    stack = AnsCoder()
    for plane in reversed(coded):
        push_symbols(stack, plane.symbols, plane.counts)
    flags = sum(plane.is_coded << place for place, plane in enumerate(planes))
    head = bytes([flags, *(len(plane.counts) - 1 for plane in coded)])
    raw = [plane.symbols.tobytes() for plane in planes if not plane.is_coded]
    return head + bytes_of(stack) + b"".join(raw)


def decode_planes(data: bytes, count: int, dtype: Any) -> NDArray[Any]:
    """Return the integers that :func:`encode_planes` wrote.

    Raises:
        ValueError: If the bytes are damaged.
    """
    size = np.dtype(dtype).itemsize
    flags = data[0] if data else 256
    num_coded = flags.bit_count()
    stop = len(data) - count * (size - num_coded)
    if flags >> size or stop < 1 + num_coded:
        raise ValueError(f"{len(data)} bytes cannot hold {count} integers of {size} bytes")
    stack = stack_of(data[1 + num_coded : stop])
    values, largest = np.empty((count, size), np.uint8), iter(data[1 : 1 + num_coded])
    for place in range(size):
        if flags >> place & 1:
            values[:, place] = pop_symbols(stack, count, next(largest) + 1)
        else:
            values[:, place] = np.frombuffer(data, np.uint8, count, stop)
            stop += count
    check_empty(stack)
    return values.reshape(-1).view(dtype)


def _planes(values: NDArray[Any]) -> list[_Plane]:
    columns = np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)
    return [_Plane(column, np.bincount(column, minlength=1)) for column in columns]
