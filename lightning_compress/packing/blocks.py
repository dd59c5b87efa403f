"""Codebooks of blocks: of each channel, of a few channels together, or of groups of weights in a row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bits import read_symbols
from lightning_compress.packing.codebooks import Indexed
from lightning_compress.packing.streams import Stream, exactly, whole
from lightning_compress.packing.words import Words

_SAMPLE = 2**14
_WORTH_IT = 0.9  # of the bits that would be needed otherwise


def index_blocks(words: Words, nonzero: NDArray[np.bool_], values: Words, num_columns: int) -> Indexed | None:
    """Values and a codebook for each block of a tensor, if they are few in every block.

    Args:
        words: All elements, zeros too; patterns of at most 4 bytes.
        nonzero: Where they are not zero.
        values: Those that are not.
        num_columns: Elements in a row of the first dimension.
    """
    if words.ndim > 1 or not 2 <= words.itemsize <= 4 or len(words) < 64:
        return None
    costs = {length: _bits(words, length) for length in _lengths(len(words), num_columns)}
    length = min(costs, key=lambda n: costs[n], default=0)
    if not length or costs[length] > _WORTH_IT * 8 * words.itemsize:
        return None
    return _index(values, nonzero.reshape(-1, length).sum(axis=1), length)


def read_blocks(data: bytes, parameters: tuple[object, ...], like: Words, nonzero: NDArray[np.bool_]) -> list[Words]:
    """Codebooks one after another, and where each value's begins and how many entries it has.

    Raises:
        ValueError: If the stream is damaged.
    """
    (claimed,) = exactly(1, parameters)
    length = whole(claimed, at_least=1, at_most=len(nonzero))
    if len(nonzero) % length:
        raise ValueError(f"{len(nonzero)} elements are not blocks of {length}")
    in_block = nonzero.reshape(-1, length).sum(axis=1)
    if len(data) < 2 * len(in_block) or (len(data) - 2 * len(in_block)) % like.itemsize:
        raise ValueError(f"{len(data)} bytes are no codebooks of {len(in_block)} blocks")
    sizes = np.frombuffer(data, "<u2", len(in_block)).astype(np.int64)
    table = np.frombuffer(data, like.dtype, offset=2 * len(in_block))
    if sizes.sum() != len(table):
        raise ValueError(f"{len(table)} entries are not those of {len(in_block)} codebooks")
    return [table, np.repeat(np.cumsum(sizes) - sizes, in_block), np.repeat(sizes, in_block)]


def read_in_blocks(data: bytes, coding: object, blocks: list[Words]) -> Words:
    """Values by their indices into the codebooks of their blocks.

    Raises:
        ValueError: If an index is beyond its codebook.
    """
    table, starts, sizes = blocks
    indices = read_symbols(data, coding, num_symbols=len(starts), num_values=int(sizes.max(initial=0)))
    if (indices >= sizes).any():
        raise ValueError("an index is beyond the codebook of its block")
    return table[starts + indices]


def _lengths(size: int, num_columns: int) -> Iterator[int]:
    """Blocks within a row and of whole rows."""
    for power in range(4, 31):
        if 2**power < num_columns and num_columns % 2**power == 0:
            yield 2**power
    for power in range(31):
        length = num_columns * 2**power
        if 16 <= length <= size // 2 and size % length == 0:
            yield length


def _bits(words: Words, length: int) -> float:
    """About how many bits a nonzero element takes with a codebook for each block, by a few of the blocks."""
    num_blocks = len(words) // length
    chosen = words.reshape(-1, length)[:: max(1, num_blocks * length // _SAMPLE), :_SAMPLE]
    ordered = np.sort(chosen, axis=1)
    num_values = int((np.diff(ordered, axis=1) != 0).sum()) + int((ordered[:, 0] != 0).sum())
    num_nonzero = int(np.count_nonzero(chosen))
    if not num_nonzero:
        return math.inf
    return math.log2(1 + num_values / len(chosen)) + 8 * words.itemsize * num_values / num_nonzero


def _index(values: Words, in_block: NDArray[Any], length: int) -> Indexed | None:
    block = np.repeat(np.arange(len(in_block), dtype=np.uint64), in_block)
    keys = block << np.uint64(32) | values
    order = np.argsort(keys)
    is_new = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
    entry = np.cumsum(is_new) - 1
    table = keys[order][is_new]
    sizes = np.bincount((table >> np.uint64(32)).astype(np.int64), minlength=len(in_block))
    if sizes.max() > 2**12:
        return None
    # Most frequent first: the indices of all blocks share one model.
    counts = np.bincount(entry, minlength=len(table))
    by_count = np.lexsort((-counts, table >> np.uint64(32)))
    rank = np.empty(len(table), np.int64)
    rank[by_count] = np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    indices = np.empty(len(values), np.min_scalar_type(int(sizes.max())))
    indices[order] = rank[entry]
    codebooks = (table[by_count] & np.uint64(0xFFFFFFFF)).astype(values.dtype)
    data = sizes.astype("<u2").tobytes() + codebooks.tobytes()
    return Indexed(Stream("blocks", data, (length,)), indices, np.bincount(indices), is_shared=False)
