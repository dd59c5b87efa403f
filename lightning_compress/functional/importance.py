"""Importance scores computed from tensors alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def uniform_noise(shape: torch.Size, *, seed: Sequence[int | str]) -> Tensor:
    """Draw uniform noise in [0, 1) from a seed, independent of rank, device and the global random state.

    Args:
        shape: Shape of the result.
        seed: Integers and strings, such as a user's seed, the step and the layer name.

    >>> torch.equal(uniform_noise(torch.Size([3]), seed=(0, "fc")), uniform_noise(torch.Size([3]), seed=(0, "fc")))
    True
    """
    generator = torch.Generator()
    # Not Python's hash(), which is salted in each process, nor a sum of the parts, which collides.
    digest = hashlib.blake2b(repr(tuple(seed)).encode(), digest_size=8).digest()
    # Shifted, as manual_seed takes a signed 64-bit integer.
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator)


def lamp_scores(weight: Tensor) -> Tensor:
    """Layer-adaptive magnitude scores of a weight tensor. Lee et al. 2021, LAMP (arXiv:2010.07611).

    Args:
        weight: Full weight tensor of a layer, any shape.

    Returns:
        Squared weights divided by the sum of all squares that are not smaller, float32 of the same shape, in [0, 1]. Of
        weights with equal magnitude the later one counts as the smaller.

    >>> lamp_scores(torch.tensor([3.0, -1.0, 4.0]))
    tensor([0.3600, 0.0385, 1.0000])
    """
    return lamp_normalize(weight.detach().flatten().double().square()).float().view(weight.shape)


def lamp_normalize(values: Tensor) -> Tensor:
    """Divide each value by the sum of all values that are not smaller; of equal values the later counts as the smaller.

    Args:
        values: Non-negative values, float64, one-dimensional.

    Returns:
        float64 of the same length, in [0, 1].

    >>> lamp_normalize(torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64)).tolist()
    [0.25, 1.0, 0.2]
    """
    order = values.argsort(descending=True, stable=True)
    # Zeros come last and divide by a positive sum, unless all are zero.
    sums = values[order].cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(values).index_copy_(0, order, values[order] / sums)


def hessian_gradient_product(
    loss: Tensor, weights: Sequence[Tensor], reduce: Callable[[list[Tensor]], list[Tensor]] = list
) -> list[Tensor]:
    """Compute ``H g``, the product of the loss's Hessian and gradient, for each weight.

    Args:
        loss: Scalar with a graph.
        weights: Leaf tensors of the graph; zeros are returned for those that the loss does not depend on.
        reduce: Averages the gradients ``g`` over batches or ranks before the product.

    >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_gradient_product((weight**3).sum(), [weight])  # 6 w * 3 w^2
    [tensor([ 18., 144.])]
    """
    gradients = fill_missing_gradients(
        torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True), weights
    )
    # H g = d(g . v)/dw at v = g held constant, without forming the Hessian (Pearlmutter 1994).
    directions = reduce([g.detach().clone() for g in gradients])
    product = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
    return fill_missing_gradients(torch.autograd.grad(product, weights, allow_unused=True), weights)


def fill_missing_gradients(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    """Replace ``None``, the gradient of a weight that the loss does not depend on, by zeros.

    >>> fill_missing_gradients([None], [torch.ones(2)])
    [tensor([0., 0.])]
    """
    return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
