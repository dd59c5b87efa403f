"""One codebook for all values of a tensor, the multiples of a step, as uniform quantization leaves them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.index_streams import SharedEntries
from lightning_compress.packing.indexed_values import CodebookEncoding, IndexedValues, NonzeroValues
from lightning_compress.packing.streams import Stream, checked_parameters

_MIN_ENTRIES = 5  # with fewer, there is next to nothing to save
_MAX_MULTIPLE = 2**10


def uniform_codebook(entries: BitPatterns) -> tuple[Stream, BitPatterns, NDArray[np.intp]] | None:
    """Return a codebook of all multiples of a step, or ``None`` if the entries are no multiples of any.

    Args:
        entries: Distinct bit patterns.

    Returns:
        Stream, entries of the new codebook, and the new index of each entry.
    """
    if entries.ndim > 1 or entries.dtype != np.dtype("<u4") or len(entries) < _MIN_ENTRIES:
        return None
    values = entries.view("<f4")
    if not np.isfinite(values).all():
        return None
    smallest = np.abs(values).min()
    # The smallest magnitude is the step, unless the weights leave out its first multiples.
    for divisor in (1, 2, 3):
        step = np.float32(smallest / np.float32(divisor))
        found = _multiples(values, step) if step else None
        if found is not None:
            table = _table(step, int(found.min()), int(found.max()))
            # Zero is left out, as in any codebook.
            indices = found - found.min() - ((found > 0) & (found.min() < 0))
            if np.array_equal(table[indices], entries):
                head = np.array([found.min(), found.max()], "<i2").tobytes()
                return Stream(UNIFORM_CODEBOOK.kind, step.astype("<f4").tobytes() + head), table, indices
    return None


def _multiples(values: NDArray[np.float32], step: np.float32) -> NDArray[np.intp] | None:
    with np.errstate(over="ignore"):
        ratios = np.rint(values / step)
    return ratios.astype(np.intp) if (np.abs(ratios) <= _MAX_MULTIPLE).all() else None


def _table(step: np.float32, first: int, last: int) -> BitPatterns:
    # A product of two numbers in single precision is the same on every machine.
    multiples = np.array([k for k in range(first, last + 1) if k], np.float32)
    return (multiples * step).view("<u4")


def _read_entries(stream: Stream, context: ReadContext) -> SharedEntries:
    checked_parameters(0, stream.parameters)
    if len(stream.data) != 8 or context.like.itemsize != 4:
        raise ValueError("a uniform codebook is damaged")
    first, last = np.frombuffer(stream.data, "<i2", 2, 4).tolist()
    if not -_MAX_MULTIPLE <= first <= last <= _MAX_MULTIPLE:
        raise ValueError("a uniform codebook is damaged")
    with np.errstate(over="ignore", invalid="ignore"):
        return SharedEntries(_table(np.frombuffer(stream.data, "<f4", 1)[0], first, last))


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues | None:
    return None  # found from the entries of a plain codebook, which takes this form where there is a step


UNIFORM_CODEBOOK = CodebookEncoding(kind="uniform", label="uniform codebook", index=_index, read_entries=_read_entries)
