"""Reading one packed tensor, in memory and time that its declared size bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.packing.bit_patterns import DTYPES, Words, tensor_of, zero_of
from lightning_compress.packing.encoding import columns_of
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.positions import KINDS, read_positions
from lightning_compress.packing.quantized_tensors import IntegerTensor, from_integers
from lightning_compress.packing.streams import Stream
from lightning_compress.packing.values import read_values, read_with_zeros


def decode(entry: Entry, streams: Sequence[Stream], scale: Callable[[str], Tensor]) -> Tensor:
    """The tensor that an entry of a file and its streams describe.

    Args:
        entry: What the file's header says.
        streams: What the tensor is made of.
        scale: Returns another tensor of the file.

    Raises:
        ValueError: If streams are damaged, or do not fit the entry.
    """
    dtype = DTYPES[entry.dtype]
    if entry.scale is not None:
        numbers = _read(streams, np.zeros(1, "<i2"), entry.shape)
        integers = IntegerTensor(numbers, entry.axis, entry.minus)
        return from_integers(integers, scale(entry.scale), dtype, torch.Size(entry.shape))
    stored = torch.float16 if entry.half else dtype
    words = _read(streams, zero_of(stored.itemsize * entry.width), entry.shape, entry.width)
    return tensor_of(words, stored, entry.shape).to(dtype)


def _read(streams: Sequence[Stream], like: Words, shape: tuple[int, ...], width: int = 1) -> Words:
    count, columns = math.prod(shape), columns_of(shape)
    if not count:
        return np.zeros(0, like.dtype)
    if columns % width:
        raise ValueError(f"rows of {columns} elements are no vectors of {width}")
    rest = iter(streams)
    words = _elements(streams, rest, like, count // width, columns // width)
    if next(rest, None) is not None:
        raise ValueError("there is more of it than is needed")
    return words if words.flags.writeable else words.copy()


def _elements(streams: Sequence[Stream], rest: Iterator[Stream], like: Words, count: int, columns: int) -> Words:
    if streams and streams[0].kind in KINDS:
        stream = next(rest)
        nonzero = read_positions(stream.kind, stream.data, stream.parameters, size=count, num_columns=columns)
        return _scattered(nonzero, read_values(rest, like, int(nonzero.sum()), nonzero))
    if len(streams) == 2 and streams[1].kind == "symbols":
        return read_with_zeros(rest, like, count)
    return read_values(rest, like, count, None)


def _scattered(nonzero: NDArray[np.bool_], values: Words) -> Words:
    words: NDArray[Any] = np.zeros((len(nonzero), *values.shape[1:]), values.dtype)
    words[nonzero] = values
    return words
