"""Callback that trains a model to a packed file of a given size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from typing_extensions import final

from lightning_compress.clustering.grid_assignment import assign_levels, free_weights, spread_levels
from lightning_compress.clustering.layer_statistics import LayerStatistics, watch_layers
from lightning_compress.clustering.masks_of_fit import MasksOfFit, check_masks_come_first
from lightning_compress.clustering.rate_distortion import WeightedErrors
from lightning_compress.clustering.size_budget import parse_size
from lightning_compress.clustering.step_search import QuantizedWeight, StepSearch, packed_size
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.packing.tensors import checked_halves
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.sharded_modules import full_tensor
from lightning_compress.targets import Targets
from lightning_compress.trainer.constraint_callback import ConstraintCallback
from lightning_compress.trainer.probe import TrainingProbe


@final
class SizeBudget(ConstraintCallback[CodebookConstraint]):
    """Train a model to a packed file of a given size: quantization under a constraint on the entropy of the weights.

    At each update of the schedule the weights of each layer are quantized to multiples of one step, with errors
    weighted by second moments of inputs and output gradients of the batch and traded for bits under the model of the
    coder of :func:`save_packed` (entropy-constrained quantization; Choi et al. 2017, arXiv:1612.01543); the steps are
    those with which the file has the given size. A larger fraction of the weights stays on its levels from update to
    update, the largest weights first, while the others compensate (Zhou et al. 2017, arXiv:1702.03044); at the end of
    the schedule all do. Levels are trained like the centroids of :class:`WeightClustering`.

    Each rank quantizes all weights, the same: of a sharded model (FSDP2) a whole copy on each rank, for an update.
    Weights that :class:`Pruning` masks stay zero; it precedes this callback in ``callbacks=[...]``.

    Args:
        size: Size of the file in bytes, or with a unit, such as ``"60kB"``: that of ``save_packed`` for the module that
            ``targets.module`` names, or for the LightningModule.
        half: Groups of tensors that are rounded to float16 in the file, as :func:`save_packed` will be told.
        schedule: Times of the updates, and the fraction of the weights that is quantized at each.
        targets: Selection of the weights.

    Attributes:
        num_bytes: Size of the file at the last update, or ``None`` before it.

    Raises:
        ValueError: If an argument is invalid; in ``setup`` if targets match nothing, and for manual optimization; at
            an update if the file cannot be that small.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> import lightning_compress as lc
        >>> callback = lc.SizeBudget("60kB", half=("norms",))
        >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    constraint_class = CodebookConstraint
    options = ("size", "half", "schedule")
    noun = "levels"
    verb = "quantized"

    def __init__(
        self,
        size: int | str,
        *,
        half: Sequence[str] = (),
        schedule: Schedule = Schedule(end=0.5, every=0.1),
        targets: Targets = Targets(),
    ) -> None:
        super().__init__(targets, schedule)
        self._max_bytes = parse_size(size)
        checked_halves(half)
        self.size = size
        self.half = tuple(half)
        self.num_bytes: int | None = None
        self._masks: MasksOfFit | None = None
        self._batch: tuple[Any, int] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check strategy, targets and the other callbacks before the fit."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                "SizeBudget runs training_step by itself, which manual optimization does not allow: use "
                "WeightClustering, or lc.quantize_to_size after the fit."
            )
        check_masks_come_first(trainer, self)

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Start with free weights, or restore levels."""
        super().prepare(trainer, state)
        assert self.constraint is not None
        self.num_bytes = (state or {}).get("num_bytes")
        self._masks = MasksOfFit(trainer, self.constraint.layers)

    def current_state(self) -> dict[str, Any]:
        """Return levels, counters and the size of the file."""
        return {**super().current_state(), "num_bytes": self.num_bytes}

    def fit_metrics(self) -> dict[str, float]:
        """Return the size of the file at the last update, in bytes."""
        return {} if self.num_bytes is None else {"packed_bytes": float(self.num_bytes)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch for the statistics of an update."""
        self._batch = (batch, batch_idx)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Release the batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the file has another size, since tensors that are not quantized have changed."""
        super().on_train_end(trainer, pl_module)
        if self.reached:
            self.num_bytes = packed_size(self._state(pl_module), self.half)
            if self.num_bytes > self._max_bytes:
                rank_zero_warn(f"SizeBudget: the file takes {self.num_bytes} bytes, and {self._max_bytes} are allowed.")

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        return {**super().attributes_outside_fit(), "_masks": None, "_batch": None}

    def update(self, trainer: Trainer, now: Progress) -> None:
        """Quantize the weights anew if the schedule has an update due now, or if masks have changed."""
        assert self._masks is not None
        assert self.constraint is not None
        if not self._is_due(now, self._masks):
            return
        self._tick = max(self.schedule.tick(now), 0)
        self._finished = self.schedule.finished(now)
        zeros = self._masks.zeros(self.constraint.layers)
        fraction = self.schedule.sparsity(1.0, now)
        if fraction > 0:
            self._quantize(trainer, zeros, fraction)
            self.constraint_replaced(trainer)

    def _is_due(self, now: Progress, masks: MasksOfFit) -> bool:
        if not now.reached(self.schedule.begin) or not masks.reached:
            return False
        if self._tick < 0 or (self._finished and self._is_incomplete) or masks.changed:
            return True
        return not self._finished and (self.schedule.tick(now) > self._tick or self.schedule.finished(now))

    @torch.no_grad()
    def _quantize(self, trainer: Trainer, zeros: Sequence[Tensor | None], fraction: float) -> None:
        assert self.constraint is not None
        trained = sorted(set(range(len(self.constraint.layers))) - self.constraint.frozen)
        layers = [self.constraint.layers[i] for i in trained]
        errors = [WeightedErrors.of(*moments) for moments in self._moments(trainer, layers)]
        state = self._state(trainer.lightning_module)
        names = _names_in(trainer.lightning_module.get_submodule(self.targets.module), layers)

        def size_of(quantized: Sequence[QuantizedWeight]) -> int:
            # Levels will be trained, each by itself: their codebook is no longer that of a uniform grid.
            spread = dict(zip(names, map(spread_levels, quantized), strict=True))
            changed = {name: values for of_layer, values in spread.items() for name in of_layer}
            sizes.append(packed_size({**state, **changed}, self.half))
            return sizes[-1]

        sizes: list[int] = []
        weights = [layer.full(layer.weight) for layer in layers]
        given = zip(layers, (zeros[i] for i in trained), strict=True)
        masks = [None if own is None else layer.full(own) for layer, own in given]
        found = StepSearch(weights, errors, masks, size_of).run(self._max_bytes)
        for i, layer, mask, quantized in zip(trained, layers, masks, found, strict=True):
            free = free_weights(layer, self.constraint.assignments[i], mask, fraction)
            self.constraint.replace(i, *assign_levels(quantized, free, layer))
        self.num_bytes = max(size for size in sizes if size <= self._max_bytes)

    def _state(self, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the tensors of the file; a collective if they are sharded."""
        state = pl_module.get_submodule(self.targets.module).state_dict()
        return {name: full_tensor(value) if isinstance(value, Tensor) else value for name, value in state.items()}

    def _moments(self, trainer: Trainer, layers: Sequence[Layer]) -> list[tuple[Tensor, Tensor]]:
        """Return the second moments of the inputs and output gradients of each layer, averaged over ranks."""
        assert self._batch is not None, "updates happen inside a training batch"
        probe = TrainingProbe(
            trainer, trainer.lightning_module, *self._batch, module=self.targets.module, full=full_tensor
        )
        modules = [probe.model.get_submodule(layer.name.rpartition(".")[0]) for layer in layers]
        weights = [probe.model.get_parameter(layer.name) for layer in layers]
        statistics = [LayerStatistics(module, weight) for module, weight in zip(modules, weights, strict=True)]
        with torch.enable_grad(), isolate_rng(), watch_layers(modules, statistics):
            probe.loss().backward()
        device = probe.model.device
        moments = [(own.inputs.to(device), own.gradients.to(device)) for own in statistics]
        reduced = probe.reduce([tensor for pair in moments for tensor in pair])
        return [(inputs.cpu(), gradients.cpu()) for inputs, gradients in zip(reduced[::2], reduced[1::2], strict=True)]


def _names_in(module: nn.Module, layers: Sequence[Layer]) -> list[tuple[str, ...]]:
    """Return the names of the weight of each layer in a module, which has shared ones under several names."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return [tuple(by_identity.get(id(layer.parameter), ())) for layer in layers]
