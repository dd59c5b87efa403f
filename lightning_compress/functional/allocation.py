"""Apportionment of a total among layers: largest remainders and Erdos-Renyi-Kernel densities."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Round real shares to integers that sum to ``total``, by the largest-remainder method.

    Args:
        shares: Non-negative shares; their sum is ``total`` up to rounding.
        total: Sum of the result.

    Returns:
        One integer per share, within one of it. Equal remainders are rounded up in the order of the shares.

    >>> apportion([1.5, 2.5, 3.0], 7)
    [2, 2, 3]
    """
    floors = [int(share) for share in shares]
    # Sorting is stable, so ties are broken by position and the result is the same on every rank.
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - shares[i])
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors


def erdos_renyi_kernel(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Return one density per layer, in proportion to ``sum(shape) / prod(shape)``. Evci et al. 2020 (arXiv:1911.11134).

    Args:
        shapes: Shapes of the weights, kernel sizes included.
        density: Mean density over all weights, in (0, 1].

    Returns:
        Densities in (0, 1]. Layers that would exceed 1 stay dense and the others are scaled down to keep the mean.

    >>> [round(d, 3) for d in erdos_renyi_kernel([(4, 4), (64, 64)], 0.1)]
    [1.0, 0.096]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    densities, sparse = [1.0] * len(sizes), list(range(len(sizes)))
    # Capping a layer at density 1 changes the budget of the others, which may push one of them above 1 in turn. Each
    # round takes a layer out of the sparse ones, so this ends.
    while sparse:
        budget = density * sum(sizes) - (sum(sizes) - sum(sizes[i] for i in sparse))
        scale = budget / sum(raw[i] * sizes[i] for i in sparse)
        kept = [i for i in sparse if raw[i] * scale <= 1]
        if kept == sparse:
            for i in sparse:
                densities[i] = raw[i] * scale
            break
        sparse = kept
    return densities
