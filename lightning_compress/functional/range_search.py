"""Search for the clipping range with the smallest quantization loss, evaluated on histograms.

The losses are sums over quantization levels, and each level covers a run of neighboring bins. With prefix sums over
the bins, computed once, the count and the moments of any run are differences of two entries: a candidate range then
costs O(levels) instead of O(bins). As in :mod:`~lightning_compress.functional.histograms`, ``min_max`` holds the
maximum of ``-x`` and of ``x`` of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_compress.functional import histograms

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps lower and upper ends, ``(rows, candidates)`` each, to losses of that shape."""

# Candidates for the fraction of the full range. Most optima lie above a fifth, hence linear steps there; the geometric
# ones below are for outliers far away.
_FRACTIONS = torch.cat([torch.linspace(1.0, 0.2, 81), torch.logspace(math.log10(0.2), -2.0, 41)[1:]])
_MAX_LEVELS_AT_ONCE = 1 << 17  # levels of all rows and candidates in one chunk, which bounds the memory
# Floor of the quantized distribution, so that the divergence stays finite where it is zero.
_MIN_PROBABILITY = 1e-6


def best_range(
    counts: Tensor,
    min_max: Tensor,
    *,
    num_levels: int,
    symmetric: bool,
    loss: Callable[[Tensor, Tensor, int], Loss],
) -> tuple[Tensor, Tensor]:
    """Return the clipping range with the smallest loss.

    An asymmetric range is searched one end at a time, the upper first.

    Args:
        counts: Histogram ``(rows, bins)``.
        min_max: Maximum of ``-x`` and of ``x``, ``(rows, 2)``.
        num_levels: Number of quantization levels.
        symmetric: If True, both ends are moved together.
        loss: :func:`squared_error` or :func:`divergence`.

    Returns:
        Lower and upper ends, ``(rows,)`` each; 0.0 lies between them.

    >>> rows = torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([10.0])]).unsqueeze(0)
    >>> min_max = torch.tensor([[1.0, 10.0]])
    >>> counts = histograms.histogram(rows, min_max, 4096)
    >>> lower, upper = best_range(counts, min_max, num_levels=15, symmetric=True, loss=squared_error)
    >>> bool(upper < 2), bool(lower == -upper)
    (True, True)
    """
    edges = histograms.bin_edges(counts, min_max)
    evaluate = loss(counts, (edges[1:] + edges[:-1]) / 2, num_levels)
    # The first column is the negated minimum. Ends are clamped to include 0.0, which must stay representable.
    lower, upper = -min_max[:, :1].clamp(min=0), min_max[:, 1:].clamp(min=0)
    if symmetric:
        upper = torch.maximum(-lower, upper)
        upper = upper * _best_fraction(lambda f: evaluate(-upper * f, upper * f), upper, num_levels)
        return -upper.squeeze(1), upper.squeeze(1)
    upper = upper * _best_fraction(lambda f: evaluate(lower, upper * f), upper, num_levels)
    lower = lower * _best_fraction(lambda f: evaluate(lower * f, upper), lower, num_levels)
    return lower.squeeze(1), upper.squeeze(1)


def squared_error(counts: Tensor, centers: Tensor, num_levels: int) -> Loss:
    """Squared error of rounding to levels and clipping, summed over the values.

    The constant sum of squared values is omitted, so losses may be negative.

    Args:
        counts: Histogram ``(rows, bins)``.
        centers: Centers of the bins, ``(bins,)``.
        num_levels: Number of quantization levels.

    >>> evaluate = squared_error(torch.tensor([[5.0, 5.0]]), torch.tensor([-0.5, 0.5]), 3)
    >>> evaluate(torch.tensor([[-1.0, -0.5]]), torch.tensor([[1.0, 0.5]])).tolist()
    [[0.0, -2.5]]
    """
    # For a level v that takes n values of sum m: sum of (v - x)^2 = v^2 n - 2 v m + sum of x^2. The last term does not
    # depend on the range, so count and first moment suffice.
    count_prefix, moment_prefix = _prefix_sums(counts), _prefix_sums(counts * centers)

    def evaluate(lower: Tensor, upper: Tensor) -> Tensor:
        lower, upper, step = _ends_and_step(lower, upper, num_levels)
        # Levels are multiples of the step, as the zero point is an integer.
        levels = (torch.round(lower / step) + torch.arange(num_levels, device=lower.device)) * step
        # Rounding switches half-way between levels. The outermost levels also take all that is clipped to them: their
        # runs of bins begin at 0 and end at the number of bins.
        bounds = pad(_first_bin_at(levels[..., 1:] - step / 2, centers), (1, 0))
        bounds = pad(bounds, (0, 1), value=counts.shape[1])
        count, moment = _lookup(count_prefix, bounds).diff(dim=2), _lookup(moment_prefix, bounds).diff(dim=2)
        return (levels.square() * count - 2 * levels * moment).sum(dim=2)

    return evaluate


def divergence(counts: Tensor, centers: Tensor, num_levels: int) -> Loss:
    """Kullback-Leibler divergence between the histogram and its quantized version, after Migacz 2017 (TensorRT).

    The reference distribution P is the histogram inside of the range, with the counts beyond an end added to the
    outermost bin. The candidate Q spreads the count of each level evenly over those of its bins that are not empty.

    Args:
        counts: Histogram ``(rows, bins)``.
        centers: Centers of the bins, ``(bins,)``.
        num_levels: Number of quantization levels.

    >>> evaluate = divergence(torch.ones(1, 8), torch.linspace(-3.5, 3.5, 8), 4)
    >>> loss = evaluate(torch.tensor([[-4.0, -2.0]]), torch.tensor([[4.0, 2.0]]))
    >>> bool(loss[0, 0] < loss[0, 1])  # the clipped distribution is no longer uniform
    True
    """
    # With counts c and total N, KL(P || Q) = (sum of c log c - sum of c log q) / N - log N. Both sums are available
    # for runs of bins: the first by a prefix sum of c log c, the second as q is the same in all non-empty bins of a
    # level.
    count_prefix, nonempty_prefix, c_log_c_prefix = (
        _prefix_sums(t) for t in (counts, counts > 0, torch.xlogy(counts, counts))
    )
    total = count_prefix[:, -1:].clamp(min=1)

    def evaluate(lower: Tensor, upper: Tensor) -> Tensor:
        lower, upper, step = _ends_and_step(lower, upper, num_levels)
        bounds = _first_bin_at(lower + step * (torch.arange(num_levels + 1, device=lower.device) - 0.5), centers)
        # Unlike for the squared error, the outermost levels end with the range: Q is built from the values inside.
        first, last = _first_bin_at(lower, centers), _first_bin_at(upper, centers)
        bounds = torch.cat([first, bounds[..., 1:-1], last], dim=2).clamp(first, last)
        count, nonempty = _lookup(count_prefix, bounds).diff(dim=2), _lookup(nonempty_prefix, bounds).diff(dim=2)
        q = count / nonempty.clamp(min=1) / count.sum(dim=2, keepdim=True).clamp(min=1)
        q = q.clamp(min=_MIN_PROBABILITY)
        c_log_c = _lookup(c_log_c_prefix, torch.cat([first, last], dim=2)).diff(dim=2).squeeze(2)
        c_log_q = torch.xlogy(count, q).sum(dim=2)
        # The clipped counts enter P alone, in its outermost bins: replace their term c log c, and charge the clipped
        # counts at the Q of that bin, which is the floor if it was empty.
        clipped_below = _lookup(count_prefix, first)
        clipped_above = total.unsqueeze(2) - _lookup(count_prefix, last)
        for edge, clipped in ((first, clipped_below), (last - 1, clipped_above)):
            edge = edge.clamp(0, counts.shape[1] - 1)
            inside = (_lookup(count_prefix, edge + 1) - _lookup(count_prefix, edge)) * (first < last)
            level = torch.round((centers[edge] - lower) / step).clamp(0, num_levels - 1).long()
            c_log_c += (torch.xlogy(inside + clipped, inside + clipped) - torch.xlogy(inside, inside)).squeeze(2)
            q_edge = torch.where(inside > 0, q.gather(2, level), _MIN_PROBABILITY)
            c_log_q += torch.xlogy(clipped, q_edge).squeeze(2)
        return (c_log_c - c_log_q) / total - torch.log(total)

    return evaluate


def _best_fraction(evaluate: Callable[[Tensor], Tensor], end: Tensor, num_levels: int) -> Tensor:
    """Fraction of an end ``(rows, 1)`` with the smallest loss, of the same shape."""
    fractions = _FRACTIONS.to(end.device)
    chunks = fractions.split(max(1, _MAX_LEVELS_AT_ONCE // (len(end) * num_levels)))
    return fractions[torch.cat([evaluate(chunk) for chunk in chunks], dim=1).argmin(dim=1, keepdim=True)]


def _ends_and_step(lower: Tensor, upper: Tensor, num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends and the step between levels, ``(rows, candidates, 1)``."""
    lower, upper = (end.unsqueeze(2) for end in torch.broadcast_tensors(lower, upper))
    return lower, upper, ((upper - lower) / (num_levels - 1)).clamp(min=1e-30)


def _prefix_sums(values: Tensor) -> Tensor:
    """Sums over the bins before each edge, ``(rows, bins + 1)``."""
    # float64: runs are differences of nearly equal prefix sums, which cancel most digits.
    return pad(values.to(torch.float64).cumsum(dim=1), (1, 0))


def _first_bin_at(values: Tensor, centers: Tensor) -> Tensor:
    """Index of the first bin with its center at or above a value; the number of bins if there is none."""
    # Bins are equally wide, so the index is computed instead of searched.
    position = (values - centers[0]) / (centers[1] - centers[0])
    return position.ceil_().clamp_(0, len(centers)).long()


def _lookup(prefix_sums: Tensor, bins: Tensor) -> Tensor:
    return prefix_sums.gather(1, bins.flatten(1)).view_as(bins)
