"""Registry of the encodings of packed tensors.

The streams of a tensor are, in this order: at most one of positions, if zeros are left out; then the values, either by
a :class:`ValueEncoding`, or as a codebook and indices into it. Encoder, decoder and report use the objects listed
here. To add an encoding, write it in a file of its own, add its object to one tuple below, and add a sample that it
packs to ``tests/packing/samples.py``. Symbol coders and kinds of indices are listed beside the function that chooses
among them, and included in :data:`ENCODINGS`.

The order within a tuple decides between plans of the same size.
"""

from __future__ import annotations

from collections.abc import Collection

from lightning_compress.packing.base_differences import DIFFERENCE, UNCHANGED
from lightning_compress.packing.bit_masks import BIT_MASK
from lightning_compress.packing.codebooks import CODEBOOK
from lightning_compress.packing.column_masks import COLUMN_MASK
from lightning_compress.packing.encoding_types import PositionEncoding, SymbolCoder, ValueEncoding
from lightning_compress.packing.exponents import EXPONENTS
from lightning_compress.packing.gaps import GAPS
from lightning_compress.packing.group_codebooks import GROUP_CODEBOOKS
from lightning_compress.packing.index_streams import INDEX_ENCODINGS, REBASED, ContextEncoding, IndexEncoding
from lightning_compress.packing.indexed_values import CodebookEncoding
from lightning_compress.packing.integer_ranges import INTEGER_RANGE
from lightning_compress.packing.neighbor_masks import NEIGHBOR_MASK
from lightning_compress.packing.raw_values import RAW
from lightning_compress.packing.sorted_codebooks import SORTED_CODEBOOK
from lightning_compress.packing.split_values import SPLIT
from lightning_compress.packing.symbol_coders import SYMBOL_CODERS
from lightning_compress.packing.uniform_codebooks import UNIFORM_CODEBOOK

Encoding = PositionEncoding | ValueEncoding | CodebookEncoding | IndexEncoding | ContextEncoding | SymbolCoder

POSITIONS = (GAPS, BIT_MASK, COLUMN_MASK, NEIGHBOR_MASK)
"""Encodings of the mask of nonzero elements."""

VALUES = (RAW, EXPONENTS)
"""Encodings without a codebook, of values or of all elements."""

CODEBOOKS = (CODEBOOK, SORTED_CODEBOOK, UNIFORM_CODEBOOK, GROUP_CODEBOOKS)
"""Encodings with a codebook, of values of any dtype."""

DELTAS = (UNCHANGED, DIFFERENCE, REBASED)
"""Encodings of all elements relative to the same tensor of a base."""

SUPERSEDED = (SPLIT,)
"""Encodings that are read from files of older versions and never written."""

INTEGER_CODEBOOKS = (INTEGER_RANGE, CODEBOOK)
"""Encodings with a codebook, of the integers of quantized tensors."""

# A kind can be in several families, for example codebooks of integers and of other values.
ENCODINGS: dict[str, Encoding] = {
    encoding.kind: encoding
    for family in (POSITIONS, VALUES, CODEBOOKS, INTEGER_CODEBOOKS, INDEX_ENCODINGS, SYMBOL_CODERS, DELTAS, SUPERSEDED)
    for encoding in family
}
"""All encodings by their names in files."""


def is_position(kind: str) -> bool:
    """Return True if streams of a kind hold the mask of nonzero elements."""
    return isinstance(ENCODINGS.get(kind), PositionEncoding)


def is_without_codebook(kind: str) -> bool:
    """Return True if streams of a kind hold values that are not indexed."""
    return isinstance(ENCODINGS.get(kind), ValueEncoding)


def is_codebook(kind: str, kinds: Collection[str]) -> bool:
    """Return True if a stream holds a codebook of the values of its tensor.

    Args:
        kind: Kind of the stream.
        kinds: Kinds of all streams of the tensor. The codebook within split values is not one of values.
    """
    return isinstance(ENCODINGS.get(kind), CodebookEncoding) and not any(map(is_without_codebook, kinds))
