"""Quantization-aware training: simulated integers with milestones."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import final

from lightning_compress.constraints.completed_steps import CompletedSteps, owners
from lightning_compress.quantization.calibrate import thawed, update
from lightning_compress.quantization.graph_tracer import GraphTracer
from lightning_compress.quantization.insertion import QuantizerRef, digest, is_quantized, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.quantization_checks import check_learned, check_quantizable
from lightning_compress.quantization.quantizer_checkpoint import (
    insert_quantizers_on_load,
    restore_statistics,
    statistics_of,
    stop_inserting_on_load,
)
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan, owners_of
from lightning_compress.quantization.tracing import Graph
from lightning_compress.schedules import Progress, QATSchedule
from lightning_compress.targets import Targets, shorten
from lightning_compress.trainer.base import CompressionCallback
from lightning_compress.trainer.lightning import averaged_models, is_built_late
from lightning_compress.trainer.progress import check_time_fits, check_times_come, progress
from lightning_compress.trainer.ranks import check_ranks_agree

_PART_OBSERVED = 8  # one part in so many of each batch: what looking costs, and what range finding can spare


@final
class QuantizationAwareTraining(CompressionCallback):
    """Trains a model while its weights and activations are rounded to integers, straight-through for gradients.

    Class, methods and parameter names of the model stay; scales are added as buffers whose names begin with
    ``quant_``. Where quantizers belong is found in one run of the model: such that an integer runtime, after batch
    norms have been folded, finds no island of floats. Jacob et al. 2018 (arXiv:1712.05877); with
    ``observer=Learned()`` Esser et al. 2020 (arXiv:1902.08153).

    Args:
        weights: Of the targets' weights; one for all, by globs, or ``None`` for floats.
        activations: Of what the targets read and make, by the names of the modules that make it.
        schedule: When ranges are observed and numbers are rounded.
        targets: Which layers.
        example_inputs: What ``targets.module`` is called with: a tensor, a tuple, or a dict of keyword arguments. By
            default the module's ``example_input_array``, or what one training step shows.

    Raises:
        ValueError: If there is nothing to quantize.
    """

    def __init__(
        self,
        *,
        weights: Int | dict[str, Int | None] | None = Int(8),
        activations: Int | dict[str, Int | None] | None = Int(8),
        schedule: QATSchedule = QATSchedule(),
        targets: Targets = Targets(),
        example_inputs: Any = None,
    ) -> None:
        super().__init__(targets)
        if not _has_some(weights) and not _has_some(activations):
            raise ValueError("weights and activations are both None: there is nothing to quantize; give an Int.")
        self.weights: QuantizationSpec = weights
        self.activations: QuantizationSpec = activations
        self.schedule = schedule
        self.example_inputs = example_inputs
        self.left_in_float: list[str] = []
        self.steps = 0
        QuantizerPlan(weights, activations, {})
        self._loaded: dict[str, Any] | None = None  # from a checkpoint, for whatever model is fitted next
        self._kept: dict[str, Any] | None = None  # from the last fit, for the model it was of
        self._model: weakref.ref[LightningModule] | None = None
        self._stage: tuple[int, bool, bool] | None = None
        self._failure: ValueError | None = None
        self._hooks: list[CompletedSteps] = []
        self._frozen: list[RemovableHandle] = []
        self._loading: RemovableHandle | None = None

    @property
    def reached(self) -> bool:
        """Whether the model computes with rounded numbers."""
        return self._stage is not None and self._stage[1]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hangs the quantizers into the model, or waits for a checkpoint that has them."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_quantizable(trainer, pl_module, self.targets.module, self)
        with thawed(_quantized_weights(pl_module)):
            plan = QuantizerPlan(self.weights, self.activations, self._is_target(pl_module))
            self._loading = insert_quantizers_on_load(pl_module, plan)
            if stage == "fit":
                self._quantize(trainer, pl_module, plan)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a model in which no place could be found."""
        if not is_quantized(pl_module):
            raise self._failure or ValueError("QuantizationAwareTraining: the model has nothing that is quantized.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores what observers know, and starts counting steps."""
        self._stop_loading(pl_module)
        for name in _TIMES:
            check_time_fits(trainer, name, getattr(self.schedule, name))
        check_times_come(trainer, {name: getattr(self.schedule, name) for name in _TIMES})
        check_learned(trainer, pl_module)
        kept = self._kept if self._model is not None and self._model() is pl_module else None
        state = self._loaded or kept or {"steps": 0, "statistics": {}}
        self.steps = state["steps"]
        restore_statistics(pl_module, state["statistics"])
        self._model = weakref.ref(pl_module)
        self._loaded = self._kept = None
        clock, *_ = owners(trainer.optimizers, self.layers(pl_module))
        self._hooks = [CompletedSteps(clock, self._count)]
        self._stage = None
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Enters the stage that is due; the first batch is looked at before it is trained on."""
        for hook in self._hooks:
            hook.begin()
        now = progress(trainer, self.steps, in_step=False, in_batch=False)
        stage = self._stage_at(now)
        found = list(quantizers_of(pl_module))
        if stage[0] and not all(attached.quantizer.ready for attached in found):
            self._look(trainer).at_first_batch(pl_module, found, batch, batch_idx, part=_PART_OBSERVED)
            self._update(trainer, found)
        for model in (pl_module, *averaged_models(trainer)):
            _enter_stage(model, found, quantizing=stage[1])
        for attached in found:
            attached.quantizer.observing = stage[0]
        if stage != self._stage:
            if stage[2] and not self._frozen:
                self._frozen = _freeze_norms(pl_module.get_submodule(self.targets.module))
            self._stage = stage
            self.num_changes += 1
            check_ranks_agree(trainer, digest(found), "QuantizationAwareTraining: scales")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Turns what was observed into scales for the next batch; observers rest until then."""
        found = list(quantizers_of(pl_module))
        self._update(trainer, found)
        for attached in found:
            attached.quantizer.observing = 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes sure that all ranks have the same scales."""
        check_ranks_agree(trainer, digest(quantizers_of(pl_module)), "QuantizationAwareTraining: scales")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes off what belongs to the fit; the quantizers stay, as the model is now one of integers."""
        super().teardown(trainer, pl_module, stage)
        self._stop_loading(pl_module)
        if self._hooks:
            self._kept = self.state_dict()
        handles: list[CompletedSteps | RemovableHandle] = [*self._hooks, *self._frozen]
        for handle in handles:
            handle.remove()
        self._hooks, self._frozen = [], []
        for attached in quantizers_of(pl_module):
            attached.quantizer.observing, attached.quantizer.observed = 0, None

    def state_dict(self) -> dict[str, Any]:
        """Completed steps, and what observers know by the names of the places."""
        model = self._model() if self._model is not None and self._hooks else None
        if model is None:
            return dict(self._loaded or self._kept or {})
        return {"steps": self.steps, "statistics": statistics_of(model)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a state until the fit begins."""
        self._loaded = state_dict

    def _quantize(self, trainer: Trainer, pl_module: LightningModule, plan: QuantizerPlan) -> None:
        """Hangs the quantizers in, unless the model has them; it must then have the same."""
        graph: Graph | None = None
        try:
            graph = self._look(trainer).graph(pl_module)
        except ValueError as error:
            self._failure = error  # a checkpoint may yet bring the quantizers along
        if is_quantized(pl_module):
            plan.check_same(pl_module, graph)
        elif graph is not None:
            placement = plan.insert_traced(pl_module, graph)
            self.left_in_float = [node.name for node in placement.left_in_float()]
            if self.left_in_float:
                rank_zero_info(f"QuantizationAwareTraining leaves in float: {shorten(self.left_in_float)}.")

    def _count(self, optimizer: Optimizer) -> None:
        self.steps += 1

    def _stage_at(self, now: Progress) -> tuple[int, bool, bool]:
        """What part of batches is observed, whether numbers are rounded, and whether batch norms are frozen."""
        schedule = self.schedule
        observes = now.reached(schedule.observe) and not now.reached(schedule.freeze_observers)
        part = _PART_OBSERVED if observes else 0
        return part, now.reached(schedule.fake_quantize), now.reached(schedule.freeze_batch_norm)

    def _is_target(self, pl_module: LightningModule) -> Mapping[str, bool]:
        try:
            return owners_of(self.targets.select(pl_module))
        except ValueError as error:
            if not is_built_late(pl_module):
                raise
            raise ValueError(
                f"{error} QuantizationAwareTraining looks at the model in Callback.setup, before the LightningModule's "
                "setup and configure_model: build the model in __init__."
            ) from error

    def _look(self, trainer: Trainer) -> GraphTracer:
        return GraphTracer(trainer, self.targets, self.example_inputs)

    def _update(self, trainer: Trainer, found: Sequence[QuantizerRef]) -> None:
        several = trainer.world_size > 1
        update(found, *((partial(_reduce, dist.ReduceOp.MAX), partial(_reduce, dist.ReduceOp.SUM)) if several else ()))

    def _stop_loading(self, pl_module: LightningModule) -> None:
        stop_inserting_on_load(pl_module, self._loading)
        self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs; hooks and what Lightning attached are found anew by the next fit."""
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        fresh: dict[str, Any] = {"_hooks": [], "_frozen": [], "_loading": None, "_guard": None, "_stage": None}
        return {**state, **fresh, "_model": None, "_loaded": self.state_dict() or None, "_kept": None}


_TIMES = ("observe", "fake_quantize", "freeze_observers", "freeze_batch_norm")


def _has_some(numbers: QuantizationSpec) -> bool:
    return any(numbers.values()) if isinstance(numbers, Mapping) else numbers is not None


def _quantized_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Also if they are frozen by now, they are targets."""
    for attached in quantizers_of(model):
        if attached.quantizer.is_weight:
            yield from attached.module.parameters(recurse=False)


def _enter_stage(model: nn.Module, found: Sequence[QuantizerRef], *, quantizing: bool) -> None:
    """Makes a model, or an average of it, round or not; an average gets scales that it has none of yet."""
    for attached, ours in zip(quantizers_of(model), found, strict=True):
        attached.quantizer.quantizing = quantizing
        if ours.quantizer.ready and not attached.quantizer.ready:
            attached.quantizer.take(attached.module, ours.module, ours.quantizer)


def _freeze_norms(model: nn.Module) -> list[RemovableHandle]:
    """Until the handles are removed, batch norms use their running statistics, in whatever mode they are."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [norm.register_forward_pre_hook(_use_running_statistics) for norm in norms]
    after = [norm.register_forward_hook(_be_as_before, always_call=True) for norm in norms]
    return [*before, *after]


def _use_running_statistics(norm: nn.Module, args: Any) -> None:
    # The mode is the user's: nothing sets it anew when the next fit begins.
    norm._trained_before = norm.training  # type: ignore[assignment]
    norm.training = False


def _be_as_before(norm: nn.Module, args: Any, output: Any) -> None:
    norm.training = norm._trained_before  # type: ignore[assignment]
    del norm._trained_before


def _reduce(operation: Any, tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor, operation)
    return tensor
