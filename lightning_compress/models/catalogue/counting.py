"""Parameters, multiply-accumulates and bytes of a network, from one that is built without memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Sizes:
    """What a network takes, whatever it is run on.

    Attributes:
        params: Parameters.
        fp32_bytes: Bytes of the parameters and buffers of its state dict.
        int8_bytes: Bytes in integers, as :func:`int8_bytes` has it.
    """

    params: int
    fp32_bytes: int
    int8_bytes: int


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """A timm network in eval mode without memory for its tensors; arguments as of ``timm.create_model``."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def sizes(model: nn.Module) -> Sizes:
    """What a network takes.

    >>> sizes(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))
    Sizes(params=232, fp32_bytes=1000, int8_bytes=280)
    """
    kept = model.state_dict().keys()
    parameters = list(model.parameters())
    tensors = [*parameters, *(buffer for name, buffer in model.named_buffers() if name in kept)]
    return Sizes(sum(p.numel() for p in parameters), sum(t.nbytes for t in tensors), int8_bytes(model))


def int8_bytes(model: nn.Module) -> int:
    """Bytes of a network whose convolutions and linear layers are in integers, norms folded into them.

    A byte for each of their weights, and for each of their output channels 4 for the scale and 4 for the int32 bias
    that it has after folding. Batch norms take nothing, those included that no layer stands before; all other
    parameters stay in float32. The headers of a file come on top.
    """
    weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, _LAYERS)}
    in_integers = sum(weight.numel() + 8 * weight.shape[0] for weight in weights.values())
    gone = (*_LAYERS, _BatchNorm)
    counted = {id(p) for m in model.modules() if isinstance(m, gone) for p in m.parameters(recurse=False)}
    return in_integers + 4 * sum(p.numel() for p in model.parameters() if id(p) not in counted)


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products, attention's included, for one image.

    Args:
        model: A network in eval mode on the meta device.
        shape: Channels, height and width of the image.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape, device="meta"))
    return int(counter.get_total_flops()) // 2
