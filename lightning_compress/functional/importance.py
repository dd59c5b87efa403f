"""How much a weight matters, from tensors alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def uniform_noise(shape: torch.Size, *, seed: Sequence[int | str]) -> Tensor:
    """Uniform noise in [0, 1) that depends on ``seed`` alone: not on the rank, the device or the global generator."""
    generator = torch.Generator()
    digest = hashlib.blake2b(repr(tuple(seed)).encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator)


def layer_adaptive(weight: Tensor) -> Tensor:
    """Each squared weight as a part of the sum of those that are no smaller: what the layer would lose with it.

    Args:
        weight: A whole weight tensor.

    Returns:
        float32 of the same shape, in [0, 1]; of equal weights the later one counts as the smaller.

    >>> layer_adaptive(torch.tensor([3.0, -1.0, 4.0]))
    tensor([0.3600, 0.0385, 1.0000])
    """
    return part_of_the_rest(weight.detach().flatten().double().square()).float().view(weight.shape)


def part_of_the_rest(values: Tensor) -> Tensor:
    """Each value as a part of the sum of those that are no smaller, of equal ones the earlier.

    Args:
        values: None below zero, float64, of one dimension.

    Returns:
        float64 of the same length, in [0, 1].
    """
    order = values.argsort(descending=True, stable=True)
    sums = values[order].cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(values).index_copy_(0, order, values[order] / sums)


def gradient_flow(
    loss: Tensor, weights: Sequence[Tensor], reduce: Callable[[list[Tensor]], list[Tensor]] = list
) -> list[Tensor]:
    """Hessian-gradient products ``H g`` of a loss, for each weight.

    Args:
        loss: Scalar with a graph.
        weights: Tensors of the graph.
        reduce: Makes the gradient of a mean of losses from this one's, where ``g`` is to be that.
    """
    gradients = filled(torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True), weights)
    directions = reduce([g.detach().clone() for g in gradients])
    product = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
    return filled(torch.autograd.grad(product, weights, allow_unused=True), weights)


def filled(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros for the weights that the loss does not depend on."""
    return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
