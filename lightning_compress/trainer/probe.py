"""Disposable copy of a model in training, for passes that must not change the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_compress.arguments import as_arguments
from lightning_compress.sharded_modules import copy_whole, placeholder
from lightning_compress.trainer.batches import first_training_batch, training_step
from lightning_compress.trainer.example_inputs import given_inputs
from lightning_compress.trainer.loaders import ADVICE

NOT_CALLED = (
    "training_step never calls the deployable module itself: name the network with Targets(module='...'), or give "
    "example_inputs."
)


class TrainingProbe:
    """Run the training step of a deep copy on a batch; modes, buffers, metrics, logs and RNG of the original stay.

    The copy of a sharded model is not sharded. By default it takes no memory, as its weights are constants.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The module to copy.
        batch: A batch on the module's device, after ``on_after_batch_transfer``.
        batch_idx: Its index.
        module: Name of the deployable submodule.
        example_inputs: Arguments of the deployable submodule; by default the module's ``example_input_array``, or the
            arguments that it receives in a training step.
        full: Returns the full tensor for a sharded parameter in the copy.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        *,
        module: str = "",
        example_inputs: Any = None,
        full: Callable[[Tensor], Tensor] = placeholder,
    ) -> None:
        self.trainer = trainer
        self.model = self._prepare(pl_module, full)
        self.deployable: nn.Module = self.model.get_submodule(module)
        self.batch, self._batch_idx = batch, batch_idx
        self._captured: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._example_inputs = example_inputs if example_inputs is not None else pl_module.example_input_array

    def _prepare(self, pl_module: LightningModule, full: Callable[[Tensor], Tensor]) -> LightningModule:
        """Return the model that is run."""
        model: LightningModule = copy_whole(pl_module, full)
        model.trainer = self.trainer  # and that of modules inside it
        if pl_module._compiler_ctx is not None:
            _drop_compiled_methods(model)
        vars(model).update(log=ignore, log_dict=ignore)
        return model

    def step(self) -> Any:
        """Run ``training_step`` on the batch, and return its output."""
        with isolate_rng(), self.trainer.precision_plugin.train_step_context():
            return training_step(self.model, self.batch, self._batch_idx)

    def loss(self) -> Tensor:
        """Return the loss of the batch, with a graph where gradients are enabled.

        Raises:
            ValueError: If ``training_step`` returns no loss.
        """
        output = self.step()
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise ValueError(
                "training_step returned no loss for this batch: return a tensor or a dict with the key 'loss'."
            )
        return loss

    def run(self) -> Any:
        """Return the output of the deployable submodule for its inputs."""
        args, kwargs = self.inputs()
        with isolate_rng(), self.trainer.precision_plugin.forward_context():
            return self.deployable(*args, **kwargs)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the deployable submodule, given or captured in one training step."""
        if self._captured is None and self._example_inputs is None:
            self._captured = self._capture_inputs()
        if self._captured is not None:
            return self._captured
        # In setup the model is not yet on the strategy's device.
        return as_arguments(self.trainer.strategy.batch_to_device(self._example_inputs, self.model.device))

    def reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Average full tensors over all ranks, in place; a collective."""
        if self.trainer.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor.div_(self.trainer.world_size))
        return list(tensors)

    def _capture_inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        captured: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hook = self.deployable.register_forward_pre_hook(
            lambda module, args, kwargs: captured.append((args, kwargs)), with_kwargs=True
        )
        with torch.no_grad():
            self.step()
        hook.remove()
        if not captured:
            raise ValueError(NOT_CALLED)
        return captured[0]


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


def _drop_compiled_methods(model: LightningModule) -> None:
    """Remove the methods that Lightning sets on a compiled instance; in a copy they still run the original."""
    for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
        vars(model).pop(name, None)


def ignore(*args: Any, **kwargs: Any) -> None:
    """Replace ``log`` and ``log_dict`` in a model that is probed."""
