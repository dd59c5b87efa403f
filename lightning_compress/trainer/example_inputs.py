"""Example inputs of a model that is about to be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_compress.trainer.batches import ADVICE, first_training_batch
from lightning_compress.trainer.probe import TrainingProbe


def probe_before_fit(
    trainer: Trainer, pl_module: LightningModule, *, module: str, example_inputs: Any, max_samples: int | None = None
) -> tuple[TrainingProbe, bool]:
    """Copy a model in ``Callback.setup``, in eval mode, to run it on example inputs or else in a training step.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The model.
        module: Name of the deployable submodule.
        example_inputs: Its arguments, or ``None`` for the module's ``example_input_array``.
        max_samples: Largest number of samples of a batch of training data; by default the loader's batch size.

    Returns:
        The copy, and True if it has example inputs.

    Raises:
        ValueError: If there is nothing to run it on.
    """
    inputs = given_inputs(pl_module, example_inputs)
    if inputs is None and not pl_module.automatic_optimization:
        raise ValueError(f"A training step with manual optimization cannot be run before the fit: {ADVICE}")
    batch = first_training_batch(trainer, pl_module, max_samples) if inputs is None else None
    inputs = trainer.precision_plugin.convert_input(inputs)
    probe = TrainingProbe(trainer, pl_module, batch, 0, module=module, example_inputs=inputs)
    trainer.precision_plugin.convert_module(probe.model.eval())  # as the strategy will do it with the model
    return probe, inputs is not None


def given_inputs(pl_module: LightningModule, example_inputs: Any) -> Any:
    """Return the example inputs, or those of the module if none are given."""
    return example_inputs if example_inputs is not None else pl_module.example_input_array


def common_ancestors(layers: Sequence[str]) -> list[str]:
    """Return the names of the modules that contain all layers, the outermost (``""``) first.

    >>> common_ancestors(["net.body.conv1", "net.body.conv2"])
    ['', 'net', 'net.body']
    """
    levels = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return [".".join(shared[:depth]) for depth in range(len(shared) + 1)]
