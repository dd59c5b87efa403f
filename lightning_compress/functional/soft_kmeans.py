"""Differentiable 1-D k-means: soft assignment of values to a codebook. Cho et al. 2022, DKM (arXiv:2108.12659)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Values per chunk. The attention is num_clusters times as large as the rows: for longer rows it is computed anew in
# each pass, a chunk at a time, instead of being stored for the backward pass.
_CHUNK_SIZE = 2**16


def soft_assign(
    rows: Tensor, codebooks: Tensor, temperatures: Tensor, masses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace each value by the average of its row's codebook, weighted by attention.

    The attention is ``softmax(-(value - center)^2 / temperature)`` over centers. One step of soft k-means first moves
    the centers to the means of the values under that attention. Gradients flow to ``rows`` through both, but not to the
    other arguments.

    Args:
        rows: Values, one row per codebook, shape (rows, columns), float32 or float64.
        codebooks: Initial centers, shape (rows, clusters).
        temperatures: Positive, in squared units of the values, shape (rows,).
        masses: Non-negative mass of each value in the means, shape of ``rows``.

    Returns:
        The soft values, shape of ``rows``, and the moved codebooks, shape (rows, clusters), detached.

    >>> soft, moved = soft_assign(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[0.0, 10.0]]), torch.tensor([0.01]))
    >>> soft.tolist(), moved.tolist()
    ([[2.0, 2.0, 9.0]], [[2.0, 9.0]])
    """
    soft, moved = _SoftAssign.apply(rows, codebooks, temperatures, masses)
    return soft, moved


class _SoftAssign(torch.autograd.Function):
    """``y_j = sum_k a_kj mu_k`` with attention ``a`` and moved centers ``mu_k = S_k / M_k``.

    ``M_k = sum_j m_j a_kj`` is the mass of cluster ``k``, ``S_k = sum_j m_j a_kj x_j`` its moment.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebooks: Tensor, temperatures: Tensor, masses: Tensor | None) -> Any:
        with torch.autocast(rows.device.type, enabled=False):
            attend = _Attention(codebooks.detach().to(rows.dtype), temperatures.to(rows.dtype))
            stored = attend(rows) if rows.numel() <= _CHUNK_SIZE else None
            mass, moment = torch.zeros_like(attend.codebooks), torch.zeros_like(attend.codebooks)
            for chunk in _chunks(rows):
                attention = attend(rows[:, chunk]) if stored is None else stored
                counted = torch.ones_like(rows[:, chunk]) if masses is None else masses[:, chunk].to(rows.dtype)
                sums = torch.stack([counted, counted * rows[:, chunk]], dim=1) @ attention.transpose(1, 2)
                mass, moment = mass + sums[:, 0], moment + sums[:, 1]
            # A center without attention stays. Its infinite mass makes all gradients through its mean zero in the
            # backward pass, without a division by zero.
            mass = mass.masked_fill(mass <= 1e-12, torch.inf)
            moved = torch.where(mass.isinf(), attend.codebooks, moment / mass)
            soft = torch.empty_like(rows)
            for chunk in _chunks(rows):
                attention = attend(rows[:, chunk]) if stored is None else stored
                soft[:, chunk] = (moved.unsqueeze(1) @ attention).squeeze(1)
        ctx.save_for_backward(rows, attend.codebooks, attend.temperatures, masses, moved, mass, stored)
        ctx.mark_non_differentiable(moved)
        return soft, moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        rows, codebooks, temperatures, masses, moved, mass, stored = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            attend = _Attention(codebooks, temperatures)
            gradient = gradient.to(rows.dtype)
            # dL/dmu_k = sum_j g_j a_kj needs all columns before the gradient of any, hence two loops.
            to_moved = torch.zeros_like(moved)
            for chunk in _chunks(rows):
                attention = attend(rows[:, chunk]) if stored is None else stored
                to_moved += (gradient[:, chunk].unsqueeze(1) @ attention.transpose(1, 2)).squeeze(1)
            # By the quotient rule dL/dS_k = u_k = (dL/dmu_k) / M_k, and dL/dM_k = -u_k mu_k = -v_k.
            u = to_moved / mass
            v = u * moved
            result = torch.empty_like(rows)
            for chunk in _chunks(rows):
                attention = attend(rows[:, chunk]) if stored is None else stored
                result[:, chunk] = _gradient_of_values(
                    gradient[:, chunk],
                    rows[:, chunk],
                    None if masses is None else masses[:, chunk],
                    _Moments(codebooks, attention, torch.stack([moved, u, v], dim=1)),
                    temperatures,
                )
        return result, None, None, None


class _Moments:
    """Averages over centers under an attention, and covariances with the centers; both (rows, 3, columns).

    Deviations from the average center are formed before they are summed: a difference of two averages would lose all
    digits where attention is sharp, and the gradient divides it by a small temperature.
    """

    def __init__(self, codebooks: Tensor, attention: Tensor, values: Tensor) -> None:
        center = codebooks.unsqueeze(1) @ attention
        deviations = (codebooks.unsqueeze(2) - center).mul_(attention)
        self.averages = values @ attention
        # The deviations sum to zero up to rounding, and this is what rounding adds.
        self.covariances = values @ deviations - self.averages * deviations.sum(dim=1, keepdim=True)


def _gradient_of_values(
    gradient: Tensor, rows: Tensor, masses: Tensor | None, moments: _Moments, temperatures: Tensor
) -> Tensor:
    """Gradient of the values from moments over centers of ``mu``, ``u`` and ``v`` under their attention.

    With ``D_kj = dL/da_kj = g_j mu_k + m_j (x_j u_k - v_k)`` and the derivative ``2 c_k / T`` of the logits, up to a
    term that is the same for all centers ``c_k``::

        dL/dx_j = m_j <u> + (2 / T) cov(c, D)

    where ``<.>`` averages over centers with weights ``a_kj`` and ``cov`` is the covariance under them.
    """
    _, u, _ = moments.averages.unbind(1)
    c_moved, c_u, c_v = moments.covariances.unbind(1)
    # Terms that pass through the means carry the mass of the value: as x_j in the moment, and by its attention.
    direct, by_means = u, rows * c_u - c_v
    if masses is not None:
        direct, by_means = masses * direct, masses * by_means
    return direct + (gradient * c_moved + by_means) * (2 / temperatures).unsqueeze(1)


class _Attention:
    """Attention of values to the centers of their row's codebook, shape (rows, clusters, columns)."""

    def __init__(self, codebooks: Tensor, temperatures: Tensor) -> None:
        self.codebooks = codebooks
        self.temperatures = temperatures
        self._slopes = -(1 / temperatures).view(-1, 1, 1)

    def __call__(self, rows: Tensor) -> Tensor:
        # Not 2 x c - c^2, which loses the digits that tell neighboring centers apart where the temperature is small.
        squares = (rows.unsqueeze(1) - self.codebooks.unsqueeze(2)).square_()
        return squares.mul_(self._slopes).softmax(dim=1)


def _chunks(rows: Tensor) -> list[slice]:
    size = max(1, _CHUNK_SIZE // len(rows))
    return [slice(i, i + size) for i in range(0, rows.shape[1], size)]
