"""A network of the zoo with its inputs, ready to be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_compress.arguments import call_model

Example = tuple[nn.Module, Any]
"""A network, and its inputs: a tensor, a tuple of positional or a dict of keyword arguments."""


class Subject:
    """A network with random weights, settled statistics of its batch norms, and inputs.

    Args:
        make: Returns the network and its inputs.
    """

    def __init__(self, make: Callable[[], Example]) -> None:
        torch.manual_seed(0)
        self.network, self.inputs = make()
        settle_(self.network, self.inputs)


def pink_noise(num: int, channels: int, *sizes: int) -> Tensor:
    """Return images or volumes with as much contrast in each octave, as those of nature.

    White noise averages out in the first layers, so that all that follows sees nothing but rounding.
    """
    noise = torch.zeros(num, channels, *sizes)
    for octave in range(max(sizes).bit_length() - 1):
        coarse = torch.randn(num, channels, *(max(1, size >> octave) for size in sizes))
        noise += nn.functional.interpolate(coarse, size=sizes)
    return noise / noise.std()


def settle_(network: nn.Module, inputs: Any, *, passes: int = 3) -> None:
    """Give batch norms statistics of the inputs and shifts of one, in place, and switch to eval mode.

    With the statistics that a network starts from, the activations of deep networks vanish or explode. Without a shift,
    every norm that is followed by a ReLU raises differences by 1 to 2 dB, so that any noise, that of quantization too,
    covers the signal after 20 layers. Training ends that; shifts bring most units into the linear range as well.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 0.7
            if norm.affine:
                norm.bias.fill_(1.0)
        for _ in range(passes if norms else 0):
            call_model(network, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def samples_of(inputs: Any) -> list[Any]:
    """Split inputs into samples, as the dataset that they are a batch of returns them."""
    num_samples = len(tree_leaves(inputs)[0])
    return [tree_map(lambda tensor, k=k: tensor[k], inputs) for k in range(num_samples)]


def outputs_of(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the floating-point outputs of a network."""
    with torch.no_grad():
        return floating(call_model(network, inputs))


def floating(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of a nested output that are not empty."""
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def sqnr(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the signal-to-quantization-noise ratio in dB, the smallest over the outputs."""
    ratios = []
    for a, b in zip(expected, actual, strict=True):
        noise = (a.double() - b.double()).square().sum().clamp(min=1e-30)
        ratios.append(float(10 * torch.log10(a.double().square().sum() / noise)))
    return min(ratios)
