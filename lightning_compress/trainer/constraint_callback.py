"""Base class of callbacks that enforce a constraint on weights and update it on a schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_compress.constraints.completed_steps import CompletedSteps, layers_in, optimizers_of
from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.targets import Target, Targets, shorten, unfrozen
from lightning_compress.trainer.compression_callback import CompressionCallback, techniques
from lightning_compress.trainer.progress import check_time_fits, check_times_within_run, progress
from lightning_compress.trainer.queries import averaged_models
from lightning_compress.trainer.ranks import check_ranks_agree
from lightning_compress.trainer.thawing import FrozenTargets, held_by

C = TypeVar("C", bound=Constraint)


class ConstraintCallback(CompressionCallback, Generic[C]):
    """Project weights, gradients, optimizer state and averages of the weights onto a constraint.

    The constraint is replaced at the times of a schedule, and the last update is always made.

    Args:
        targets: The constrained tensors.
        schedule: Times of the updates, and the progress towards the target at each.
    """

    constraint_class: type[C]
    noun = "constraints"
    verb = "constrained"

    def __init__(self, targets: Targets, schedule: Schedule) -> None:
        super().__init__(targets)
        self.schedule = schedule
        self.steps = 0
        self.constraint: C | None = None
        self._tick = -1
        self._finished = False
        self._starting = False
        self._optimizers: list[Optimizer] = []
        self._layers_by_optimizer: dict[int, list[Layer]] = {}
        self._hooks: list[CompletedSteps] = []
        self._frozen = FrozenTargets()

    def select(self, model: nn.Module) -> list[Target]:
        """Return the targets of a model, with weights that can be constrained only as stored (LSTM, ``Conv1D``)."""
        return self.targets.select_stored(model)

    @abstractmethod
    def update(self, trainer: Trainer, now: Progress) -> None:
        """Replace the constraint if the schedule has an update due now."""

    @property
    def reached(self) -> bool:
        """True once the last update of the schedule has been made."""
        return self._finished

    @property
    def is_fitting(self) -> bool:
        """True between the start and the teardown of a fit."""
        return self.constraint is not None

    @property
    def times(self) -> dict[str, int | float | str]:
        """Times of the schedule by name; a one-shot schedule has only a beginning."""
        names = ("begin",) if self.schedule.curve == "one_shot" else ("begin", "end", "every")
        return {name: getattr(self.schedule, name) for name in names}

    @property
    def counted_optimizer(self) -> Optimizer:
        """The optimizer that holds most of the constrained weights, and counts the completed steps."""
        return self._optimizers[0]

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        fresh: dict[str, Any] = {"constraint": None, "_optimizers": [], "_layers_by_optimizer": {}, "_hooks": []}
        fresh["_frozen"] = FrozenTargets()
        return {**super().attributes_outside_fit(), **fresh}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check strategy, targets and schedule before the fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            for name, time in self.times.items():
                check_time_fits(trainer, name, time)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the weights as the optimizers hold them, and restore the constraint."""
        state = self._fit_state.start_from(pl_module)
        self._constrain(trainer, self._constrained_layers(trainer, pl_module, state), state)
        self._fit_state.begin(pl_module)
        held = {id(layer.parameter) for layer in self._constraint.layers}
        self._frozen = FrozenTargets([t for t in self.frozen(pl_module) if id(t.parameter) not in held])
        super().on_train_start(trainer, pl_module)

    def frozen(self, model: nn.Module) -> list[Target]:
        """Return the frozen weights that become targets once they are trained."""
        return self.targets.frozen(model)

    def initial_constraint(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """Return the state of the constraint for layers that join in mid-fit."""
        return self.constraint_class(layers).state_dict()

    @property
    def _constraint(self) -> C:
        assert self.constraint is not None
        return self.constraint

    def _constrained_layers(
        self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any] | None
    ) -> list[Layer]:
        """Return the targets, with frozen ones that the state constrains: they were trained, and thaw again."""
        held, constrained = held_by(trainer.optimizers), (state or {}).get("constraint", {})
        parameters = dict(pl_module.named_parameters(remove_duplicate=False))
        with unfrozen([parameters[name] for name in constrained if id(parameters.get(name)) in held]):
            return self.layers(pl_module)

    def _constrain(self, trainer: Trainer, layers: list[Layer], state: dict[str, Any] | None) -> None:
        self.check(layers)
        _check_overlap(trainer, self, layers)
        self._optimizers = optimizers_of(trainer.optimizers, layers)
        self._layers_by_optimizer = {id(optimizer): layers_in(optimizer, layers) for optimizer in self._optimizers}
        self.constraint = self.constraint_class(layers)
        self.prepare(trainer, state)
        for hook in self._hooks:
            hook.remove()
        self._hooks = [CompletedSteps(o, partial(self._step_completed, trainer)) for o in self._optimizers]

    def take_in(self, trainer: Trainer, pl_module: LightningModule, names: Sequence[str]) -> None:
        """Continue with more layers, which are trained from now on: dense at first, up to the next update."""
        rank_zero_info(f"{type(self).__name__} takes in {shorten(list(names))}, which are trained from now on.")
        state = self.current_state()
        held = held_by(trainer.optimizers)
        layers = self._constrained_layers(trainer, pl_module, state)
        layers = [layer for layer in layers if id(layer.parameter) in held]
        state["constraint"] = {**self.initial_constraint(layers), **state["constraint"]}
        self._constrain(trainer, layers, state)
        self._finished = False  # after the end of the schedule, the next step brings them to the final target

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Start with free weights, or restore the state of an earlier fit."""
        assert self.constraint is not None
        state = state or {}
        self.steps, self._tick = state.get("steps", 0), state.get("tick", -1)
        self._finished = state.get("landed", False)
        if "constraint" in state:
            self.constraint.load_state_dict(state["constraint"])
        self._starting = True
        check_times_within_run(trainer, self.times)

    def layers_of(self, optimizer: Optimizer) -> list[Layer]:
        """Return the constrained weights that an optimizer holds."""
        return self._layers_by_optimizer.get(id(optimizer), [])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make an update that is due before the first step."""
        joining = self._frozen.pop_trained(trainer.optimizers)
        if joining:
            self.take_in(trainer, pl_module, joining)
        for hook in self._hooks:
            hook.reset()  # forget a step that raised, which manual optimization may have caught
        if self._starting and self._tick < 0:
            self.update(trainer, progress(trainer, self.steps, in_step=False, in_batch=False))
        self._starting = False

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project gradients in manual optimization, where users clip and step by themselves."""
        if not pl_module.automatic_optimization and self.constraint is not None:
            self.constraint.project_gradients_()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Project gradients before they are clipped."""
        if self.constraint is not None:
            self.constraint.project_gradients_()

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Make an update that is due after a completed step."""
        if optimizer is self.counted_optimizer:
            self.update(trainer, progress(trainer, self.steps, in_step=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the last update if the run ends without a step that could have done so."""
        now = progress(trainer, self.steps, in_step=False)
        if not self._finished and now.fraction == 1.0:
            self.update(trainer, now)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run was too short."""
        if not self.reached and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(f"{type(self).__name__}: the run ended before the target was reached.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the optimizer hooks and keep the state of the constraint."""
        for hook in self._hooks:
            hook.remove()
        super().teardown(trainer, pl_module, stage)

    def current_state(self) -> dict[str, Any]:
        """Return the constraint, the number of steps and the position in the schedule."""
        assert self.constraint is not None
        constraint = self.constraint.state_dict()
        return {"steps": self.steps, "constraint": constraint, "tick": self._tick, "landed": self._finished}

    def constraint_replaced(self, trainer: Trainer) -> None:
        """Project all that goes with the weights after the constraint has changed, and compare ranks."""
        assert self.constraint is not None
        for optimizer in self._optimizers:
            self.constraint.project_state_(optimizer)
        # Later averages need no projection: they are means of weights inside the constraint, a linear subspace.
        for average in averaged_models(trainer):
            self.constraint.project_copy_(average)
        self.num_changes += 1
        if self.constraint.layers[0].group is None:
            check_ranks_agree(trainer, self.constraint.digest(), f"{type(self).__name__}: {self.noun}")

    def _step_completed(self, trainer: Trainer, optimizer: Optimizer) -> None:
        assert self.constraint is not None
        self.constraint.project_weights_()
        self.steps += optimizer is self.counted_optimizer
        self.after_step(trainer, optimizer)


def callbacks_constraining(trainer: Trainer, kind: type[C], layer: Layer) -> Iterator[ConstraintCallback[C]]:
    """Yield the callbacks of a fit that hold a layer's weight in a constraint of the given class."""
    for other in techniques(trainer):
        if not isinstance(other, ConstraintCallback) or not isinstance(other.constraint, kind) or not other._hooks:
            continue
        if any(held.parameter is layer.parameter for held in other.constraint.layers):
            yield other


def _check_overlap(trainer: Trainer, callback: ConstraintCallback[Any], layers: Sequence[Layer]) -> None:
    for layer in layers:
        if any(other is not callback for other in callbacks_constraining(trainer, callback.constraint_class, layer)):
            raise ValueError(
                f"{layer.name!r} is {callback.verb} by two callbacks: separate them with Targets(include=...) and "
                "exclude."
            )
