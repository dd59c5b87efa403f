"""Histograms and tables for the loggers that can show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NUM_BINS = 64  # W&B accepts at most 512


def log_histogram(logger: Any, name: str, values: Tensor, *, step: int) -> None:
    """Log a histogram of a tensor to W&B or TensorBoard; other loggers have no histograms.

    Args:
        logger: Logger of a Trainer.
        name: Name of the histogram.
        values: Tensor of any shape and device; only the counts are copied from it.
        step: Step at which Lightning logs metrics of the module.
    """
    flat = values.detach().flatten().float()
    flat = flat[flat.isfinite()]
    if not flat.numel():
        return
    if any(cls.__name__ == "WandbLogger" for cls in type(logger).__mro__):  # Lightning has two packages with one
        _log_wandb(logger, name, flat, step)
    elif hasattr(getattr(logger, "experiment", None), "add_histogram"):
        logger.experiment.add_histogram(name, flat.cpu().numpy(), global_step=step, bins=NUM_BINS)


def log_table(logger: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
    """Log a table to W&B; other loggers have no tables."""
    if hasattr(logger, "log_table"):
        logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)


def _log_wandb(logger: Any, name: str, values: Tensor, step: int) -> None:
    import wandb

    lower, upper = float(values.min()), float(values.max())
    if lower == upper:
        lower, upper = lower - 0.5, upper + 0.5
    counts = torch.histc(values, NUM_BINS, lower, upper).cpu().long().numpy()
    edges = torch.linspace(lower, upper, NUM_BINS + 1).numpy()
    # No step of W&B's own: it counts calls, and a smaller one would be dropped.
    logger.log_metrics({name: wandb.Histogram(np_histogram=(counts, edges))}, step=step)
