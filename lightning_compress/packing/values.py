"""Reading and planning the values of a tensor, one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import Words
from lightning_compress.packing.codebooks import Indexed, index_values, plan_raw, read_indexed, read_table
from lightning_compress.packing.group_codebooks import index_group_codebooks, read_by_group, read_group_codebooks
from lightning_compress.packing.streams import EncodingPlan, Stream, cheapest

_FEW = 64  # values in a codebook of all, below which those of blocks are not looked for
_HEADER = 24  # bytes that three more streams take in a file's header


def index_all(words: Words, nonzero: NDArray[np.bool_], values: Words, num_columns: int) -> list[Indexed]:
    """The codebooks that there are for the values of a tensor that are not zero.

    Args:
        words: All elements.
        nonzero: Where they are not zero.
        values: Those that are not.
        num_columns: Elements in a row of the first dimension.
    """
    whole = index_values(values)
    in_blocks = None
    if whole is None or len(whole.counts) > _FEW:
        bits = 8.0 * min(values.nbytes, math.inf if whole is None else whole.plan().num_bytes) / len(values)
        in_blocks = index_group_codebooks(words, nonzero, num_columns, most_bits=bits)
    return [indexed for indexed in (whole, in_blocks) if indexed is not None]


def plan_plain(values: Words) -> EncodingPlan:
    """Values without a codebook: as they are, or their sign and exponent bits coded and the other bytes as they are."""
    if values.ndim > 1 or values.itemsize < 2:
        return plan_raw(values)
    parts = values.view(np.uint8).reshape(-1, values.itemsize)
    upper = index_values(np.ascontiguousarray(parts[:, -1]))
    if upper is None:
        return plan_raw(values)
    lower = EncodingPlan(parts[:, :-1].size, lambda: [Stream("raw", parts[:, :-1].tobytes())])
    return cheapest(plan_raw(values), EncodingPlan(_HEADER, lambda: [Stream("split", b"")]) + upper.plan() + lower)


def read_values(streams: Iterator[Stream], like: Words, count: int, nonzero: NDArray[np.bool_] | None) -> Words:
    """So many values.

    Args:
        streams: What they are made of.
        like: An element of their type and width.
        count: How many.
        nonzero: The mask of the tensor, for codebooks of blocks; ``None`` if all elements are values.

    Raises:
        ValueError: If the streams are damaged.
    """
    stream = _next(streams)
    if stream.kind == "raw":
        return _read_raw(stream.data, like, count)
    if stream.kind == "split":
        return _read_split(streams, like, count)
    if stream.kind == "blocks":
        mask = np.ones(count, np.bool_) if nonzero is None else nonzero
        blocks = read_group_codebooks(stream.data, stream.parameters, like, mask)
        return read_by_group(*_coded(streams, "indices"), blocks)
    return read_indexed(*_coded(streams, "indices"), _read_table(stream, like), count)


def read_with_zeros(streams: Iterator[Stream], like: Words, count: int) -> Words:
    """So many elements of which zero is one more in their codebook.

    Raises:
        ValueError: If the streams are damaged.
    """
    table = _read_table(_next(streams), like)
    with_zero = np.concatenate([np.zeros_like(like), table])
    return read_indexed(*_coded(streams, "symbols"), with_zero, count)


def _read_raw(data: bytes, like: Words, count: int) -> Words:
    if len(data) != count * like.nbytes:
        raise ValueError(f"{len(data)} bytes are not {count} values of {like.nbytes}")
    return np.frombuffer(data, like.dtype).reshape(-1, *like.shape[1:])


def _read_split(streams: Iterator[Stream], like: Words, count: int) -> Words:
    if like.ndim > 1 or like.itemsize < 2:
        raise ValueError("values of these bytes are not split")
    upper = read_indexed(*_split_indices(streams), count)
    lower = _next(streams).data
    if len(lower) != count * (like.itemsize - 1):
        raise ValueError(f"{len(lower)} bytes are not the lower ones of {count} values")
    parts = np.empty((count, like.itemsize), np.uint8)
    parts[:, :-1] = np.frombuffer(lower, np.uint8).reshape(count, -1)
    parts[:, -1] = upper
    return parts.reshape(-1).view(like.dtype)


def _split_indices(streams: Iterator[Stream]) -> tuple[bytes, object, Words]:
    table = _read_table(_next(streams), np.zeros(1, np.uint8))
    return *_coded(streams, "indices"), table


def _read_table(stream: Stream, like: Words) -> Words:
    if stream.kind not in ("codebook", "range"):
        raise ValueError(f"{stream.kind[:40]!r} is no codebook")
    return read_table(stream.kind, stream.data, stream.parameters, like)


def _coded(streams: Iterator[Stream], kind: str) -> tuple[bytes, object]:
    stream = _next(streams)
    if stream.kind != kind or len(stream.parameters) != 1:
        raise ValueError(f"there are no {kind} after a codebook")
    return stream.data, stream.parameters[0]


def _next(streams: Iterator[Stream]) -> Stream:
    stream = next(streams, None)
    if stream is None:
        raise ValueError("a part of it is missing")
    return stream
