"""Quantization-aware training callback: fake quantization with milestones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import final

from lightning_compress.constraints.completed_steps import CompletedSteps, counted_optimizers, optimizers_of
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.finite_ranges import FiniteRanges
from lightning_compress.quantization.graph_tracer import GraphTracer
from lightning_compress.quantization.insertion import QuantizerRef, digest, is_quantized, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.model_preparation import ModelPreparation, quantized_weights
from lightning_compress.quantization.quantization_checks import (
    check_groups_fit_shards,
    check_learned,
    check_quantizable,
    check_shardable,
)
from lightning_compress.quantization.quantizer_checkpoint import (
    check_stored_formats,
    restore_statistics,
    statistics_of,
)
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan
from lightning_compress.quantization.scale_updates import update_scales
from lightning_compress.quantization.unquantized_copies import support_copies
from lightning_compress.schedules import Progress, QATSchedule
from lightning_compress.serialization import plain_mapping, to_plain
from lightning_compress.targets import Targets, shorten
from lightning_compress.trainer.compression_callback import CompressionCallback
from lightning_compress.trainer.progress import check_time_fits, check_times_within_run, progress
from lightning_compress.trainer.queries import averaged_models
from lightning_compress.trainer.ranks import check_ranks_agree
from lightning_compress.trainer.thawing import FrozenTargets

# Observers read the first eighth of each batch: they cost a good part of a step, and ranges need no more samples.
_BATCH_DIVISOR = 8


@final
class QuantizationAwareTraining(CompressionCallback):
    """Train a model with fake-quantized weights and activations, with straight-through gradients.

    Class, methods and parameter names of the model stay; scales and zero points are added as buffers with the prefix
    ``quant_``. Quantizers are placed by one run of the model, so that a runtime with integer kernels needs no FP32
    operation in between once batch norms are folded. Jacob et al. 2018 (arXiv:1712.05877); with
    ``observer=Learned()`` Esser et al. 2020 (arXiv:1902.08153).

    Args:
        weights: Specification of the quantization of the selected weights: one for all, a dict from globs over layer
            names, or ``None`` for FP32.
        activations: Specification of the quantization of the inputs and outputs of the selected layers, by the names of
            the modules that produce them.
        schedule: Times from which ranges are observed, values are fake-quantized, and observers and batch norms are
            frozen.
        targets: Selection of the layers.
        example_inputs: Arguments of ``targets.module``: a tensor, a tuple, or a dict of keyword arguments. By default
            the module's ``example_input_array``, or the arguments that it receives in one training step.
        backend: Runtime for which quantizers are placed, so that what is trained is what it computes:
            ``TensorRT()``, ``LiteRT()``, or ``OnnxRuntime()``, which is also for OpenVINO, Core ML and ExecuTorch.

    Attributes:
        unquantized_ops: Names of the calls that compute in FP32, ``"<module>.<function>"``.

    Raises:
        ValueError: If both specifications are ``None``; in ``setup`` if globs match nothing, if the model cannot be run
            on the inputs, and for strategies and options that are not supported.

    >>> from lightning.pytorch import Trainer
    >>> callback = QuantizationAwareTraining(weights={"stem": Int(8), "*": Int(4)})
    >>> trainer = Trainer(max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        *,
        weights: Int | Mapping[str, Int | None] | None = Int(8),
        activations: Int | Mapping[str, Int | None] | None = Int(8),
        schedule: QATSchedule = QATSchedule(),
        targets: Targets = Targets(),
        example_inputs: Any = None,
        backend: Backend = OnnxRuntime(),
    ) -> None:
        super().__init__(targets)
        weights, activations = plain_mapping(weights), plain_mapping(activations)
        if not _specs_in(weights) and not _specs_in(activations):
            raise ValueError("weights and activations are both None: there is nothing to quantize; give an Int.")
        self.weights: QuantizationSpec = weights
        self.activations: QuantizationSpec = activations
        self.schedule = schedule
        self.example_inputs = example_inputs
        self.backend = backend
        self.unquantized_ops: list[str] = []
        self.steps = 0
        QuantizerPlan(weights, activations, {}, backend)
        self._phase: tuple[int, bool, bool] | None = None
        self._preparation: ModelPreparation | None = None
        self._hooks: list[CompletedSteps] = []
        self._frozen: list[RemovableHandle] = []
        self._finite = FiniteRanges()
        self._thawing = FrozenTargets()

    @property
    def left_in_float(self) -> list[str]:
        """Old name of ``unquantized_ops``, until version 0.2."""
        return self.unquantized_ops

    @property
    def reached(self) -> bool:
        """True once the model computes with fake-quantized values."""
        return self._phase is not None and self._phase[1]

    @property
    def is_fitting(self) -> bool:
        """True between the start and the teardown of a fit."""
        return bool(self._hooks)

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that refer to a fit, with the values that they have outside of one."""
        return {
            **super().attributes_outside_fit(),
            "_hooks": [],
            "_frozen": [],
            "_finite": FiniteRanges(),
            "_preparation": None,
            "_thawing": FrozenTargets(),
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Insert the quantizers into the model, or wait for a checkpoint that has them."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_quantizable(trainer, pl_module, self.targets.module, self)
            check_shardable(trainer, [*_specs_in(self.weights), *_specs_in(self.activations)])
        self._preparation = ModelPreparation(
            trainer,
            pl_module,
            weights=self.weights,
            activations=self.activations,
            backend=self.backend,
            targets=self.targets,
            example_inputs=self.example_inputs,
        )
        self._preparation.start(traces=stage == "fit")
        self.unquantized_ops = self._preparation.unquantized_ops or self.unquantized_ops

    def covered(self, pl_module: LightningModule) -> set[int]:
        """Return the ids of the quantized weights: all targets at the time of ``setup``, though frozen by now."""
        return {id(weight) for weight in quantized_weights(pl_module)} or super().covered(pl_module)

    def fit_metrics(self) -> dict[str, float]:
        """Return the phase: 0 observe, 1 fake-quantize, 2 observers frozen, 3 batch norms frozen."""
        divisor, quantizing, batch_norm_frozen = self._phase or (0, False, False)
        phase = 0 if not quantizing else 3 if batch_norm_frozen else 1 if divisor else 2
        return {"quantization_phase": float(phase)}

    def layer_metrics(self, pl_module: LightningModule) -> dict[str, dict[str, float]]:
        """Return the bits, and the mean scale and range (of its largest channel), of each quantized tensor."""
        refs = [ref for ref in quantizers_of(pl_module) if ref.quantizer.ready]
        scales = {ref.name: ref.quantizer.qparams(ref.module)[0].detach() for ref in refs}
        bits = {ref.name: ref.quantizer.spec.bits for ref in refs}
        return {
            "bits": {name: float(number) for name, number in bits.items()},
            "scale": {name: float(scale.mean()) for name, scale in scales.items()},
            "range": {name: float(scale.max()) * (2 ** bits[name] - 1) for name, scale in scales.items()},
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Support copies of the network beside it; raise a ``ValueError`` if nothing in the model is quantized."""
        assert self._preparation is not None
        if not is_quantized(pl_module):
            raise self._preparation.failure or ValueError(
                "QuantizationAwareTraining: the model has nothing that is quantized."
            )
        self.unquantized_ops = self._preparation.unquantized_ops or self.unquantized_ops
        self._preparation.clear_scales()
        check_groups_fit_shards(quantizers_of(pl_module))
        support_copies(pl_module, self.targets.module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the statistics of the observers, and count steps from now on."""
        self._stop_preparing()
        for name in _TIMES:
            check_time_fits(trainer, name, getattr(self.schedule, name))
        check_times_within_run(trainer, {name: getattr(self.schedule, name) for name in _TIMES})
        check_learned(trainer, pl_module)
        state = self._fit_state.start_from(pl_module) or {"steps": 0, "statistics": {}}
        self.steps = state["steps"]
        restore_statistics(pl_module, state["statistics"])
        covered = self.covered(pl_module)
        self._thawing = FrozenTargets([t for t in self.targets.frozen(pl_module) if id(t.parameter) not in covered])
        self._fit_state.begin(pl_module)
        layers = self.layers(pl_module)
        counted = counted_optimizers(optimizers_of(trainer.optimizers, layers), layers)
        self._hooks = [CompletedSteps(optimizer, self._count) for optimizer in counted]
        self._phase = None
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enter the phase that is due; the first batch is observed before the model is trained on it."""
        joining = self._thawing.pop_trained(trainer.optimizers)
        if joining:
            rank_zero_warn(
                f"QuantizationAwareTraining does not quantize {shorten(joining)}, which were frozen when it placed the "
                "quantizers: put it before the callback that freezes them in callbacks=[...]."
            )
        for hook in self._hooks:
            hook.reset()
        now = progress(trainer, self.steps, in_step=False, in_batch=False)
        phase = self._phase_at(now)
        refs = list(quantizers_of(pl_module))
        # Not for single ones that never see a value, such as those of experts without tokens.
        if phase[0] and not any(ref.quantizer.ready for ref in refs):
            self._tracer(trainer).at_first_batch(pl_module, refs, batch, batch_idx, divisor=_BATCH_DIVISOR)
            self._update(trainer, refs)
        for model in (pl_module, *averaged_models(trainer)):
            _enter_phase(model, refs, quantizing=phase[1])
        for ref in refs:
            ref.quantizer.observing = phase[0]
        if phase != self._phase:
            self._finite.check()
            if phase[2] and not self._frozen:
                self._frozen = _freeze_norms(pl_module.get_submodule(self.targets.module))
            self._phase = phase
            self.num_changes += 1
            check_ranks_agree(trainer, digest(refs), "QuantizationAwareTraining: scales")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compute the scales of the next batch from the statistics of this one."""
        refs = list(quantizers_of(pl_module))
        self._update(trainer, refs)
        for ref in refs:
            ref.quantizer.observing = 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that no range in the checkpoint is NaN or infinite."""
        self._finite.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the ranges of the last batches."""
        self._finite.check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the scales of all ranks."""
        check_ranks_agree(trainer, digest(quantizers_of(pl_module)), "QuantizationAwareTraining: scales")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks of the fit; the quantizers stay, since their ranges are part of the model."""
        self._stop_preparing()
        handles: list[CompletedSteps | RemovableHandle] = [*self._hooks, *self._frozen]
        for handle in handles:
            handle.remove()
        super().teardown(trainer, pl_module, stage)
        for ref in quantizers_of(pl_module):
            ref.quantizer.observing, ref.quantizer.observed = 0, None

    def current_state(self) -> dict[str, Any]:
        """Return the number of completed steps, and the observers' statistics by quantizer name."""
        assert self._fit_state.model is not None
        specs = {ref.name: to_plain(ref.quantizer.spec) for ref in quantizers_of(self._fit_state.model)}
        return {"steps": self.steps, "statistics": statistics_of(self._fit_state.model), "specs": specs}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the quantizers of a checkpoint have the formats of this callback.

        Raises:
            ValueError: If one differs in its bits, symmetry or granularity: its scale would be that of another grid.
        """
        stored = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("specs", {})
        if self._preparation is not None and self._preparation.plan is not None:
            check_stored_formats(stored, self._preparation.plan)

    def _count(self, optimizer: Optimizer) -> None:
        self.steps += 1

    def _phase_at(self, now: Progress) -> tuple[int, bool, bool]:
        """Return the divisor of the batch to observe, and whether to fake-quantize and to freeze batch norms."""
        schedule = self.schedule
        observes = now.reached(schedule.observe) and not now.reached(schedule.freeze_observers)
        divisor = _BATCH_DIVISOR if observes else 0
        return divisor, now.reached(schedule.fake_quantize), now.reached(schedule.freeze_batch_norm)

    def _tracer(self, trainer: Trainer) -> GraphTracer:
        return GraphTracer(trainer, self.targets, self.example_inputs)

    def _update(self, trainer: Trainer, refs: Sequence[QuantizerRef]) -> None:
        several = trainer.world_size > 1
        update_scales(
            refs,
            partial(_reduce, dist.ReduceOp.MAX) if several else None,
            partial(_reduce, dist.ReduceOp.SUM) if several else None,
            finite=self._finite,
        )

    def _stop_preparing(self) -> None:
        if self._preparation is not None:
            self._preparation.stop()


_TIMES = ("observe", "fake_quantize", "freeze_observers", "freeze_batch_norm")


def _specs_in(spec: QuantizationSpec) -> list[Int]:
    given = spec.values() if isinstance(spec, Mapping) else [spec]
    return [each for each in given if each is not None]


def _enter_phase(model: nn.Module, refs: Sequence[QuantizerRef], *, quantizing: bool) -> None:
    """Switch fake quantization on or off in a model or an average of it, which gets its first scales here."""
    for ref, source in zip(quantizers_of(model), refs, strict=True):
        ref.quantizer.quantizing = quantizing
        if source.quantizer.ready and not ref.quantizer.ready:
            ref.quantizer.copy_from(ref.module, source.module, source.quantizer)


def _freeze_norms(model: nn.Module) -> list[RemovableHandle]:
    """Let batch norms use their running statistics in any mode, until the handles are removed."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [norm.register_forward_pre_hook(_use_running_statistics) for norm in norms]
    after = [norm.register_forward_hook(_restore_mode, always_call=True) for norm in norms]
    return [*before, *after]


def _use_running_statistics(norm: nn.Module, args: Any) -> None:
    # Restored after the forward pass: Lightning does not set the mode again when the next fit begins.
    norm._trained_before = norm.training  # type: ignore[assignment]
    norm.training = False


def _restore_mode(norm: nn.Module, args: Any, output: Any) -> None:
    norm.training = norm._trained_before  # type: ignore[assignment]
    del norm._trained_before


def _reduce(operation: Any, tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor, operation)
    return tensor
