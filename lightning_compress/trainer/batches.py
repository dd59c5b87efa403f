"""Batches as ``training_step`` gets them, and the call of ``training_step``."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_compress.trainer.loaders import ADVICE, first_batch


def prepare_batch(trainer: Trainer, pl_module: LightningModule, batch: Any, device: torch.device | None = None) -> Any:
    """Convert, hook and move a batch of a loader as Lightning does before it calls a step.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The module with the ``on_before_batch_transfer``, ``transfer_batch_to_device`` and
            ``on_after_batch_transfer`` hooks.
        batch: A batch as the loader yields it.
        device: Target device; by default the strategy's.
    """
    batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
    return pl_module._apply_batch_transfer_handler(batch, device=device or trainer.strategy.root_device)


def first_training_batch(trainer: Trainer, pl_module: LightningModule, max_samples: int | None = None) -> Any:
    """Return the first samples of the training data on the CPU, without advancing its loader or any RNG.

    Args:
        trainer: The Trainer of the fit, before the fit.
        pl_module: The module to be fitted.
        max_samples: Largest number of samples, where a loader collates single samples; by default its batch size.

    Raises:
        ValueError: If there is no such data yet, or if reading it would advance it.
    """
    with isolate_rng():
        try:
            loaders = _request_dataloader(trainer.fit_loop._data_source)
        except Exception as error:
            raise ValueError(f"The training data is not available before the fit ({error}): {ADVICE}") from error
        # The model is still on the CPU in Callback.setup.
        return prepare_batch(trainer, pl_module, first_batch(loaders, max_samples), device=torch.device("cpu"))


def training_step(pl_module: LightningModule, batch: Any, batch_idx: int) -> Any:
    """Call a module's ``training_step`` with or without ``batch_idx``, as Lightning does."""
    takes_index = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
    return pl_module.training_step(batch, batch_idx) if takes_index else pl_module.training_step(batch)


def num_samples_of(batch: Any) -> int | None:
    """Return the length of the first tensor of a batch, or ``None`` if it has none.

    >>> num_samples_of({"x": torch.ones(3, 2), "y": torch.ones(3)}), num_samples_of([1.0])
    (3, None)
    """
    return next((len(tensor) for tensor in tree_leaves(batch) if isinstance(tensor, Tensor) and tensor.ndim), None)
