"""Weight clustering: codebooks that follow a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import final

from lightning_compress.clustering.clusterer import Clusterer
from lightning_compress.clustering.codebook_spec import CodebookSpec
from lightning_compress.clustering.layout import Granularity
from lightning_compress.clustering.soft_weights import SoftClusters, harden, soften
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.functional.kmeans import Init
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.targets import Targets, matches, shorten
from lightning_compress.trainer.base import techniques
from lightning_compress.trainer.constrained import ConstraintCallback, constraints_on
from lightning_compress.trainer.lightning import is_a, is_compiled, loss_scale
from lightning_compress.trainer.masking import MaskCallback
from lightning_compress.trainer.progress import progress
from lightning_compress.trainer.scheduled import ScheduledConstraintCallback


@final
class WeightClustering(ScheduledConstraintCallback[CodebookConstraint]):
    """Makes the weights of a layer share a few values, and trains these.

    Weights stay plain parameters under their own names. At each update of the schedule they are clustered anew and a
    larger part of them is held in its clusters, the largest weights first, while the others make up for it (Zhou et al.
    2017, arXiv:1702.03044); at its end all are. Held weights are equal within clusters after every optimizer step, and
    the clusters' values are trained with the mean gradient of their members (Han et al. 2016, arXiv:1510.00149).

    Weights that are zero stay zero, and zero is then one of the values. Beside :class:`Pruning`, which stands before it
    in ``callbacks=[...]``, clustering begins when the final sparsity is reached.

    Args:
        num_clusters: Number of values of a codebook; or a dict from globs over layer names to such numbers, in which
            the first match counts, and layers without a match stay as they are.
        method: ``"hard"``, or ``"dkm"``: from the beginning to the end of the schedule weights are free, and layers
            compute with weights that are drawn to the clusters' values ever more closely (differentiable k-means, Cho
            et al. 2022, arXiv:2108.12659); then as above.
        granularity: One codebook per ``"tensor"``, per output ``"channel"``, or for so many channels.
        vector_size: Number of neighbouring weights (1, 2 or 4) that one entry of a codebook stands for (product
            quantization, Stock et al. 2020, arXiv:1907.05686).
        init: Where the first clustering starts.
        weighted: Whether weights count as much as their squared gradients (Choi et al. 2017, arXiv:1612.01543).
        gradient: What trains a value: the ``"mean"`` of its members' gradients, which suits the learning rate that the
            weights had, or their ``"sum"``, as in Deep Compression.
        schedule: When weights are clustered, and which part of them is held; ``"one_shot"``: all at once, for good.
        targets: Which weights.

    Attributes:
        left_alone: Layers that are not clustered as it would save nothing, and why.

    Raises:
        ValueError: For numbers that make no codebook; in ``setup`` for targets that match nothing, if nothing is worth
            clustering, and for strategies that shard weights.

    >>> callback = WeightClustering(16, schedule=Schedule(end=0.5))
    """

    what = "clusters"
    verb = "clustered"

    def __init__(
        self,
        num_clusters: int | dict[str, int],
        *,
        method: Literal["hard", "dkm"] = "hard",
        granularity: Granularity = "tensor",
        vector_size: int = 1,
        init: Init = "optimal",
        weighted: bool = False,
        gradient: Literal["mean", "sum"] = "mean",
        schedule: Schedule = Schedule(end=0.5, every=0.02),
        targets: Targets = Targets(),
    ) -> None:
        super().__init__(targets, schedule)
        if gradient not in ("mean", "sum"):
            raise ValueError(f"gradient={gradient!r} is unknown: write 'mean' or 'sum'.")
        if method not in ("hard", "dkm"):
            raise ValueError(f"method={method!r} is unknown: write 'hard' or 'dkm'.")
        if method == "dkm" and (vector_size > 1 or schedule.curve == "one_shot"):
            raise ValueError("method='dkm' draws single weights over a time: set vector_size=1, and another curve.")
        numbers = num_clusters if isinstance(num_clusters, dict) else {"*": num_clusters}
        self._codebook_specs = {
            glob: CodebookSpec(number, granularity, vector_size, init) for glob, number in numbers.items()
        }
        self.num_clusters = num_clusters
        self.method = method
        self.granularity = granularity
        self.vector_size = vector_size
        self.init = init
        self.weighted = weighted
        self.gradient = gradient
        self.left_alone: dict[str, str] = {}
        self._clusterer: Clusterer | None = None
        self._soft: dict[str, SoftClusters] = {}
        self._masks: list[ConstraintCallback[MaskConstraint]] = []
        self._mask_changes = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses early what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if is_a(trainer.strategy, "ModelParallelStrategy"):
            raise ValueError(
                "WeightClustering does not work under ModelParallelStrategy, which shards the weights that share "
                "values: use 'ddp'."
            )
        if self.method == "dkm" and any(is_a(t, "QuantizationAwareTraining") for t in techniques(trainer)):
            raise ValueError(
                "WeightClustering(method='dkm') beside QuantizationAwareTraining would round weights that are not on "
                "their values yet: use method='hard', or quantize in a second fit."
            )
        if self.method == "dkm" and is_compiled(pl_module):
            raise ValueError(
                "WeightClustering(method='dkm') does not work in a compiled model, which would go on computing with "
                "its own weights: leave torch.compile out of this fit, or use method='hard'."
            )
        later = techniques(trainer)[techniques(trainer).index(self) + 1 :]
        if any(isinstance(technique, MaskCallback) for technique in later):
            raise ValueError(
                "WeightClustering stands before a pruning callback, which would take members out of its clusters: put "
                "it after it in callbacks=[...]."
            )

    def make_constraint(self, layers: Sequence[Layer]) -> CodebookConstraint:
        """Assignments that leave all weights free."""
        return CodebookConstraint(layers)

    def layers(self, model: nn.Module) -> list[Layer]:
        """The selected weights that are worth clustering.

        Raises:
            ValueError: For a glob without a match, and if there are none.
        """
        layers = super().layers(model)
        names = [layer.layer for layer in layers]
        for glob in self._codebook_specs:
            if not any(matches(glob, name) for name in names):
                raise ValueError(f"num_clusters: {glob!r} matches no selected layer; they are {shorten(names)}.")
        matched = [layer for layer in layers if self._find_spec(layer) is not None]
        obstacles = {layer.layer: self._spec_of(layer).obstacle(layer) for layer in matched}
        self.left_alone = {name: obstacle for name, obstacle in obstacles.items() if obstacle}
        if len(self.left_alone) == len(matched):
            name, why = next(iter(self.left_alone.items()))
            raise ValueError(
                f"WeightClustering finds nothing that it could make smaller: of {name!r}, {why}; take fewer clusters."
            )
        return [layer for layer in matched if layer.layer not in self.left_alone]

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Begins with free weights, or where the state left off."""
        super().prepare(trainer, state)
        assert self.constraint is not None
        state = state or {}
        sharings = [self._spec_of(layer) for layer in self.constraint.layers]
        self._clusterer = Clusterer(self.constraint, sharings, weighted=self.weighted)
        self._clusterer.load_state_dict(state.get("squares", {}))
        for layer in self.constraint.layers:
            if layer.name in state.get("soft", {}):
                layout, device = self._spec_of(layer).layout(layer), layer.parameter.device
                self._soften(trainer, layer.name, SoftClusters.from_state(layout, state["soft"][layer.name], device))
        self._masks = self._find_masks(trainer)
        self._mask_changes = self._changes_of_masks
        for name, why in self.left_alone.items():
            rank_zero_info(f"WeightClustering leaves {name!r} alone: {why}.")

    def state_dict(self) -> dict[str, Any]:
        """Assignments, counters and what was gathered since the last update: tensors and plain values only."""
        if self.constraint is None or self._clusterer is None:
            return super().state_dict()
        return {
            **super().state_dict(),
            "squares": self._clusterer.state_dict(),
            "soft": {name: clusters.state_dict() for name, clusters in self._soft.items()},
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Clusters what is due before the first step, and draws weights as close to them as they are to be."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._soft:
            now = progress(trainer, self.steps, in_step=False, in_batch=False)
            for clusters in self._soft.values():
                clusters.sharpness = self.schedule.ramp(now)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Reads dense gradients as long as they matter, then projects them."""
        if self._clusterer is not None and self._gathers:
            self._clusterer.read_gradients(self.held_by(optimizer), loss_scale(trainer, optimizer))
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.gradient == "sum" and self.constraint is not None:
            self.constraint.sum_gradients_()

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Counts gradients that were read, and updates the clusters where that is due."""
        assert self._clusterer is not None
        self._clusterer.step_completed(self.held_by(optimizer))
        super().after_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lands the last update where the run ends without a step that could have done so."""
        for clusters in self._soft.values():
            clusters.advance()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps what a next fit needs and lets go of the model."""
        super().teardown(trainer, pl_module, stage)
        harden(pl_module)
        self._clusterer, self._soft, self._masks = None, {}, []

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs, without what belongs to the fit."""
        return {**super().__getstate__(), "_clusterer": None, "_soft": {}, "_masks": []}

    @property
    def _gathers(self) -> bool:
        """Whether gradients still decide about clusters."""
        return self.weighted and not self._landed

    def _find_spec(self, layer: Layer) -> CodebookSpec | None:
        return next((sharing for glob, sharing in self._codebook_specs.items() if matches(glob, layer.layer)), None)

    def _spec_of(self, layer: Layer) -> CodebookSpec:
        sharing = self._find_spec(layer)
        assert sharing is not None
        return sharing

    def advance(self, trainer: Trainer, now: Progress) -> None:
        """Does what is due at this moment of the run."""
        assert self._clusterer is not None
        if not self._is_due(now) or not self._clusterer.has_accumulated_scores:
            return
        self._tick = max(self.schedule.tick(now), 0)
        self._landed = self.schedule.landed(now)
        self._mask_changes = self._changes_of_masks
        if self.method == "dkm" and not self._landed:
            for name, clusters in self._clusterer.soft(self._zeros()).items():
                self._soften(trainer, name, clusters)
            return
        starts = {name: clusters.codebooks for name, clusters in self._soft.items()}
        harden(trainer.lightning_module)
        self._soft = {}
        part = self.schedule.sparsity(1.0, now)
        self._clusterer.update(self._zeros(), part=part, starts=starts)
        self.update_constraint(trainer)

    def _is_due(self, now: Progress) -> bool:
        if not now.reached(self.schedule.begin) or not all(mask.reached for mask in self._masks):
            return False
        if self._tick < 0 or self._changes_of_masks != self._mask_changes:
            return True
        ticked = self.schedule.tick(now) > self._tick and self.method == "hard"
        return not self._landed and (ticked or self.schedule.landed(now))

    def _soften(self, trainer: Trainer, name: str, clusters: SoftClusters) -> None:
        self._soft[name] = clusters
        module, _, attribute = name.rpartition(".")
        soften(trainer.lightning_module.get_submodule(module), attribute, clusters)

    def _find_masks(self, trainer: Trainer) -> list[ConstraintCallback[MaskConstraint]]:
        """The callbacks that hold zeros among the clustered weights; in a fit they stay the same."""
        assert self.constraint is not None
        found = (mask for layer in self.constraint.layers for mask in constraints_on(trainer, MaskConstraint, layer))
        return list(dict.fromkeys(found))

    @property
    def _changes_of_masks(self) -> int:
        return sum(mask.num_changes for mask in self._masks)

    def _zeros(self) -> list[Tensor | None]:
        """Where other callbacks hold zeros."""
        held = {
            id(layer.parameter): zeros
            for mask in self._masks
            if mask.constraint is not None
            for layer, zeros in zip(mask.constraint.layers, mask.constraint.zeros, strict=True)
        }
        assert self.constraint is not None
        return [held.get(id(layer.parameter)) for layer in self.constraint.layers]
