"""Inertia of a clustering, by which the tests compare codebooks."""

from __future__ import annotations

from torch import Tensor


def inertia(rows: Tensor, codebooks: Tensor, assignments: Tensor, weights: Tensor | None = None) -> float:
    """The sum of squared distances between values and their assigned centers, weighted by mass."""
    squares = (rows.double() - codebooks.double().gather(1, assignments.long())).square()
    return float((squares if weights is None else squares * weights).sum())
