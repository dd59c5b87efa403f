"""Parameter, multiply-accumulate and byte counts of networks on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)
from lightning_compress.profiling import count_macs

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Sizes:
    """Number of parameters and sizes of a network.

    Attributes:
        params: Number of parameters.
        fp32_bytes: Bytes of the parameters and buffers of the state dict.
        int8_bytes: Bytes quantized to INT8, from :func:`int8_bytes`.
    """

    params: int
    fp32_bytes: int
    int8_bytes: int


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """Build a timm network in eval mode on the meta device; arguments as in ``timm.create_model``."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def sizes(model: nn.Module) -> Sizes:
    """Count the parameters and bytes of a network.

    >>> sizes(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))
    Sizes(params=232, fp32_bytes=1000, int8_bytes=280)
    """
    # Non-persistent buffers are not stored in a checkpoint.
    kept = model.state_dict().keys()
    parameters = list(model.parameters())
    tensors = [*parameters, *(buffer for name, buffer in model.named_buffers() if name in kept)]
    return Sizes(sum(p.numel() for p in parameters), sum(t.nbytes for t in tensors), int8_bytes(model))


def int8_bytes(model: nn.Module) -> int:
    """Compute the bytes of a network with convolutions and linear layers quantized to INT8 and batch norms folded.

    Each of their weights takes 1 byte, each of their output channels 4 for the scale and 4 for the int32 bias. Batch
    norms take nothing, also where no layer precedes them; all other parameters stay in FP32. File headers are not
    included.
    """
    # By identity, so that weights shared between layers are counted once.
    weights = {id(m.weight): m.weight for m in model.modules() if isinstance(m, _LAYERS)}
    quantized = sum(weight.numel() + 8 * weight.shape[0] for weight in weights.values())
    excluded = (*_LAYERS, _BatchNorm)
    counted = {id(p) for m in model.modules() if isinstance(m, excluded) for p in m.parameters(recurse=False)}
    return quantized + 4 * sum(p.numel() for p in model.parameters() if id(p) not in counted)


def macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count the multiply-accumulates of convolutions and matrix products for one image, attention included.

    Args:
        model: Network in eval mode on the meta device.
        shape: Channels, height and width of the image.
    """
    return count_macs(model, torch.zeros(1, *shape, device="meta")).total
