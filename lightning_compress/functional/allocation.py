"""How a total is shared out among layers."""

from __future__ import annotations

from collections.abc import Sequence


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers next to ``shares`` that sum to ``total`` (largest remainder; of equal remainders the first).

    >>> apportion([1.5, 2.5, 3.0], 7)
    [2, 2, 3]
    """
    floors = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - shares[i])
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors


def erdos_renyi_kernel(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Densities in proportion to (sum of the dimensions) / (their product), so that the mean is ``density``.

    Layers whose density would exceed 1 stay dense and the others make up for it. Evci et al. 2020 (arXiv:1911.11134).

    >>> [round(d, 3) for d in erdos_renyi_kernel([(4, 4), (64, 64)], 0.1)]
    [1.0, 0.096]
    """
    sizes = [_product(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        sparse = [i for i in range(len(sizes)) if i not in dense]
        scale = budget / sum(raw[i] * sizes[i] for i in sparse) if sparse else 0.0
        over = {i for i in sparse if raw[i] * scale > 1}
        if not over:
            return [1.0 if i in dense else raw[i] * scale for i in range(len(sizes))]
        dense |= over


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
