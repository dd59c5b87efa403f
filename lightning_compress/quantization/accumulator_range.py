"""Weights with which no 16-bit sum of two products overflows, as x86 kernels without VNNI compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.quantization.affine_maps import argument
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall
from lightning_compress.quantization.function_names import CHANNEL_AXIS
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.simulation import Simulation
from lightning_compress.quantization.tracing import Node

# 255 * (a + b) <= 2**15 - 1 for any two weights a and b of a channel and activations up to 255.
MAX_PAIR_SUM = 128


@torch.no_grad()
def limit_pair_sums_(simulation: Simulation) -> bool:
    """Increase the scales of channels in which two weights can overflow a 16-bit sum, in place.

    The kernels add the products of two weights with activations up to 255 in 16 bits. Whichever weights of a channel
    they pair, no sum overflows if the two largest of a sign add up to at most 128. A channel that exceeds this gets a
    larger scale: between half a bit and one bit of resolution less, and nothing in a channel with one large weight.

    Args:
        simulation: Run of a quantized model.

    Returns:
        True if a scale has changed.
    """
    changed = False
    if not simulation.integers:  # with FP32 activations there are no sums of integers
        return changed
    seen: set[int] = set()
    for node in simulation.graph.nodes:
        quantizer = node.action.weight if isinstance(node.action, FakeQuantizedCall) else None
        if (
            quantizer is None
            or not quantizer.ready
            or node.arguments is None
            or node.call.function not in CHANNEL_AXIS
            or isinstance(quantizer.spec.granularity, int)  # computed in FP32
            or id(quantizer) in seen
        ):
            continue
        seen.add(id(quantizer))
        weight = argument(*node.arguments, 1, "weight")
        if _is_depthwise(node, weight):
            continue
        module = simulation.model.get_submodule(node.module)
        integers = quantizer.to_integers(module, weight)
        # Rounding to the new scale adds up to half an integer to each of the two.
        factor = (_largest_pairs(quantizer, integers) / (MAX_PAIR_SUM - 1)).clamp(min=1)
        quantizer.scale(module).mul_(factor)
        changed |= bool((factor > 1).any())
    return changed


def _is_depthwise(node: Node, weight: Tensor) -> bool:
    """Return True for a convolution of each channel alone, the kernels of which add the products in 32 bits."""
    assert node.arguments is not None
    groups = argument(*node.arguments, 6, "groups") or 1
    is_conv = node.call.function in ("conv1d", "conv2d")
    return is_conv and groups == weight.shape[0] and weight.shape[1] == 1


def _largest_pairs(quantizer: Quantizer, integers: Tensor) -> Tensor:
    """Return the largest absolute sum of two integers of a sign, of the shape of the scale."""
    rows = integers.flatten()[None] if quantizer.spec.granularity == "tensor" else integers.movedim(quantizer.axis, 0)
    rows = rows.flatten(1).float()
    largest = [(sign * rows).clamp(min=0).topk(min(2, rows.shape[1]), dim=1).values.sum(dim=1) for sign in (1, -1)]
    sums = torch.maximum(*largest)
    # A sum up to the limit needs no room for rounding, as nothing is rounded again.
    sums = torch.where(sums <= MAX_PAIR_SUM, torch.zeros_like(sums), sums)
    return sums[0] if quantizer.spec.granularity == "tensor" else sums
