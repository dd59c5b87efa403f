"""A batch of a fit's training data before the fit has begun, without moving its loader or its random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_compress.trainer.probe import TrainingProbe

_ADVICE = "give example_inputs, or set the LightningModule's example_input_array."


def probe_before_fit(
    trainer: Trainer, pl_module: LightningModule, *, module: str, example_inputs: Any, most: int | None = None
) -> tuple[TrainingProbe, bool]:
    """A copy of the model to run in ``Callback.setup``, in eval mode, and whether its part has example inputs.

    Without example inputs, those given or the module's own, what can be run is a training step.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The model.
        module: Name of the deployable part.
        example_inputs: What it is called with, or ``None``.
        most: The number of samples that are enough, where a batch is made of the data; ``None``: as many as in others.

    Raises:
        ValueError: If there is nothing to run it on.
    """
    inputs = given_inputs(pl_module, example_inputs)
    if inputs is None and not pl_module.automatic_optimization:
        raise ValueError(
            "With manual optimization a training step cannot be tried: give example_inputs, or set the "
            "LightningModule's example_input_array."
        )
    batch = training_batch(trainer, pl_module, most) if inputs is None else None
    inputs = trainer.precision_plugin.convert_input(inputs)
    probe = TrainingProbe(trainer, pl_module, batch, 0, module=module, example_inputs=inputs)
    trainer.precision_plugin.convert_module(probe.model.eval())  # as the strategy will do it with the model
    return probe, inputs is not None


def given_inputs(pl_module: LightningModule, example_inputs: Any) -> Any:
    """The example inputs, those of the module if none are given."""
    return example_inputs if example_inputs is not None else pl_module.example_input_array


def containers(layers: Sequence[str]) -> list[str]:
    """Names of the modules that have all the layers, the outermost (``""``) first.

    >>> containers(["net.body.conv1", "net.body.conv2"])
    ['', 'net', 'net.body']
    """
    levels = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return [".".join(shared[:depth]) for depth in range(len(shared) + 1)]


def training_batch(trainer: Trainer, pl_module: LightningModule, most: int | None = None) -> Any:
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
            size = loader.batch_size or 2
            few = range(min(size, most or size, len(loader.dataset)))  # type: ignore[arg-type]
            batch = next(iter(DataLoader(Subset(loader.dataset, few), len(few), collate_fn=loader.collate_fn)))
        else:
            raise ValueError(f"To take a batch from this training data would move it on: {_ADVICE}")
        batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        return pl_module._apply_batch_transfer_handler(batch, device=torch.device("cpu"))
