"""What the benchmarks compare with, where two of them do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def macs(net: nn.Module, image: Tensor) -> float:
    """Multiply-accumulates of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops() / 2


def torch_pruned(
    make: Callable[[], nn.Module], image: Tensor, times: float, is_whole: Callable[[str], bool], *, round_to: int | None
) -> nn.Module:
    """A network that Torch-Pruning has made so many times cheaper at once, by the L2 norms of coupled channels.

    Args:
        make: Makes the network in eval mode.
        image: What it is called with.
        times: How many times fewer multiply-accumulates.
        is_whole: Whether a layer of that name is to keep all its channels.
        round_to: Keep a multiple of so many.
    """
    import torch_pruning as tp

    target = macs(make(), image) / times

    def pruned(ratio: float) -> nn.Module:
        net = make()
        tp.pruner.BasePruner(
            net,
            image,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[module for name, module in net.named_modules() if is_whole(name)],
            round_to=round_to,
        ).step()
        return net

    low, high = 0.0, 0.95
    for _ in range(12):  # the least ratio that reaches the target
        ratio = (low + high) / 2
        low, high = (ratio, high) if macs(pruned(ratio), image) > target else (low, ratio)
    return pruned(high)
