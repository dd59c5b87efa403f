"""Codebooks of blocks: of each channel, of a few channels together, or of groups of weights in a row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import Words
from lightning_compress.packing.bits import read_symbols
from lightning_compress.packing.codebooks import Indexed
from lightning_compress.packing.streams import Stream, exactly, whole

_SAMPLE = 2**14
_WORTH_IT = 0.95
_MOST = 2**12  # entries in a codebook of a block
_COMPARED = 32  # entries up to which comparing with each is faster than searching


def index_group_codebooks(
    words: Words, nonzero: NDArray[np.bool_], num_columns: int, *, most_bits: float
) -> Indexed | None:
    """Values and a codebook for each block of a tensor, if they are few in every block.

    Args:
        words: All elements, zeros too; patterns of at most 4 bytes.
        nonzero: Where they are not zero.
        num_columns: Elements in a row of the first dimension.
        most_bits: What a value takes otherwise.
    """
    if words.ndim > 1 or not 2 <= words.itemsize <= 4 or len(words) < 64:
        return None
    costs = {length: _bits(words, length) for length in _lengths(len(words), num_columns)}
    length = min(costs, key=lambda n: costs[n], default=0)
    if not length or costs[length] > _WORTH_IT * most_bits:
        return None
    return _index(words.reshape(-1, length), nonzero.reshape(-1, length))


def read_group_codebooks(
    data: bytes, parameters: tuple[object, ...], like: Words, nonzero: NDArray[np.bool_]
) -> list[Words]:
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


def read_by_group(data: bytes, coding: object, blocks: list[Words]) -> Words:
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


def _index(words: Words, nonzero: NDArray[np.bool_]) -> Indexed | None:
    ordered = np.sort(words, axis=1)
    is_first = np.empty(ordered.shape, np.bool_)
    is_first[:, 0] = True
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=is_first[:, 1:])
    firsts = np.flatnonzero(is_first)
    counts, table = np.diff(firsts, append=ordered.size), ordered.reshape(-1)[firsts]
    kept = table != 0
    block, counts, table = firsts[kept] // words.shape[1], counts[kept], table[kept]
    sizes = np.bincount(block, minlength=len(words))
    if sizes.max() > _MOST:
        return None
    # Most frequent first: the indices of all blocks share one model.
    codebooks = table[np.lexsort((-counts, block))]
    indices = _ranks(words, codebooks, sizes)[nonzero]
    data = sizes.astype("<u2").tobytes() + codebooks.tobytes()
    return Indexed(Stream("blocks", data, (words.shape[1],)), indices, np.bincount(indices), is_shared=False)


def _ranks(words: Words, codebooks: Words, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Each element's index in its block's codebook; of zeros, which are in none, anything."""
    most = int(sizes.max())
    ranks = np.zeros(words.shape, np.min_scalar_type(most))
    if most <= _COMPARED:
        places = np.arange(len(codebooks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        entries = np.zeros((len(words), most), words.dtype)
        entries[np.repeat(np.arange(len(words)), sizes), places] = codebooks
        for k in range(1, most):
            # In place and in bytes: several times as fast as assigning where a mask is true.
            found = (words == entries[:, k : k + 1]).view(np.uint8)
            found *= np.uint8(k)
            ranks += found
        return ranks
    for row, rank, codebook in zip(words, ranks, np.split(codebooks, np.cumsum(sizes)[:-1]), strict=True):
        order = np.argsort(codebook)
        rank[:] = order[np.minimum(np.searchsorted(codebook[order], row), len(order) - 1)] if len(order) else 0
    return ranks
