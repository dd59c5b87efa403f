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

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer, group_of
from lightning_compress.constraints.optimizer_hooks import OptimizerHooks
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.targets import Target, Targets, shorten, unfrozen
from lightning_compress.trainer.compression_callback import CompressionCallback, techniques
from lightning_compress.trainer.configuration import check_same_configuration, configuration_of
from lightning_compress.trainer.fit_watch import FitWatch
from lightning_compress.trainer.progress import check_time_fits, check_times_within_run, progress
from lightning_compress.trainer.queries import averaged_models, find_frozen
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
    options: tuple[str, ...] = ()
    """Attributes that must be the same at a resume."""
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
        self._skipped: set[str] = set()  # layers that were frozen when the constraint was last replaced
        self._hooks: OptimizerHooks | None = None
        self._watch: FitWatch | None = None
        self._frozen = FrozenTargets()

    def select(self, model: nn.Module) -> list[Target]:
        """Return the targets of a model, with weights that can be constrained only as stored (LSTM, ``Conv1D``)."""
        return self.targets.select_stored(model)

    @abstractmethod
    def update(self, trainer: Trainer, now: Progress) -> None:
        """Replace the constraint if the schedule has an update due now."""

    @property
    def reached(self) -> bool:
        """True once the last update of the schedule has been made, as long as weights change only in steps."""
        return self._finished and not self.strayed

    @property
    def strayed(self) -> bool:
        """True if weights change, or are, where no constraint is projected."""
        return self._watch is not None and self._watch.strayed

    @property
    def is_fitting(self) -> bool:
        """True between the start and the teardown of a fit."""
        return self.constraint is not None

    @property
    def times(self) -> dict[str, int | float | str]:
        """Times of the schedule by name; a one-shot schedule has only a beginning."""
        names = ("begin",) if self.schedule.curve == "one_shot" else ("begin", "end", "every")
        return {name: getattr(self.schedule, name) for name in names}

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        fresh: dict[str, Any] = {"constraint": None, "_hooks": None, "_watch": None, "_frozen": FrozenTargets()}
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
        stored = (state or {}).get("configuration", {})
        check_same_configuration(type(self).__name__, stored, configuration_of(self, self.options))
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
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = OptimizerHooks(trainer.optimizers, layers, partial(self._step_completed, trainer))
        self.constraint = self.constraint_class(layers)
        self.prepare(trainer, state)
        self._watch = FitWatch(type(self).__name__, self.verb, self.constraint)

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
        self._finished, self._skipped = state.get("landed", False), set(state.get("skipped", ()))
        if "constraint" in state:
            names = {layer.name for layer in self.constraint.layers}
            frozen = _frozen_names(trainer.lightning_module) - names  # no targets any more
            self.constraint.load_state_dict({n: v for n, v in state["constraint"].items() if n not in frozen})
        self._starting = True
        check_times_within_run(trainer, self.times)

    def layers_of(self, optimizer: Optimizer) -> list[Layer]:
        """Return the constrained weights that an optimizer holds."""
        return [] if self._hooks is None else self._hooks.layers_of(optimizer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make an update that is due before the first step, and notice changes that the hooks do not see."""
        joining = self._frozen.pop_trained(trainer.optimizers)
        if joining:
            self.take_in(trainer, pl_module, joining)
        assert self._hooks is not None
        assert self._watch is not None
        self._hooks.reset()  # forget a step that raised, which manual optimization may have caught
        self._watch.lose(self._hooks.follow(trainer.optimizers))
        self._watch.batch_started(pl_module)
        self._find_frozen(pl_module)
        if self._starting and self._tick < 0:
            self.update(trainer, progress(trainer, self.steps, in_step=False, in_batch=False))
            self._watch.check_steps()  # from now on weights stay as they are until a step is completed
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
        if self._counts(optimizer):
            self.update(trainer, progress(trainer, self.steps, in_step=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the last update if the run ends without a step that could have done so."""
        assert self._watch is not None
        now = progress(trainer, self.steps, in_step=False)
        if not self._finished and now.fraction == 1.0:
            self._watch.check_steps()
            if not self.strayed:
                self.update(trainer, now)
        self._watch.batch_ended()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run was too short, or if weights have changed where no hook sees it."""
        assert self._watch is not None
        self._watch.check_steps()
        self._watch.check_weights(pl_module)
        if not self.reached and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(f"{type(self).__name__}: the run ended before the target was reached.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the optimizer hooks and keep the state of the constraint."""
        if self._hooks is not None:
            self._hooks.remove()
        super().teardown(trainer, pl_module, stage)

    def current_state(self) -> dict[str, Any]:
        """Return the constraint, the number of steps and the position in the schedule."""
        assert self.constraint is not None
        return {
            "configuration": configuration_of(self, self.options),
            "steps": self.steps,
            "constraint": self.constraint.state_dict(),
            "tick": self._tick,
            "landed": self._finished,
            "skipped": sorted(self._skipped),
        }

    def constraint_replaced(self, trainer: Trainer) -> None:
        """Project all that goes with the weights after the constraint has changed, and compare ranks."""
        assert self.constraint is not None
        for optimizer in self._hooks.holders if self._hooks is not None else ():
            self.constraint.project_state_(optimizer)
        # Later averages need no projection: they are means of weights inside the constraint, a linear subspace.
        for average in averaged_models(trainer):
            self.constraint.project_copy_(average)
        self.num_changes += 1
        self._skipped = {self.constraint.layers[i].name for i in self.constraint.frozen}
        if self._watch is not None:
            self._watch.step_completed()
        if group_of(self.constraint.layers) is None:
            check_ranks_agree(trainer, self.constraint.digest(), f"{type(self).__name__}: {self.noun}")

    @property
    def _is_incomplete(self) -> bool:
        """True if a layer that was frozen at the last update is trained again."""
        assert self.constraint is not None
        frozen = {self.constraint.layers[i].name for i in self.constraint.frozen}
        return bool(self._skipped - frozen)

    def _counts(self, optimizer: Optimizer) -> bool:
        return self._hooks is not None and self._hooks.counts(optimizer)

    def _step_completed(self, trainer: Trainer, optimizer: Optimizer) -> None:
        assert self.constraint is not None
        assert self._watch is not None
        self._find_frozen(trainer.lightning_module)
        self.constraint.project_weights_()
        self._watch.step_completed()
        self.steps += self._counts(optimizer)
        self.after_step(trainer, optimizer)

    def _find_frozen(self, pl_module: LightningModule) -> None:
        """Leave layers alone that are frozen by now, and say so."""
        assert self.constraint is not None
        layers, before = self.constraint.layers, self.constraint.frozen
        frozen = find_frozen(pl_module, [layer.parameter for layer in layers])
        if frozen - before and not self._finished:
            names = shorten([layers[i].name for i in sorted(frozen - before)])
            rank_zero_warn(
                f"{type(self).__name__}: {names} are frozen before the target is reached; they stay as they are, and "
                "the target applies to the other layers."
            )
        self.constraint.frozen = frozen


def _frozen_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def callbacks_constraining(trainer: Trainer, kind: type[C], layer: Layer) -> Iterator[ConstraintCallback[C]]:
    """Yield the callbacks of a fit that hold a layer's weight in a constraint of the given class."""
    for other in techniques(trainer):
        if not isinstance(other, ConstraintCallback) or not isinstance(other.constraint, kind) or other._hooks is None:
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
