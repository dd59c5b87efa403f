"""Callbacks that hold zeros."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_compress.callbacks.base import Compression, techniques
from lightning_compress.callbacks.lightning import averaged_models
from lightning_compress.callbacks.ranks import check_ranks_agree
from lightning_compress.callbacks.selection import Selection
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.constraints.optimizer import CompletedSteps, held_layers, owners
from lightning_compress.targets import Targets


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
        self._held: dict[int, list[Layer]] = {}
        self._hooks: list[CompletedSteps] = []
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
        self._held = {id(optimizer): held_layers(optimizer, layers) for optimizer in self._optimizers}
        self.constraint = MaskConstraint(layers)
        self._model = weakref.ref(pl_module)
        self.prepare(trainer, self._loaded or kept)
        self._loaded = self._kept = None
        self._hooks = [CompletedSteps(o, partial(self._step_completed, trainer)) for o in self._optimizers]
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
        return self._held.get(id(optimizer), [])

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Called after each completed step of an optimizer that holds masked weights."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forgets a step that raised, which manual optimization may have caught."""
        for hook in self._hooks:
            hook.begin()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Projects gradients where the user clips and steps by hand."""
        if not pl_module.automatic_optimization and self.constraint is not None:
            self.constraint.project_gradients_()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Projects gradients before they are clipped."""
        if self.constraint is not None:
            self.constraint.project_gradients_()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so if the run was too short."""
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
        self._hooks, self._optimizers, self._held = [], [], {}

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
        # From here on averages stay on the mask: they are made of weights that are on it.
        for average in averaged_models(trainer):
            self.constraint.project_copy_(average)
        self.num_changes += 1
        if self.constraint.layers[0].group is None:
            check_ranks_agree(trainer, self.constraint.digest(), f"{type(self).__name__}: masks")

    def _step_completed(self, trainer: Trainer, optimizer: Optimizer) -> None:
        assert self.constraint is not None
        self.constraint.project_weights_()
        self.steps += optimizer is self.clock
        self.after_step(trainer, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs; hooks, weights and what Lightning attached are found anew by the next fit."""
        fresh: dict[str, Any] = {
            "_selection": Selection(),
            "_guard": None,
            "_optimizers": [],
            "_held": {},
            "_hooks": [],
        }
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        loaded = self.state_dict() or None
        return {**state, **fresh, "constraint": None, "_model": None, "_loaded": loaded, "_kept": None}


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
