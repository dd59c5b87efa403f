"""How much a weight matters, from tensors alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_noise(shape: torch.Size, *, seed: Sequence[int | str]) -> Tensor:
    """Uniform noise in [0, 1) that depends on ``seed`` alone: not on the rank, the device or the global generator."""
    generator = torch.Generator()
    digest = hashlib.blake2b(repr(tuple(seed)).encode(), digest_size=8).digest()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator)


def gradient_flow(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Hessian-gradient products ``H g`` of a loss, for each weight.

    Args:
        loss: Scalar with a graph.
        weights: Tensors of the graph.
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    pairs = [(g, g.detach()) for g in gradients if g is not None]
    product = torch.stack([(g * fixed).sum() for g, fixed in pairs]).sum()
    return filled(torch.autograd.grad(product, weights, allow_unused=True), weights)


def filled(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros for the weights that the loss does not depend on."""
    return [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)]
