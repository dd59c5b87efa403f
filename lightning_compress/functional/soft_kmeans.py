"""Differentiable k-means: numbers drawn softly to a codebook (Cho et al. 2022, arXiv:2108.12659)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_AT_ONCE = 2**16  # numbers whose attention is held at a time


def soft_assign(
    rows: Tensor, codebooks: Tensor, temperatures: Tensor, masses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replaces numbers by averages of their row's codebook, weighted by how near its values are.

    The attention of a number to a value falls with their squared distance over the temperature. The codebook is first
    moved to the means of the numbers under that attention, and gradients flow through both, but not into the given
    codebook. In backward passes the attention of long rows is computed anew, a part at a time, instead of being kept.

    Args:
        rows: QuantizationSpec, one row for each codebook, shape (rows, columns).
        codebooks: Where the values are, shape (rows, clusters).
        temperatures: Positive, shape (rows,), in squared units of the numbers.
        masses: What each number counts where values are moved, shape of ``rows``.

    Returns:
        The soft numbers, shape of ``rows``, and the moved codebooks, detached.
    """
    soft, moved = _SoftAssign.apply(rows, codebooks, temperatures, masses)
    return soft, moved.detach()


class _SoftAssign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebooks: Tensor, temperatures: Tensor, masses: Tensor | None) -> Any:
        with torch.autocast(rows.device.type, enabled=False):
            attend = _Attention(codebooks.detach().to(rows.dtype), temperatures.to(rows.dtype))
            kept = attend(rows) if rows.numel() <= _AT_ONCE else None
            mass, moment = torch.zeros_like(attend.codebooks), torch.zeros_like(attend.codebooks)
            for part in _parts(rows):
                attention = attend(rows[:, part]) if kept is None else kept
                counted = torch.ones_like(rows[:, part]) if masses is None else masses[:, part].to(rows.dtype)
                sums = torch.stack([counted, counted * rows[:, part]], dim=1) @ attention.transpose(1, 2)
                mass, moment = mass + sums[:, 0], moment + sums[:, 1]
            # A value that nothing attends to stays where it is: nothing can move an infinite mass.
            mass = mass.masked_fill(mass <= 1e-12, torch.inf)
            moved = torch.where(mass.isinf(), attend.codebooks, moment / mass)
            soft = torch.empty_like(rows)
            for part in _parts(rows):
                attention = attend(rows[:, part]) if kept is None else kept
                soft[:, part] = (moved.unsqueeze(1) @ attention).squeeze(1)
        ctx.save_for_backward(rows, attend.codebooks, attend.temperatures, masses, moved, mass, kept)
        ctx.mark_non_differentiable(moved)
        return soft, moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        rows, codebooks, temperatures, masses, moved, mass, kept = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            attend = _Attention(codebooks, temperatures)
            gradient = gradient.to(rows.dtype)
            into_moved = torch.zeros_like(moved)
            for part in _parts(rows):
                attention = attend(rows[:, part]) if kept is None else kept
                into_moved += (gradient[:, part].unsqueeze(1) @ attention.transpose(1, 2)).squeeze(1)
            # Per unit of mass; and what the moments take away.
            u = into_moved / mass
            v = u * moved
            coefficients = torch.stack([moved, u, v, codebooks, moved * codebooks, u * codebooks, v * codebooks], dim=1)
            result = torch.empty_like(rows)
            for part in _parts(rows):
                attention = attend(rows[:, part]) if kept is None else kept
                averages = coefficients @ attention
                result[:, part] = _through_attention(
                    gradient[:, part],
                    rows[:, part],
                    None if masses is None else masses[:, part],
                    averages,
                    temperatures,
                )
        return result, None, None, None


def _through_attention(
    gradient: Tensor, rows: Tensor, masses: Tensor | None, averages: Tensor, temperatures: Tensor
) -> Tensor:
    """The gradient of the numbers, from averages over the codebook that their attention weighs."""
    moved, u, v, start, moved_start, u_start, v_start = averages.unbind(1)
    direct, pull, pull_start = u, rows * u - v, rows * u_start - v_start
    if masses is not None:
        direct, pull, pull_start = (masses * t for t in (direct, pull, pull_start))
    into, into_start = gradient * moved + pull, gradient * moved_start + pull_start
    return direct + (into_start - into * start) * (2 / temperatures).unsqueeze(1)


class _Attention:
    """Of numbers to the values of their row's codebook, shape (rows, clusters, columns)."""

    def __init__(self, codebooks: Tensor, temperatures: Tensor) -> None:
        self.codebooks = codebooks
        self.temperatures = temperatures
        inverse = (1 / temperatures).unsqueeze(1)
        self._slopes = 2 * codebooks * inverse
        self._offsets = codebooks.square() * inverse

    def __call__(self, rows: Tensor) -> Tensor:
        # The square of the number itself is the same for all values, and softmax does not see it.
        return (rows.unsqueeze(1) * self._slopes.unsqueeze(2)).sub_(self._offsets.unsqueeze(2)).softmax(dim=1)


def _parts(rows: Tensor) -> list[slice]:
    size = max(1, _AT_ONCE // len(rows))
    return [slice(i, i + size) for i in range(0, rows.shape[1], size)]
