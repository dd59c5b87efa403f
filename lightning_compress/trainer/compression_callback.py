"""Base class of the compression techniques.

One training step of Lightning, and the work of a constraint in it::

    on_train_batch_start                   the batch is stored; a constraint due at step 0 is set up
    training_step, backward  (x accumulation)
        on_after_backward                  manual optimization only: gradients are projected
    on_before_optimizer_step               dense gradients are read, then gradients are projected
    gradient clipping
    optimizer.step
        step post-hook                     if the step was made: weights are projected, the step is counted,
                                           and where an update is due the constraint is replaced
                                           (optimizer state and averages of the weights are projected then, too)
    on_train_batch_end                     selection of a best model may begin
    validation, checkpoints                see all of this
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.constraints.layer import Layer
from lightning_compress.layer_kinds import find_input_dim
from lightning_compress.sharded_modules import reshard
from lightning_compress.targets import Target, Targets
from lightning_compress.trainer.coverage import measure_coverage
from lightning_compress.trainer.fit_state import FitState
from lightning_compress.trainer.model_selection import ModelSelection
from lightning_compress.trainer.queries import (
    callbacks_of,
    check_strategy,
    check_trainer,
    guard_weight_loading,
    is_built_late,
)


class CompressionCallback(Callback):
    """Base of a technique that brings a model to a target during a fit.

    Args:
        targets: The tensors to compress.

    Attributes:
        num_changes: Number of changes to the model's compression so far, which monitors watch.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.num_changes = 0
        self._fit_state = FitState()
        self._selection = ModelSelection()
        self._guard: RemovableHandle | None = None

    @property
    @abstractmethod
    def reached(self) -> bool:
        """True once the target is reached, so that a best model may be selected."""

    @property
    @abstractmethod
    def is_fitting(self) -> bool:
        """True between the start and the teardown of a fit."""

    @property
    def computes_by_shard(self) -> bool:
        """True if no more of a layer is needed than a rank has under tensor parallelism."""
        return True

    @abstractmethod
    def current_state(self) -> dict[str, Any]:
        """Return the state during a fit: tensors, numbers, strings, lists and dicts only."""

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        return {"_guard": None}

    @property
    def state_key(self) -> str:
        """Key of the callback in checkpoints; it depends on the targets, so that two of one class can coexist."""
        targets = self.targets
        return self._generate_state_key(include=targets.include, exclude=targets.exclude, module=targets.module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy and the targets before the fit."""
        check_trainer(trainer, type(self).__name__)
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__, by_shard=self.computes_by_shard)
        self._guard = guard_weight_loading(pl_module)
        try:
            self.check(self.layers(pl_module))
        except ValueError:
            # Layers that are made in setup or configure_model are checked in on_train_start.
            if not is_built_late(pl_module):
                raise

    def on_after_setup(self, fabric: object, module: object) -> None:
        """Raise a ``ValueError``: Fabric calls this, and a Trainer does not."""
        check_trainer(fabric, type(self).__name__)

    def on_after_optimizer_step(self, strategy: object, optimizer: object) -> None:
        """Raise a ``ValueError``, as :meth:`on_after_setup` does for modules that were set up by themselves."""
        check_trainer(strategy, type(self).__name__)

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise a ``ValueError`` that names layers that the technique does not support."""

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the selected weights of a model."""
        return [_layer(target) for target in self.select(model)]

    def select(self, model: nn.Module) -> list[Target]:
        """Return the targets of a model."""
        return self.targets.select(model)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a sharded model hold the parameters of the optimizer again, which are looked up by name."""
        reshard(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which share of the weights is covered, and suspend the selection of a best model."""
        self._remove_guard()
        self._say_coverage(pl_module)
        # Only the first technique does so, since each resumes the callbacks that it suspended itself.
        if techniques(trainer)[0] is self and not _all_reached(trainer):
            self._selection.suspend(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Resume the selection of a best model once all techniques have reached their targets."""
        if _all_reached(trainer):
            self._selection.resume()

    def fit_metrics(self) -> dict[str, float]:
        """Return numbers of the whole technique for monitors, by name."""
        return {}

    def layer_metrics(self, pl_module: LightningModule) -> dict[str, dict[str, float]]:
        """Return numbers of each layer for monitors, by kind and name, such as ``{"clusters": {"net.0.weight": 16}}``.

        Args:
            pl_module: Model of the fit.
        """
        return {}

    def leaves_out(self, layer: str, module: nn.Module) -> bool:
        """Return True if the user has left out a layer."""
        return self.targets.leaves_out(layer, module)

    def covered(self, pl_module: LightningModule) -> set[int]:
        """Return the ids of the parameters that are compressed."""
        return {id(layer.parameter) for layer in self.layers(pl_module)}

    @property
    def advice_on_rest(self) -> str:
        """Advice for weights that are not covered."""
        return (
            "name further layer types in Targets(types=...), set requires_grad of frozen layers, or leave layers out "
            "by Targets(exclude=...)."
        )

    def _say_coverage(self, pl_module: LightningModule) -> None:
        coverage = measure_coverage(pl_module, self.covered(pl_module), self.targets.module, self.leaves_out)
        name = type(self).__name__
        rank_zero_info(
            f"{name} covers {coverage.share:.1%} of the weights ({coverage.num_covered:,} of {coverage.num_weights:,})."
        )
        if coverage.is_small:
            rank_zero_warn(
                f"{name} covers {coverage.share:.1%} of the weights; most of the rest is in "
                f"{coverage.describe_rest()}: {self.advice_on_rest}"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the other callbacks, keep the state for a next fit and release the model."""
        self._selection.resume()
        self._remove_guard()
        if self.is_fitting:
            self._fit_state.keep(self.state_dict())
        vars(self).update(self.attributes_outside_fit())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Clean up as after a fit, since Lightning calls no ``teardown`` then."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; a collective under a sharding strategy."""
        return self.current_state() if self.is_fitting else self._fit_state.saved()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a state until the fit begins, since sharded weights do not exist before."""
        self._fit_state.load(state_dict)

    def _remove_guard(self) -> None:
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy: without hooks, weights, and methods that Lightning attached."""
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        fit_state = FitState(self.state_dict() or None)
        return {**state, "_fit_state": fit_state, "_selection": ModelSelection(), **self.attributes_outside_fit()}


def _layer(target: Target) -> Layer:
    dim = find_input_dim(target.module, target.name.rpartition(".")[2])
    return Layer(target.name, target.parameter, 1 if dim is None else dim, knows_input_dim=dim is not None)


def techniques(trainer: Trainer) -> list[CompressionCallback]:
    """Return the compression callbacks of a Trainer in the order in which they are called."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, CompressionCallback)]


def _all_reached(trainer: Trainer) -> bool:
    return all(technique.reached for technique in techniques(trainer))
