"""Assignment of quantized weights to the levels that they take."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.clustering.step_search import QuantizedWeight
from lightning_compress.constraints.assignment import Assignment
from lightning_compress.constraints.layer import Layer


def assign_levels(quantized: QuantizedWeight, free: Tensor | None, layer: Layer) -> tuple[Assignment, Tensor]:
    """Return the assignment of a weight to its levels, and their values; zero is the first of them.

    Args:
        quantized: The quantized weight.
        free: Bool ``(num_weights,)``, True where a weight is not assigned yet; ``None`` if all are.
        layer: Layer of the weight. If it is sharded, the assignment is that of this rank's shard.
    """
    integers = quantized.integers.flatten()
    levels = torch.cat([integers.new_zeros(1), integers[integers != 0].unique()])
    order = levels.argsort()
    index = layer.local_vector(order[torch.searchsorted(levels[order], integers)].int())
    own_free = None if free is None else layer.local_vector(free)
    values = (levels.float() * quantized.step).to(layer.weight.device)
    return Assignment(index, len(levels), pins_zero=True, free=own_free, group=layer.group), values


def free_weights(layer: Layer, assignment: Assignment | None, zeros: Tensor | None, fraction: float) -> Tensor | None:
    """Return the weights that stay free, the smallest ones; those that are assigned or masked are not.

    Args:
        layer: Layer of the weight; a collective if it is sharded.
        assignment: Its present assignment.
        zeros: True where it is masked, of the full weight's shape.
        fraction: Fraction of the weights that are not masked that is to be assigned.

    Returns:
        Bool ``(num_weights,)``, or ``None`` if no weight stays free.
    """
    weight = layer.full(layer.weight)
    candidates = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    if zeros is not None:
        candidates &= ~zeros.flatten()
    num_free = round(int(candidates.sum()) * (1 - fraction))
    if assignment is not None:
        free = torch.zeros_like(assignment.index, dtype=torch.bool) if assignment.free is None else assignment.free
        candidates &= layer.full_vector(free)
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
