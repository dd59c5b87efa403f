"""Sensitivity analysis: the delta loss of each layer when its smallest weights are pruned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.mean_loss import Loss, mean_loss
from lightning_compress.module_copies import copy_module
from lightning_compress.reporting.report_records import LayerSensitivity, SensitivityMap
from lightning_compress.targets import Targets


def pruning_sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9),
    targets: Targets = Targets(),
) -> SensitivityMap:
    """Measure the delta loss when the weights of one layer at a time are pruned by magnitude, without training.

    The sensitivity analysis of Han et al. (2015, arXiv:1506.02626).

    Args:
        model: Model, which is not modified: a copy is run in eval mode.
        batches: Batches for ``loss``, on the device of the model; they are kept in memory.
        loss: Function of a model and a batch that returns a tensor of one element.
        sparsities: Fractions of the weights of a layer that are zero, in (0, 1).
        targets: Layers to measure.

    Returns:
        The delta losses.

    Raises:
        ValueError: If there is no batch, a sparsity is out of range, or the loss is not finite.

    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.6]]))
    >>> batches = [-torch.ones(1, 2)]
    >>> found = pruning_sensitivity(linear, batches, loss=lambda model, batch: model(batch).sum(), sparsities=(0.5,))
    >>> round(found.loss, 3), round(found.layers[0].delta_losses["50 %"], 3)
    (-1.6, 0.6)
    """
    batches = list(batches)
    if not batches or not sparsities:
        raise ValueError(f"sensitivity: there is no {'sparsity' if batches else 'batch'}; give at least one.")
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise ValueError(f"sparsity={sparsity} is the fraction of zeros and must lie in (0, 1), such as 0.9.")
    copy = copy_module(model).eval()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        dense = mean_loss(copy, batches, loss)
        if not math.isfinite(dense):
            raise ValueError(f"sensitivity: the mean loss is {dense} without pruning; it must be a finite number.")
        layers = tuple(
            LayerSensitivity(
                target.layer,
                {
                    f"{100 * sparsity:g} %": _pruned_loss(copy, target.parameter, sparsity, batches, loss) - dense
                    for sparsity in sorted(set(sparsities))
                },
            )
            for target in targets.select(copy)
        )
    return SensitivityMap("pruning", dense, layers)


def _pruned_loss(
    model: nn.Module,
    weight: Tensor,
    sparsity: float,
    batches: Sequence[Any],
    loss: Loss,
) -> float:
    """Return the mean loss with the smallest weights of one tensor at zero, and restore them."""
    saved = weight.clone()
    smallest = weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]
    zeros = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device).index_fill_(0, smallest, True)
    try:
        weight.masked_fill_(zeros.view_as(weight), 0)
        return mean_loss(model, batches, loss)
    finally:
        weight.copy_(saved)
