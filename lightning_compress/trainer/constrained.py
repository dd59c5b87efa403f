"""Callbacks that hold weights in a constraint."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_compress.constraints.completed_steps import CompletedSteps, held_layers, owners
from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.targets import Targets
from lightning_compress.trainer.base import CompressionCallback, techniques
from lightning_compress.trainer.lightning import averaged_models
from lightning_compress.trainer.model_selection import Selection
from lightning_compress.trainer.ranks import check_ranks_agree

C = TypeVar("C", bound=Constraint)


class ConstraintCallback(CompressionCallback, Generic[C]):
    """Holds a constraint: projects weights, gradients, optimizer state and averages onto it.

    Args:
        targets: The constrained tensors.
    """

    what = "constraints"
    verb = "constrained"

    def __init__(self, targets: Targets) -> None:
        super().__init__(targets)
        self.steps = 0
        self.constraint: C | None = None
        self._optimizers: list[Optimizer] = []
        self._held: dict[int, list[Layer]] = {}
        self._hooks: list[CompletedSteps] = []
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, for whatever model is fitted next
        self._kept: dict[str, Any] | None = None  # from the last fit, for the model it was of
        self._model: weakref.ref[nn.Module] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the weights where the optimizers hold them; restores the constraint."""
        kept = self._kept if self._model is not None and self._model() is pl_module else None
        layers = self.layers(pl_module)
        self.check(layers)
        _refuse_overlap(trainer, self, layers)
        self._optimizers = owners(trainer.optimizers, layers)
        self._held = {id(optimizer): held_layers(optimizer, layers) for optimizer in self._optimizers}
        self.constraint = self.make_constraint(layers)
        self._model = weakref.ref(pl_module)
        self.prepare(trainer, self._loaded or kept)
        self._loaded = self._kept = None
        self._hooks = [CompletedSteps(o, partial(self._step_completed, trainer)) for o in self._optimizers]
        super().on_train_start(trainer, pl_module)

    @abstractmethod
    def make_constraint(self, layers: Sequence[Layer]) -> C:
        """A constraint that constrains nothing yet."""

    @abstractmethod
    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Begins the fit, from a state of an earlier one if there is one."""

    @property
    def clock(self) -> Optimizer:
        """The optimizer that holds most of the weights; its completed steps are counted."""
        return self._optimizers[0]

    def held_by(self, optimizer: Optimizer) -> list[Layer]:
        """The constrained weights that an optimizer holds."""
        return self._held.get(id(optimizer), [])

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Called after each completed step of an optimizer that holds constrained weights."""

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
        """Takes the hooks off the optimizers and keeps the constraint's state."""
        super().teardown(trainer, pl_module, stage)
        if self.constraint is None:
            return
        self._kept = self.state_dict()
        self.constraint = None
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizers, self._held = [], [], {}

    def state_dict(self) -> dict[str, Any]:
        """The constraint, and the number of steps; a collective under a sharding strategy."""
        if self.constraint is None:
            return dict(self._loaded or self._kept or {})
        return {"steps": self.steps, "constraint": self.constraint.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a state until the fit begins, since under a sharding strategy weights are not there before."""
        self._loaded = state_dict

    def update_constraint(self, trainer: Trainer) -> None:
        """After a change of the constraint: projects what goes with the weights, makes sure that all ranks agree."""
        assert self.constraint is not None
        for optimizer in self._optimizers:
            self.constraint.project_state_(optimizer)
        # From here on averages stay in the constraint: they are made of weights that are.
        for average in averaged_models(trainer):
            self.constraint.project_copy_(average)
        self.num_changes += 1
        if self.constraint.layers[0].group is None:
            check_ranks_agree(trainer, self.constraint.digest(), f"{type(self).__name__}: {self.what}")

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


def constraints_on(trainer: Trainer, kind: type[C], layer: Layer) -> Iterator[ConstraintCallback[C]]:
    """The callbacks of a fit that hold a layer's weight in a constraint of a kind."""
    for other in techniques(trainer):
        if not isinstance(other, ConstraintCallback) or not isinstance(other.constraint, kind) or not other._hooks:
            continue
        if any(held.parameter is layer.parameter for held in other.constraint.layers):
            yield other


def _refuse_overlap(trainer: Trainer, callback: ConstraintCallback[Any], layers: Sequence[Layer]) -> None:
    kind = type(callback.make_constraint([]))
    for layer in layers:
        if any(other is not callback for other in constraints_on(trainer, kind, layer)):
            raise ValueError(
                f"{layer.name!r} is {callback.verb} by two callbacks: separate them with Targets(include=...) and "
                "exclude."
            )
