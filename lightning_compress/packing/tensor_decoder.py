"""Decoding of one packed tensor, in memory and time bounded by its declared size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.packing.bit_patterns import (
    DTYPES,
    BitPatterns,
    Mask,
    bit_patterns_of,
    num_columns_of,
    tensor_from_patterns,
    zero_pattern,
)
from lightning_compress.packing.encoding_types import PositionEncoding, ReadContext, ValueEncoding
from lightning_compress.packing.encodings import ENCODINGS
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.indexed_values import CodebookEncoding
from lightning_compress.packing.quantized_tensors import IntegerTensor, from_integers
from lightning_compress.packing.streams import Stream, next_stream


def decode_tensor(
    entry: Entry, streams: Sequence[Stream], get_scale: Callable[[str], Tensor], base: Tensor | None = None
) -> Tensor:
    """Return the tensor that an entry of a file and its streams describe.

    Args:
        entry: Description of the tensor in the header.
        streams: Streams of the tensor.
        get_scale: Takes the name of another tensor of the file and returns it.
        base: Tensor of that name in the base.

    Raises:
        ValueError: If streams are damaged or do not fit the entry.
    """
    dtype = DTYPES[entry.dtype]
    if entry.scale is not None:
        elements = _read_elements(streams, np.zeros(1, "<i2"), entry.shape)
        integers = IntegerTensor(elements, entry.axis, entry.negative_zero)
        return from_integers(integers, get_scale(entry.scale), dtype, torch.Size(entry.shape))
    stored = torch.float16 if entry.half else dtype
    same = base is not None and (base.dtype, tuple(base.shape), entry.width) == (stored, entry.shape, 1)
    of_base = bit_patterns_of(base) if base is not None and same else None
    elements = _read_elements(streams, zero_pattern(stored.itemsize * entry.width), entry.shape, entry.width, of_base)
    return tensor_from_patterns(elements, stored, entry.shape).to(dtype)


def _read_elements(
    streams: Sequence[Stream],
    like: BitPatterns,
    shape: tuple[int, ...],
    width: int = 1,
    base: BitPatterns | None = None,
) -> BitPatterns:
    count, num_columns = math.prod(shape), num_columns_of(shape)
    if not count:
        return np.zeros(0, like.dtype)
    if num_columns % width:
        raise ValueError(f"rows of {num_columns} elements cannot be divided into vectors of {width}")
    rest = iter(streams)
    elements = _read_streams(rest, like, shape if width == 1 else (count // num_columns, num_columns // width), base)
    if next(rest, None) is not None:
        raise ValueError("there are more streams than the tensor needs")
    # Arrays of raw values are views of immutable bytes, and those of the base of another tensor.
    return elements if elements.flags.writeable and elements is not base else elements.copy()


def _read_streams(
    streams: Iterator[Stream], like: BitPatterns, shape: tuple[int, ...], base: BitPatterns | None
) -> BitPatterns:
    # The kind of the first stream tells if zeros were left out.
    first = next_stream(streams)
    encoding = ENCODINGS.get(first.kind)
    if not isinstance(encoding, PositionEncoding):
        return _read_values(first, streams, ReadContext(like, math.prod(shape), None, shape, base))
    nonzero = encoding.read(first, shape)
    values = _read_values(next_stream(streams), streams, ReadContext(like, int(nonzero.sum()), nonzero, shape))
    return _scatter(nonzero, values)


def _read_values(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    encoding = ENCODINGS.get(stream.kind)
    if not isinstance(encoding, ValueEncoding | CodebookEncoding):
        raise ValueError(
            f"{stream.kind[:40]!r} is not a known encoding of values: the file is damaged, or from a newer version"
        )
    values = encoding.read(stream, streams, context)
    # Most encodings know nothing of patterns of 16 bytes, which are rows of two integers.
    if values.shape[1:] != context.like.shape[1:]:
        raise ValueError(f"{stream.kind!r} is not an encoding of values of {context.like.nbytes} bytes")
    return values


def _scatter(nonzero: Mask, values: BitPatterns) -> BitPatterns:
    elements: NDArray[Any] = np.zeros((len(nonzero), *values.shape[1:]), values.dtype)
    elements[nonzero] = values
    return elements
