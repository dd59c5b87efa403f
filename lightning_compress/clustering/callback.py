"""Weight clustering callback: codebooks that follow a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer
from typing_extensions import final

from lightning_compress.clustering.clusterer import Clusterer
from lightning_compress.clustering.codebook_spec import CodebookSpec
from lightning_compress.clustering.layout import Granularity
from lightning_compress.clustering.masks_of_fit import MasksOfFit, check_masks_come_first
from lightning_compress.clustering.soft_weights import SoftClusters, harden, soften
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.kmeans import Init
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.serialization import plain_mapping
from lightning_compress.targets import Targets, matches, shorten
from lightning_compress.trainer.compression_callback import techniques
from lightning_compress.trainer.constraint_callback import ConstraintCallback
from lightning_compress.trainer.progress import progress
from lightning_compress.trainer.queries import is_a, is_compiled, loss_scale


@final
class WeightClustering(ConstraintCallback[CodebookConstraint]):
    """Cluster the weights of each layer, and train the centroids (palettization).

    Weights stay plain parameters under their own names. At each update of the schedule they are clustered anew and a
    larger fraction of them is assigned to clusters, the largest weights first, while the others compensate (Zhou et
    al. 2017, arXiv:1702.03044); at its end all are. Assigned weights are equal within clusters after every optimizer
    step, and centroids are trained with the mean gradient of their members (Han et al. 2016, arXiv:1510.00149).

    Weights that are zero stay zero, and zero is then one of the centroids. Beside :class:`Pruning`, which precedes it
    in ``callbacks=[...]``, clustering begins when the final sparsity is reached.

    Args:
        num_clusters: Number of centroids of a codebook; or a dict that maps globs over layer names to such numbers. The
            first glob that matches a layer applies, and layers without a match are not clustered.
        method: ``"hard"``, or ``"dkm"``: from the beginning to the end of the schedule weights are free, and layers
            compute with soft assignments to centroids that become sharper (differentiable k-means, Cho et al. 2022,
            arXiv:2108.12659); afterwards as with ``"hard"``.
        granularity: One codebook per ``"tensor"``, per output ``"channel"``, or per group of this number of channels.
        vector_size: Number of neighboring weights (1, 2 or 4) in one entry of a codebook (product quantization, Stock
            et al. 2020, arXiv:1907.05686).
        init: Initialization of the first clustering.
        weighted: Weight the clustering by squared gradients (Choi et al. 2017, arXiv:1612.01543).
        gradient: Gradient of a centroid: the ``"mean"`` of its members' gradients, which suits the learning rate that
            the weights had, or their ``"sum"``, as in Deep Compression.
        schedule: Times of the clustering, and the fraction of weights that is assigned at each; ``"one_shot"``: all
            weights at once, with assignments that stay.
        targets: Selection of the weights.

    Attributes:
        unclustered: Selected layers that are not clustered, with the reason.

    Raises:
        ValueError: If an argument is invalid; in ``setup`` if targets match nothing, and if
            clustering would save nothing in any layer.

    >>> from lightning.pytorch import Trainer
    >>> callback = WeightClustering(16, schedule=Schedule(end=0.5))
    >>> trainer = Trainer(max_epochs=10, callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    constraint_class = CodebookConstraint
    options = ("num_clusters", "method", "granularity", "vector_size", "init", "weighted", "gradient", "schedule")
    noun = "clusters"
    verb = "clustered"

    def __init__(
        self,
        num_clusters: int | Mapping[str, int],
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
            raise ValueError(
                "method='dkm' supports neither vectors nor a one-shot schedule: set vector_size=1 and another curve."
            )
        num_clusters = plain_mapping(num_clusters)
        numbers = num_clusters if isinstance(num_clusters, Mapping) else {"*": num_clusters}
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
        self.unclustered: dict[str, str] = {}
        self._clusterer: Clusterer | None = None
        self._soft: dict[str, SoftClusters] = {}
        self._masks: MasksOfFit | None = None

    @property
    def computes_by_shard(self) -> bool:
        """True if weights are assigned to clusters, which their centroids tie together over ranks.

        Soft assignments replace the weights in the forward pass, where a rank has its share of a layer.
        """
        return self.method == "hard"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check strategy, targets and the other callbacks before the fit."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.method == "dkm" and any(is_a(t, "QuantizationAwareTraining") for t in techniques(trainer)):
            raise ValueError(
                "WeightClustering(method='dkm') does not support QuantizationAwareTraining in one fit, which would "
                "quantize weights before they are clustered: use method='hard', or quantize in a second fit."
            )
        if self.method == "dkm" and is_compiled(pl_module):
            raise ValueError(
                "WeightClustering(method='dkm') does not support compiled models, which would ignore the soft "
                "assignments: leave torch.compile out of this fit, or use method='hard'."
            )
        check_masks_come_first(trainer, self)

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the selected weights for which a codebook saves bytes.

        Raises:
            ValueError: If a glob matches no layer, and if there are no such weights.
        """
        layers = super().layers(model)
        names = [layer.layer for layer in layers]
        for glob in self._codebook_specs:
            if not any(matches(glob, name) for name in names):
                raise ValueError(f"num_clusters: {glob!r} matches no selected layer; they are {shorten(names)}.")
        matched = [layer for layer in layers if self._find_spec(layer) is not None]
        obstacles = {layer.name: self._spec_of(layer).skip_reason(layer) for layer in matched}
        clustered = [layer for layer in matched if not obstacles[layer.name]]
        # By its layer, unless the layer has other weights that are clustered.
        clustered_layers = {layer.layer for layer in clustered}
        self.unclustered = {
            layer.name if layer.layer in clustered_layers else layer.layer: obstacles[layer.name]
            for layer in matched
            if obstacles[layer.name]
        }
        if not clustered:
            name, why = next(iter(self.unclustered.items()))
            raise ValueError(
                f"WeightClustering would save no bytes in any layer ({name!r}: {why}): use fewer clusters."
            )
        return clustered

    def leaves_out(self, layer: str, module: nn.Module) -> bool:
        """Return True if the user has left out a layer, by targets or by the globs of the numbers of clusters."""
        return super().leaves_out(layer, module) or not any(matches(glob, layer) for glob in self._codebook_specs)

    def layer_metrics(self, pl_module: LightningModule) -> dict[str, dict[str, float]]:
        """Return the number of clusters that have members, of each layer that is clustered."""
        if self.constraint is None:
            return {}
        pairs = zip(self.constraint.layers, self.constraint.assignments, strict=True)
        counts = {layer.name: a.counts for layer, a in pairs if a is not None}
        return {"clusters": {name: float(count.count_nonzero()) for name, count in counts.items()}}

    def fit_metrics(self) -> dict[str, float]:
        """Return the fraction of the weights that are in clusters."""
        if self.constraint is None:
            return {}
        pairs = zip(self.constraint.layers, self.constraint.assignments, strict=True)
        shares = [
            (layer.num_weights, 0 if assignment is None else int(assignment.counts.sum()))
            for layer, assignment in pairs
        ]
        return {"clustered": sum(number for _, number in shares) / max(sum(n for n, _ in shares), 1)}

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Start with free weights, or restore assignments, accumulated gradients and soft assignments."""
        super().prepare(trainer, state)
        assert self.constraint is not None
        state = state or {}
        specs = [self._spec_of(layer) for layer in self.constraint.layers]
        self._clusterer = Clusterer(self.constraint, specs, weighted=self.weighted)
        if self._clusterer.accumulator is not None:
            self._clusterer.accumulator.load_state_dict(self.constraint.layers, state.get("squares", {}))
        for layer in self.constraint.layers:
            if layer.name in state.get("soft", {}):
                layout, device = self._spec_of(layer).layout(layer), layer.parameter.device
                self._soften(trainer, layer.name, SoftClusters.from_state(layout, state["soft"][layer.name], device))
        self._masks = MasksOfFit(trainer, self.constraint.layers)
        for name, why in self.unclustered.items():
            rank_zero_info(f"WeightClustering does not cluster {name!r}: {why}.")

    def current_state(self) -> dict[str, Any]:
        """Return assignments, counters, accumulated squared gradients and soft assignments."""
        assert self.constraint is not None
        accumulator = None if self._clusterer is None else self._clusterer.accumulator
        return {
            **super().current_state(),
            "squares": {} if accumulator is None else accumulator.state_dict(self.constraint.layers),
            "soft": {name: clusters.state_dict() for name, clusters in self._soft.items()},
        }

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make an update that is due before the first step, and set the sharpness of soft assignments."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._soft:
            now = progress(trainer, self.steps, in_step=False, in_batch=False)
            for clusters in self._soft.values():
                clusters.sharpness = self.schedule.ramp(now)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read dense gradients as long as they weight the clustering, then project them."""
        accumulator = None if self._clusterer is None else self._clusterer.accumulator
        if accumulator is not None and not self._finished:
            accumulator.read(self.layers_of(optimizer), loss_scale(trainer, optimizer))
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.gradient == "sum" and self.constraint is not None:
            self.constraint.sum_gradients_()

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Count the gradients that were read, and make an update that is due."""
        assert self._clusterer is not None
        if self._clusterer.accumulator is not None:
            self._clusterer.accumulator.step_completed(self.layers_of(optimizer))
        super().after_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step the centroids of soft assignments, and make the last update if the run ends without a step."""
        for clusters in self._soft.values():
            clusters.update_codebooks()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the state for a next fit, and let layers compute with their own weights again."""
        super().teardown(trainer, pl_module, stage)
        harden(pl_module)

    def attributes_outside_fit(self) -> dict[str, Any]:
        """Return the attributes that exist only during a fit, with their values outside of it."""
        return {**super().attributes_outside_fit(), "_clusterer": None, "_soft": {}, "_masks": None}

    def _find_spec(self, layer: Layer) -> CodebookSpec | None:
        return next((spec for glob, spec in self._codebook_specs.items() if matches(glob, layer.layer)), None)

    def _spec_of(self, layer: Layer) -> CodebookSpec:
        spec = self._find_spec(layer)
        assert spec is not None
        return spec

    def update(self, trainer: Trainer, now: Progress) -> None:
        """Cluster the weights anew if the schedule has an update due now, or if masks have changed."""
        assert self._clusterer is not None
        assert self._masks is not None
        assert self.constraint is not None
        if not self._is_due(now, self._masks) or not self._clusterer.is_ready:
            return
        self._tick = max(self.schedule.tick(now), 0)
        self._finished = self.schedule.finished(now)
        zeros = self._masks.zeros(self.constraint.layers)
        if self.method == "dkm" and not self._finished:
            for name, clusters in self._clusterer.soft_clusters(zeros).items():
                self._soften(trainer, name, clusters)
            return
        initial_centers = {name: clusters.codebooks for name, clusters in self._soft.items()}
        if self._soft:
            harden(trainer.lightning_module)
            self._soft = {}
        fraction = self.schedule.sparsity(1.0, now)
        self._clusterer.update(zeros, fraction=fraction, initial_centers=initial_centers)
        self.constraint_replaced(trainer)

    def _is_due(self, now: Progress, masks: MasksOfFit) -> bool:
        if not now.reached(self.schedule.begin) or not masks.reached:
            return False
        if self._tick < 0 or (self._finished and self._is_incomplete) or masks.changed:
            return True
        ticked = self.schedule.tick(now) > self._tick and self.method == "hard"
        return not self._finished and (ticked or self.schedule.finished(now))

    def _soften(self, trainer: Trainer, name: str, clusters: SoftClusters) -> None:
        self._soft[name] = clusters
        module, _, attribute = name.rpartition(".")
        soften(trainer.lightning_module.get_submodule(module), attribute, clusters)
