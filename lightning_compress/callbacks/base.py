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
    on_train_batch_end                     averages of the weights are projected; choosing the best may begin
    validation, checkpoints                see all of this
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.callbacks.lightning import (
    averaged_models,
    callbacks_of,
    is_built_late,
    refuse_foreign_weights,
    refuse_strategy,
    run_after_averaging,
)
from lightning_compress.callbacks.selection import Selection
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.constraints.optimizer import owners, step_was_skipped
from lightning_compress.targets import Target, Targets

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Compression(Callback):
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
        run_after_averaging(trainer, self)
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


class MaskCallback(Compression):
    """Holds zeros: projects weights, gradients, optimizer state and averages onto masks.

    Args:
        targets: The masked tensors.
    """

    def __init__(self, targets: Targets) -> None:
        super().__init__(targets)
        self.steps = 0
        self.constraint: MaskConstraint | None = None
        self._optimizers: list[Optimizer] = []
        self._hooks: list[Any] = []
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, for whatever model is fitted next
        self._kept: dict[str, Any] | None = None  # from the last fit, for the model it was of
        self._model: weakref.ref[nn.Module] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the weights where the optimizers hold them; restores masks."""
        kept = self._kept if self._model is not None and self._model() is pl_module else None
        layers = self.layers(pl_module)
        self.check(layers)
        _refuse_overlap(trainer, self, layers)
        self._optimizers = owners(trainer.optimizers, layers)
        self.constraint = MaskConstraint(layers)
        self._model = weakref.ref(pl_module)
        self.prepare(trainer, self._loaded or kept)
        self._loaded = self._kept = None
        self._hooks = [o.register_step_post_hook(self._step_hook(trainer)) for o in self._optimizers]
        super().on_train_start(trainer, pl_module)

    @abstractmethod
    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Begins the fit, from a state of an earlier one if there is one."""

    @property
    def clock(self) -> Optimizer:
        """The optimizer that holds most of the weights; its completed steps are counted."""
        return self._optimizers[0]

    def held_by(self, optimizer: Optimizer) -> list[Layer]:
        """The masked weights that an optimizer holds."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [layer for layer in self.constraint.layers if id(layer.parameter) in held] if self.constraint else []

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Called after each completed step of an optimizer that holds masked weights."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Projects gradients where the user clips and steps by hand."""
        if not pl_module.automatic_optimization and self.constraint is not None:
            self.constraint.project_gradients_()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Projects gradients before they are clipped."""
        if self.constraint is not None:
            self.constraint.project_gradients_()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Projects averages after their update."""
        self._project_averages(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Projects averages after their update, and the weights in case an average was copied into them."""
        self._project_averages(trainer)
        if self.constraint is not None:
            self.constraint.project_weights_()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Projects averages after their update."""
        self._project_averages(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Projects the weights in case an average was copied into them."""
        if self.constraint is not None:
            self.constraint.project_weights_()
        if not self.reached and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(f"{type(self).__name__}: the run ended before the target was reached.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the hooks off the optimizers and keeps the masks as packed bits."""
        super().teardown(trainer, pl_module, stage)
        if self.constraint is None:
            return
        self._kept = self.state_dict()
        self.constraint = None
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizers = [], []

    def state_dict(self) -> dict[str, Any]:
        """Masks as packed bits, and the number of steps; a collective under a sharding strategy."""
        if self.constraint is None:
            return dict(self._loaded or self._kept or {})
        return {"steps": self.steps, "masks": self.constraint.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a state until the fit begins, since under a sharding strategy weights are not there before."""
        self._loaded = state_dict

    def update_constraint(self, trainer: Trainer) -> None:
        """After the masks have changed: projects what goes with the weights, and makes sure that all ranks agree."""
        assert self.constraint is not None
        for optimizer in self._optimizers:
            self.constraint.project_state_(optimizer)
        self._project_averages(trainer)
        self.num_changes += 1
        if self.constraint.layers[0].group is None:
            _check_ranks_agree(trainer, self.constraint.digest(), type(self).__name__)

    def _step_hook(self, trainer: Trainer) -> Any:
        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self.constraint is None or step_was_skipped(optimizer):
                return
            self.constraint.project_weights_()
            self.steps += optimizer is self.clock
            self.after_step(trainer, optimizer)

        return hook

    def _project_averages(self, trainer: Trainer) -> None:
        for average in averaged_models(trainer):
            if self.constraint is not None:
                self.constraint.project_copy_(average)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs; hooks, weights and what Lightning attached are found anew by the next fit."""
        fresh: dict[str, Any] = {"_selection": Selection(), "_guard": None, "_optimizers": [], "_hooks": []}
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        loaded = self.state_dict() or None
        return {**state, **fresh, "constraint": None, "_model": None, "_loaded": loaded, "_kept": None}


def _input_dim(target: Target) -> int:
    return 0 if isinstance(target.module, _TRANSPOSED) else 1


def techniques(trainer: Trainer) -> list[Compression]:
    """The compression callbacks of a Trainer."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Compression)]


def _all_reached(trainer: Trainer) -> bool:
    return all(technique.reached for technique in techniques(trainer))


def _refuse_overlap(trainer: Trainer, callback: MaskCallback, layers: Sequence[Layer]) -> None:
    for other in techniques(trainer):
        if other is callback or not isinstance(other, MaskCallback) or other.constraint is None or not other._hooks:
            continue
        theirs = {id(layer.parameter) for layer in other.constraint.layers}
        for layer in layers:
            if id(layer.parameter) in theirs:
                raise ValueError(
                    f"{layer.name!r} is masked by two callbacks: separate them with Targets(include=...) and exclude."
                )


def _check_ranks_agree(trainer: Trainer, digest: bytes, technique: str) -> None:
    if trainer.world_size == 1:
        return
    mine = torch.tensor(list(digest), dtype=torch.uint8, device=trainer.strategy.root_device)
    everywhere = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(everywhere, mine)
    if any(not torch.equal(mine, other) for other in everywhere):
        raise RuntimeError(f"{technique}: masks differ between ranks; do all ranks hold the same weights?")
