"""Pruning callback: masks that follow a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import final

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.masked_norms import attach_norms_
from lightning_compress.pruning.channel_pruner import ChannelPruner
from lightning_compress.pruning.distributions import Distribution, Uniform
from lightning_compress.pruning.growth import Growth
from lightning_compress.pruning.model_channel_groups import ModelChannelGroups
from lightning_compress.pruning.narrowed_norms import attach_for_evaluation_
from lightning_compress.pruning.patterns import NM, Pattern, Unstructured, WeightPattern
from lightning_compress.pruning.probe_scores import ProbeScore, probe_score
from lightning_compress.pruning.pruner import Pruner, WeightPruner
from lightning_compress.pruning.ranking_groups import make_ranking_groups
from lightning_compress.pruning.recalibration import check_loader, recalibrate_norms
from lightning_compress.pruning.rewind import Rewind
from lightning_compress.pruning.scores import Magnitude, Score
from lightning_compress.pruning.snapshot import Snapshot
from lightning_compress.pruning.structured_patterns import StructuredPattern
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.serialization import plain_mapping
from lightning_compress.sharded_modules import full_tensor
from lightning_compress.targets import Target, Targets, matches, shorten
from lightning_compress.trainer.constraint_callback import ConstraintCallback
from lightning_compress.trainer.probe import TrainingProbe
from lightning_compress.trainer.progress import check_time_fits, progress
from lightning_compress.trainer.queries import averaged_models, callbacks_of, check_strategy, is_a, loss_scale


@final
class Pruning(ConstraintCallback[MaskConstraint]):
    """Prune weights on a schedule while the model trains, and keep them exactly zero.

    Weights stay plain parameters under their own names. They are projected onto the mask after every completed
    optimizer step, gradients before clipping, optimizer state and averages of the weights when the mask changes.
    Gradual magnitude pruning after Zhu and Gupta 2017 (arXiv:1710.01878) is the default.

    Args:
        sparsity: Fraction of zeros among the selected weights at the end of the schedule, in [0, 1); or a mapping
            from globs over layer names to sparsities. The first glob that matches a layer applies, the layers of each
            glob are ranked among themselves, and layers without a match stay dense.
        pattern: Sparsity pattern of the masks.
        score: Importance score of the weights; the lowest are pruned.
        scope: Rank all layers together (``"global"``; no layer loses its last unit) or each by itself (``"layer"``).
        schedule: Times of the mask updates and the sparsity at each.
        targets: Selection of the weights.
        distribution: Distribution of the sparsity over layers that are then ranked one by one; ``None`` leaves that to
            ``scope``.
        growth: Drop-and-grow rule that is applied at every update after the first (dynamic sparse training).
        rewind: State that returns to an earlier value after each update.
        recalibrate: Number of training batches from which batch-norm statistics are re-estimated after each update; of
            a sharded model (FSDP2) on a whole copy on each rank, as with scores that need passes of their own.
        example_inputs: Arguments of the deployable submodule (a tensor, a tuple, or a dict of keyword arguments), for
            scores that call it; by default the module's ``example_input_array``, or the arguments that it receives in
            a training step.

    Raises:
        ValueError: If the sparsity lies outside of [0, 1) or is not possible with the pattern, and if options exclude
            each other; in ``setup`` if targets match nothing, layers do not fit the pattern, or the strategy is not
            supported.

    >>> from lightning.pytorch import Trainer
    >>> callback = Pruning(0.9, schedule=Schedule(begin=0.1, end=0.6))
    >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    constraint_class = MaskConstraint
    options = ("sparsity", "pattern", "score", "distribution", "growth", "rewind", "recalibrate", "schedule")
    noun = "masks"
    verb = "masked"

    def __init__(
        self,
        sparsity: float | Mapping[str, float],
        *,
        pattern: Pattern = Unstructured(),
        score: Score = Magnitude(),
        scope: Literal["global", "layer"] = "global",
        schedule: Schedule = Schedule(),
        targets: Targets = Targets(),
        distribution: Distribution | None = None,
        growth: Growth | None = None,
        rewind: Rewind | None = None,
        recalibrate: int | None = None,
        example_inputs: Any = None,
    ) -> None:
        super().__init__(targets, schedule)
        sparsity = plain_mapping(sparsity)
        for value in sparsity.values() if isinstance(sparsity, Mapping) else (sparsity,):
            _check_sparsity(value, pattern)
        if isinstance(pattern, NM) and (distribution is not None or growth is not None):
            raise ValueError("NM fixes the sparsity of every layer: leave distribution and growth out.")
        if scope not in ("global", "layer"):
            raise ValueError(f"scope={scope!r} is unknown: write 'global' or 'layer'.")
        if isinstance(pattern, StructuredPattern):
            is_global = scope == "global" and not isinstance(sparsity, Mapping)
            _check_structured(pattern, is_global=is_global, is_plain=distribution is None and growth is None)
        if growth is not None and rewind is not None:
            raise ValueError("growth and rewind exclude each other: weights that grow have no earlier value.")
        if recalibrate is not None and recalibrate < 1:
            raise ValueError(f"recalibrate={recalibrate} must be at least one batch, or None.")
        self.sparsity = sparsity
        self.scope = scope
        self.pattern = pattern
        self.score = score
        self.distribution = Uniform() if distribution is None and scope == "layer" else distribution
        self.growth = growth
        self.rewind = rewind
        self.recalibrate = recalibrate
        self.example_inputs = example_inputs
        self._pruner: Pruner[Any] | None = None
        self._channel_groups: ModelChannelGroups | None = None
        self._snapshot: Snapshot | None = None
        self._gradients: dict[str, Tensor] = {}
        self._batch: tuple[Any, int] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check options, strategy and targets before the fit; find the channel groups of the model."""
        if stage == "fit" and isinstance(self.pattern, StructuredPattern):
            check_strategy(trainer, "Pruning")
            self._channel_groups = ModelChannelGroups(
                trainer, pl_module, self.pattern, self.targets, self.example_inputs
            )
            ranking_groups = self._channel_groups.ranking_groups(
                pl_module, self.sparsity, per_group=self.scope == "layer"
            )
            self._channel_groups.check(ranking_groups)
        super().setup(trainer, pl_module, stage)
        if isinstance(self.pattern, StructuredPattern) and self.pattern.width:
            self._prepare_norms(trainer, pl_module)
        if stage != "fit":
            return
        if self.rewind is not None:
            check_time_fits(trainer, "to", self.rewind.to)
        if not pl_module.automatic_optimization and (self.recalibrate or self._probe_score):
            option = "recalibrate" if self.recalibrate else type(self.score).__name__
            raise ValueError(
                f"{option} runs training_step by itself, which manual optimization does not allow: "
                "score with Magnitude, Taylor or Movement, and set recalibrate to None."
            )

    def _prepare_norms(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let norms skip masked channels, in evaluation those of the weights that are loaded later."""
        if any(is_a(callback, "QuantizationAwareTraining") for callback in callbacks_of(trainer)):
            raise ValueError(
                "Channels(width=True) does not support QuantizationAwareTraining in the same run: remove the channels "
                "with shrink, then train the smaller model with quantization."
            )
        if self._channel_groups is not None:
            attach_norms_(pl_module, self._channel_groups.norms)
        elif self.targets.module in dict(pl_module.named_modules()):
            attach_for_evaluation_(pl_module.get_submodule(self.targets.module))

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the selected weights, or all tensors that produce the channels of the selected groups."""
        return super().layers(model) if self._channel_groups is None else self._channel_groups.layers(model)

    def leaves_out(self, layer: str, module: nn.Module) -> bool:
        """Return True if the user has left out a layer, by targets or by the globs of the sparsity."""
        globs = self.sparsity if isinstance(self.sparsity, Mapping) else ("*",)
        return super().leaves_out(layer, module) or not any(matches(glob, layer) for glob in globs)

    @property
    def advice_on_rest(self) -> str:
        """Advice for weights that are not covered."""
        of_channels = "their channels are outputs of the model, or cannot be removed without a change of its function."
        return of_channels if isinstance(self.pattern, StructuredPattern) else super().advice_on_rest

    def check(self, layers: Sequence[Layer]) -> None:
        """Check the layers against the pattern, the sparsity and the other options.

        Raises:
            ValueError: For layers that do not fit the pattern or would lose all of their weights, and for options that
                sharded weights do not support.
        """
        if isinstance(self.pattern, WeightPattern):
            misfits = self.pattern.misfits(layers)
            if misfits:
                raise ValueError(misfits)
            make_ranking_groups(layers, self.sparsity, self.distribution, unit_size=self.pattern.unit_size)

    def frozen(self, model: nn.Module) -> list[Target]:
        """Return the frozen weights that become targets once they are trained; channels are found before the fit."""
        return [] if isinstance(self.pattern, StructuredPattern) else super().frozen(model)

    def take_in(self, trainer: Trainer, pl_module: LightningModule, names: Sequence[str]) -> None:
        """Continue with more layers, which are trained from now on.

        Raises:
            ValueError: If there is something to rewind, which was recorded without these layers.
        """
        if self.rewind is not None:
            raise ValueError(
                f"{type(self.rewind).__name__} does not support layers that thaw during the fit ({shorten(list(names))}"
                "): exclude them, or set rewind to None."
            )
        super().take_in(trainer, pl_module, names)

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Start dense, or restore masks, accumulated scores and the snapshot."""
        super().prepare(trainer, state)
        assert self.constraint is not None
        state = state or {}
        self._pruner = self._make_pruner(trainer.lightning_module, self.constraint)
        if self._channel_groups is not None:  # averages may be older than the hooks of the model
            for average in averaged_models(trainer):
                attach_norms_(average, self._channel_groups.norms)
        if self._pruner.accumulator is not None:
            self._pruner.accumulator.load_state_dict(self.constraint.layers, state.get("accumulated_scores", {}))
        self._snapshot = (
            Snapshot.from_state(state["snapshot"], trainer.lightning_module) if state.get("snapshot") else None
        )
        if self.recalibrate is not None:
            check_loader(trainer)

    def current_state(self) -> dict[str, Any]:
        """Return masks, counters, accumulated scores and the snapshot to rewind to."""
        assert self.constraint is not None
        accumulator = None if self._pruner is None else self._pruner.accumulator
        return {
            **super().current_state(),
            "accumulated_scores": {} if accumulator is None else accumulator.state_dict(self.constraint.layers),
            "snapshot": self._snapshot.state_dict() if self._snapshot else None,
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch for scores that need one, and make an update that is due before the first step."""
        self._batch = (batch, batch_idx)
        if self._starting and self._probe_score is not None:
            assert self.constraint is not None
            self._probe_score.check(self._probe(trainer), [layer.name for layer in self.constraint.layers])
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project gradients in manual optimization, unless growth reads dense ones before the step."""
        if not self._needs_gradients(trainer):
            super().on_after_backward(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read dense gradients if score or growth needs them, then project them."""
        if self._pruner is not None:
            layers = self.layers_of(optimizer)
            if self._pruner.accumulator is not None:
                self._pruner.accumulator.read(layers, loss_scale(trainer, optimizer))
            if self._needs_gradients(trainer):
                self._read_gradients(layers)
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Count the gradients that were read, and make an update that is due."""
        assert self._pruner is not None
        if self._pruner.accumulator is not None:
            self._pruner.accumulator.step_completed(self.layers_of(optimizer))
        super().after_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Release the batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = None

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        fresh: dict[str, Any] = {
            "_pruner": None,
            "_channel_groups": None,
            "_snapshot": None,
            "_batch": None,
            "_gradients": {},
        }
        return {**super().attributes_outside_fit(), **fresh}

    @property
    def _probe_score(self) -> ProbeScore | None:
        return probe_score(self.score, channels=isinstance(self.pattern, StructuredPattern))

    @property
    def times(self) -> dict[str, int | float | str]:
        """Times of the schedule by name; dynamic sparse training goes on after a one-shot mask."""
        every = {name: getattr(self.schedule, name) for name in ("begin", "end", "every")}
        return super().times if self.growth is None else every

    @property
    def _is_single(self) -> bool:
        return self.schedule.curve == "one_shot" and self.growth is None

    def _is_due(self, now: Progress) -> bool:
        if not now.reached(self.schedule.begin):
            return False
        if self._finished and self._is_incomplete:
            return True
        if self._is_single:
            return not self._finished
        ticked = self.schedule.tick(now) > self._tick
        if self._finished:
            return self.growth is not None and ticked and not now.reached(self.schedule.end)
        return ticked or self.schedule.finished(now)

    def _read_gradients(self, layers: Sequence[Layer]) -> None:
        """Keep dense gradients until the update; those of a step that was skipped are dropped."""
        for layer in layers:
            self._gradients.pop(layer.name, None)
            if layer.parameter.grad is not None:
                self._gradients[layer.name] = layer.gradient.clone()

    def _needs_gradients(self, trainer: Trainer) -> bool:
        if self.growth is None or not self.growth.needs_gradient or self._tick < 0:
            return False
        return self._is_due(progress(trainer, self.steps + 1, in_step=True))

    def update(self, trainer: Trainer, now: Progress) -> None:
        """Take the snapshot to rewind to, and replace the masks, if the schedule has either due now."""
        if self.rewind is not None and self._snapshot is None and now.reached(self.rewind.to):
            self._snapshot = Snapshot.take(trainer, weights=self.rewind.weights)
        if self._pruner is None or not self._is_due(now) or not self._pruner.is_ready:
            return
        assert self.constraint is not None
        first = self._tick < 0
        self._pruner.update(
            lambda target: self.schedule.sparsity(target, now),
            step=self.steps,
            probe=lambda: self._probe(trainer),
            drop_and_grow=self.schedule.ramp(now) if self.growth is not None and not first else None,
            gradients=self._gradients,
        )
        self._gradients = {}
        self._tick, self._finished = 0 if self._is_single else self.schedule.tick(now), self.schedule.finished(now)
        if self._snapshot is not None:
            self._snapshot.restore_(trainer)
            self.constraint.project_weights_()
        self.constraint_replaced(trainer)
        if self.recalibrate is not None:
            recalibrate_norms(trainer, self._probe(trainer), num_batches=self.recalibrate, seed=self.steps)

    def _make_pruner(self, model: nn.Module, constraint: MaskConstraint) -> Pruner[Any]:
        layers, pattern, score = constraint.layers, self.pattern, self.score
        if isinstance(pattern, WeightPattern):
            groups = make_ranking_groups(layers, self.sparsity, self.distribution, unit_size=pattern.unit_size)
            return WeightPruner(constraint, groups, score, pattern=pattern, growth=self.growth)
        assert isinstance(pattern, StructuredPattern)
        assert self._channel_groups is not None
        channels = self._channel_groups.ranking_groups(model, self.sparsity, per_group=self.scope == "layer")
        return ChannelPruner(constraint, channels, score, round_to=pattern.round_to)

    def _probe(self, trainer: Trainer) -> TrainingProbe:
        assert self._batch is not None, "updates happen inside a training batch"
        batch, batch_idx = self._batch
        return TrainingProbe(
            trainer,
            trainer.lightning_module,
            batch,
            batch_idx,
            module=self.targets.module,
            example_inputs=self.example_inputs,
            full=full_tensor,
        )


def _check_structured(pattern: StructuredPattern, *, is_global: bool, is_plain: bool) -> None:
    name = type(pattern).__name__
    if not is_plain:
        raise ValueError(f"{name} are ranked all together, or by scope='layer': leave distribution and growth out.")
    if pattern.unit == "blocks" and not is_global:
        raise ValueError(f"{name} ranks all blocks together: give one sparsity and scope='global'.")
    if pattern.of != pattern.unit and not is_global:
        raise ValueError(
            f"{name}(of={pattern.of!r}) is a cost of the full network: give one sparsity and scope='global'."
        )


def _check_sparsity(sparsity: float, pattern: Pattern) -> None:
    if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is the fraction of zeros and must lie in [0, 1), such as 0.9.")
    pattern.check_sparsity(sparsity)
