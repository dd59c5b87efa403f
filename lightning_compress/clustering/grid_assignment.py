"""Assignment of quantized weights to the levels that they take."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.clustering.step_search import QuantizedWeight
from lightning_compress.constraints.assignment import Assignment


def assign_levels(quantized: QuantizedWeight, free: Tensor | None, device: torch.device) -> tuple[Assignment, Tensor]:
    """Return the assignment of a weight to its levels, and their values; zero is the first of them.

    Args:
        quantized: The quantized weight.
        free: Bool ``(num_weights,)``, True where a weight is not assigned yet; ``None`` if all are.
        device: Device of the weight.
    """
    integers = quantized.integers.flatten()
    levels = torch.cat([integers.new_zeros(1), integers[integers != 0].unique()])
    order = levels.argsort()
    index = order[torch.searchsorted(levels[order], integers)].int().to(device)
    values = (levels.float() * quantized.step).to(device)
    return Assignment(index, len(levels), pins_zero=True, free=free), values


def free_weights(weight: Tensor, assignment: Assignment | None, zeros: Tensor | None, fraction: float) -> Tensor | None:
    """Return the weights that stay free, the smallest ones; those that are assigned or masked are not.

    Args:
        weight: Weight of any shape.
        assignment: Its present assignment.
        zeros: True where it is masked.
        fraction: Fraction of the weights that are not masked that is to be assigned.

    Returns:
        Bool ``(num_weights,)``, or ``None`` if no weight stays free.
    """
    candidates = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    if zeros is not None:
        candidates &= ~zeros.flatten()
    num_free = round(int(candidates.sum()) * (1 - fraction))
    if assignment is not None:
        candidates &= torch.zeros_like(candidates) if assignment.free is None else assignment.free
    num_free = min(num_free, int(candidates.sum()))
    if not num_free:
        return None
    # Of weights of equal magnitude the first stay free, so that all ranks choose the same.
    scores = weight.detach().abs().flatten().float().masked_fill(~candidates, torch.inf)
    smallest = scores.sort(stable=True).indices[:num_free]
    return torch.zeros_like(candidates).index_fill_(0, smallest, True)


def spread_levels(quantized: QuantizedWeight) -> Tensor:
    """Return the weight with levels at unequal distances, as they are once each is trained by itself."""
    integers = quantized.integers
    return ((integers + 0.01 * torch.sin(integers)) * quantized.step).float()
