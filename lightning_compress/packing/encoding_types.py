"""Descriptions of encodings, one frozen object for each kind of stream.

The objects are created beside the functions that they name and are listed in
:mod:`lightning_compress.packing.encodings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns, Mask
from lightning_compress.packing.streams import EncodingPlan, Stream


@dataclass(frozen=True)
class SymbolCoder:
    """Code for a sequence of symbols from 0 to ``num_values - 1``.

    Attributes:
        kind: Name in files, as the last parameter of a stream; must never change.
        label: Name in the report.
        num_bytes: Takes the number of occurrences of each symbol and returns the size in bytes, infinite if the
            coder does not support that many symbols.
        encode: Takes symbols and the number of occurrences of each, and returns bytes.
        decode: Takes bytes, the number of symbols and ``num_values``, and returns the symbols in the narrowest
            unsigned type. Raises ``ValueError`` if the bytes are damaged.
    """

    kind: str
    label: str
    num_bytes: Callable[[NDArray[Any]], float]
    encode: Callable[[NDArray[Any], NDArray[Any]], bytes]
    decode: Callable[[bytes, int, int], NDArray[Any]]


@dataclass(frozen=True)
class PositionEncoding:
    """Encoding of the mask of nonzero elements.

    Attributes:
        kind: Name in files; must never change.
        label: Name in the report.
        plan: Takes a flat mask and the shape of its tensor; returns ``None`` if the encoding does not apply.
        read: Takes a stream and the shape of the tensor, and returns the flat mask. Raises ``ValueError`` if the
            stream is damaged.
    """

    kind: str
    label: str
    plan: Callable[[Mask, tuple[int, ...]], EncodingPlan | None]
    read: Callable[[Stream, tuple[int, ...]], Mask]


@dataclass(frozen=True)
class ReadContext:
    """Values that are about to be read.

    Attributes:
        like: One zero of the dtype and width of the values.
        count: Number of values.
        nonzero: Flat mask of the tensor, with ``count`` true elements; ``None`` if it has no stream of positions.
        shape: Shape of the tensor, with vectors of several elements as one.
        base: All elements of the tensor in the base, if there is one with this dtype and shape.
    """

    like: BitPatterns
    count: int
    nonzero: Mask | None
    shape: tuple[int, ...]
    base: BitPatterns | None = None


@dataclass(frozen=True)
class ValueEncoding:
    """Encoding of values without a codebook.

    Attributes:
        kind: Name in files; must never change.
        label: Name in the report.
        plan: Takes values; returns ``None`` if the encoding does not apply.
        read: Takes the stream of this kind, an iterator over the streams after it, and a context, and returns the
            values. Raises ``ValueError`` if a stream is damaged.
    """

    kind: str
    label: str
    plan: Callable[[BitPatterns], EncodingPlan | None]
    read: Callable[[Stream, Iterator[Stream], ReadContext], BitPatterns]
