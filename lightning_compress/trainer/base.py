"""What all compression callbacks share.

One training step of Lightning, with what a constraint does in it::

    on_train_batch_start                   the batch is kept at hand; a constraint due at step 0 is set up
    training_step, backward  (x accumulation)
        on_after_backward                  manual optimization only: gradients are projected
    on_before_optimizer_step               dense gradients are read, then gradients are projected
    gradient clipping
    optimizer.step
        step post-hook                     if the step was made: weights are projected, the step is counted,
                                           and where an update is due the constraint is replaced
                                           (optimizer state and averages of the weights are projected then, too)
    on_train_batch_end                     choosing the best may begin
    validation, checkpoints                see all of this
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.constraints.layer import Layer
from lightning_compress.targets import Target, Targets
from lightning_compress.trainer.lightning import (
    callbacks_of,
    is_built_late,
    refuse_foreign_weights,
    refuse_strategy,
)
from lightning_compress.trainer.model_selection import Selection

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class CompressionCallback(Callback):
    """A technique that changes a model on the way to a target.

    Args:
        targets: The tensors it works on.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.num_changes = 0
        self._selection = Selection()
        self._guard: RemovableHandle | None = None

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether the target is reached, so that a best model may be chosen from now on."""

    @property
    def state_key(self) -> str:
        """Names the callback in checkpoints by what it works on, so that two of one class can stand side by side."""
        targets = self.targets
        return self._generate_state_key(include=targets.include, exclude=targets.exclude, module=targets.module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses early what cannot work."""
        if stage != "fit":
            return
        refuse_strategy(trainer, type(self).__name__)
        self._guard = refuse_foreign_weights(pl_module)
        try:
            self.check(self.layers(pl_module))
        except ValueError:
            if not is_built_late(pl_module):
                raise

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuses layers that the technique cannot work on, with a ``ValueError`` that names them."""

    def layers(self, model: nn.Module) -> list[Layer]:
        """The selected weights of a model."""
        return [Layer(t.name, t.parameter, input_dim=_input_dim(t)) for t in self.targets.select(model)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Holds back the choice of a best model; one callback does so for all."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
        if techniques(trainer)[0] is self and not _all_reached(trainer):
            self._selection.hold(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets the best model be chosen once every technique has reached its target."""
        if _all_reached(trainer):
            self._selection.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the module and the other callbacks as they were."""
        self._selection.release()
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the other callbacks as they were."""
        self.teardown(trainer, pl_module, "fit")


def _input_dim(target: Target) -> int:
    return 0 if isinstance(target.module, _TRANSPOSED) else 1


def techniques(trainer: Trainer) -> list[CompressionCallback]:
    """The compression callbacks of a Trainer."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, CompressionCallback)]


def _all_reached(trainer: Trainer) -> bool:
    return all(technique.reached for technique in techniques(trainer))
