"""A batch of a fit's training data before the fit has begun, without moving its loader or its random numbers."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset, Subset

_ADVICE = "give example_inputs, or set the LightningModule's example_input_array."


def training_batch(trainer: Trainer, pl_module: LightningModule) -> Any:
    """The first samples of the training data as ``training_step`` would get them, on the CPU.

    Raises:
        ValueError: If there is no such data yet, or taking from it would move it on.
    """
    with isolate_rng():
        try:
            loader = _request_dataloader(trainer.fit_loop._data_source)
        except Exception as error:
            raise ValueError(f"The training data is not to be had before the fit ({error}): {_ADVICE}") from error
        if isinstance(loader, (list, tuple)) and loader:
            batch = loader[0]
        elif isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
            few = range(min(loader.batch_size or 2, len(loader.dataset)))  # type: ignore[arg-type]
            batch = next(iter(DataLoader(Subset(loader.dataset, few), len(few), collate_fn=loader.collate_fn)))
        else:
            raise ValueError(f"To take a batch from this training data would move it on: {_ADVICE}")
        batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        return pl_module._apply_batch_transfer_handler(batch, device=torch.device("cpu"))
