"""Number of elements per codebook entry, from a sample of a tensor."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_compress.packing.bit_patterns import bit_patterns_of, hash_keys
from lightning_compress.packing.unique import sorted_unique, strided_sample

_WIDTHS = (2, 4)
_MAX_PATTERN_BYTES = 16
_MIN_OCCURRENCES = 4  # mean number of times that a nonzero vector must occur in a sample
_WORTH_IT = 0.93  # of the bits per element of single elements, because a codebook of vectors is longer


def candidate_widths(tensor: Tensor, num_columns: int) -> list[int]:
    """Return the width of vectors with the smallest entropy in a sample, if it is well below that of elements.

    Full plans for every width would make packing of tensors without vectors several times slower.
    """
    if tensor.ndim < 2:
        return []
    possible = [w for w in _WIDTHS if num_columns % w == 0 and w * tensor.element_size() <= _MAX_PATTERN_BYTES]
    single = _bits_with_width(tensor, 1) if possible else 0.0
    costs = {width: _bits_with_width(tensor, width) for width in possible}
    return [width for width in possible if costs[width] == min(costs.values()) < _WORTH_IT * single]


def _bits_with_width(tensor: Tensor, width: int) -> float:
    """Return the empirical entropy of a sample of vectors in bits per element."""
    # A collision of hashes changes only this estimate.
    sample = hash_keys(strided_sample(bit_patterns_of(tensor, width)))
    ordered = np.sort(sample)
    values = sorted_unique(sample)
    # The entropy of a sample is at most the logarithm of its size, which is far too low if hardly any vector repeats.
    if len(values) * _MIN_OCCURRENCES > np.count_nonzero(sample) + _MIN_OCCURRENCES:
        return 8.0 * tensor.element_size()
    counts = np.diff(np.searchsorted(ordered, values), append=len(ordered))
    return float((counts * np.log2(len(ordered) / counts)).sum()) / len(ordered) / width
