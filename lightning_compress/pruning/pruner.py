"""Pruners: combine pattern, score, ranking groups and growth into new masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.finite import check_finite
from lightning_compress.constraints.gradient_accumulator import GradientAccumulator
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import stack, stack_weights
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.growth import Growth
from lightning_compress.pruning.patterns import BatchScore, WeightPattern
from lightning_compress.pruning.probe_scores import Probe, ProbeScore, probe_score
from lightning_compress.pruning.ranking_groups import RankingGroup
from lightning_compress.pruning.scores import GradientScore, Score


class HasSparsity(Protocol):
    """Layers or channel groups that are ranked together."""

    @property
    def sparsity(self) -> float:
        """Final sparsity in [0, 1)."""


G = TypeVar("G", bound=HasSparsity)


class Pruner(ABC, Generic[G]):
    """Compute new masks from the scores of weights or channels.

    Args:
        constraint: The masks and the layers that they are for.
        ranking_groups: Layers or channel groups that are ranked together, with their final sparsities.
        score: Importance score.
        probe_score: The same score if it is computed on a probe, else ``None``.
    """

    def __init__(
        self, constraint: MaskConstraint, ranking_groups: Sequence[G], score: Score, probe_score: ProbeScore | None
    ) -> None:
        self.constraint = constraint
        self.ranking_groups = list(ranking_groups)
        self.score = score
        self.probe_score = probe_score
        self.accumulator = GradientAccumulator(score.contribution) if isinstance(score, GradientScore) else None
        self._scores_of_probe: dict[str, Tensor] = {}

    @property
    def accumulated_scores(self) -> Mapping[str, Tensor]:
        """Scores by parameter name that weights alone do not give: summed over steps, or measured by a probe."""
        return self._scores_of_probe if self.accumulator is None else self.accumulator.sums

    @property
    def is_ready(self) -> bool:
        """Return True if weights can be ranked: a gradient score needs at least one completed step."""
        names = (layer.name for layer in self.constraint.layers)
        return self.accumulator is None or all(name in self.accumulator.sums for name in names)

    @torch.no_grad()
    def update(
        self,
        sparsity: Callable[[float], float],
        *,
        step: int,
        probe: Callable[[], Probe] | None = None,
        drop_and_grow: float | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replace the masks by those for the current sparsity.

        Args:
            sparsity: Maps a final sparsity to the current one.
            step: Completed optimizer steps.
            probe: Creates a probe, for scores that need one.
            drop_and_grow: Completed fraction of the schedule if weights are to be dropped and grown, else ``None``.
            gradients: Dense gradients by parameter name, for growth that needs them; where a layer has none, nothing
                is dropped or grown in it.

        Raises:
            ValueError: If a weight or an accumulated score is not finite.
        """
        self._check_weights()
        self._check_scores()
        sparsities = [sparsity(group.sparsity) for group in self.ranking_groups]
        if drop_and_grow is not None:
            self._drop_and_grow(sparsities, drop_and_grow, gradients or {}, step)
        elif self.probe_score is not None:
            assert probe is not None
            self._prune_in_rounds(self.probe_score, sparsities, probe(), step)
        else:
            self._prune(sparsities, step)
        if self.accumulator is not None and isinstance(self.score, GradientScore) and self.score.restarts:
            self.accumulator.clear()

    def _prune_in_rounds(self, score: ProbeScore, sparsities: Sequence[float], probe: Probe, step: int) -> None:
        """Score and prune in turn, with the probe masked as in the last round."""
        names = [layer.name for layer in self.constraint.layers]
        before = [self._current_sparsity(group) for group in self.ranking_groups]
        for number in range(1, score.rounds + 1):
            self.constraint.project_copy_(probe.model)
            with torch.enable_grad():
                scores = score.score_weights(probe, names)
            layers = self.constraint.layers
            self._scores_of_probe = {la.name: la.local(full) for la, full in zip(layers, scores, strict=True)}
            self._check_scores()
            fraction = number / score.rounds
            self._prune([_interpolate(*ends, fraction) for ends in zip(before, sparsities, strict=True)], step)
        self._scores_of_probe = {}

    def _check_weights(self) -> None:
        layers, batches = self.constraint.layers, list(self.constraint.trained_batches())
        stacks = (stack_weights([layers[i] for i in batch]) for batch in batches)
        check_finite(layers, batches, stacks, quantity="weights", purpose="ranked")

    def _check_scores(self) -> None:
        layers, sums = self.constraint.layers, self.accumulated_scores
        scored = ([i for i in batch if layers[i].name in sums] for batch in self.constraint.trained_batches())
        batches = [batch for batch in scored if batch]
        stacks = (stack([sums[layers[i].name] for i in batch]) for batch in batches)
        check_finite(layers, batches, stacks, quantity=f"{type(self.score).__name__} scores", purpose="ranked")

    @abstractmethod
    def _prune(self, sparsities: Sequence[float], step: int) -> None:
        """Mask the lowest scores, up to one sparsity for each ranking group."""

    @abstractmethod
    def _current_sparsity(self, ranking_group: G) -> float:
        """Return the sparsity of a ranking group under the current masks."""

    def _drop_and_grow(
        self, sparsities: Sequence[float], progress: float, gradients: Mapping[str, Tensor], step: int
    ) -> None:
        """Drop weights and grow others, in pruners that support it."""
        raise AssertionError("only a WeightPruner drops and grows")


class WeightPruner(Pruner[RankingGroup]):
    """Pruner of weights, alone or in the units of a pattern.

    Args:
        constraint: The masks and the layers that they are for.
        ranking_groups: Layers that are ranked together, with their final sparsities.
        score: Importance score of the weights.
        pattern: Sparsity pattern.
        growth: Drop-and-grow rule of dynamic sparse training, or ``None``.
    """

    def __init__(
        self,
        constraint: MaskConstraint,
        ranking_groups: Sequence[RankingGroup],
        score: Score,
        *,
        pattern: WeightPattern,
        growth: Growth | None = None,
    ) -> None:
        super().__init__(constraint, ranking_groups, score, probe_score(score, channels=False))
        self.pattern = pattern
        self.growth = growth

    @override
    def _prune(self, sparsities: Sequence[float], step: int) -> None:
        self._prune_by(
            self._num_pruned(sparsities),
            lambda layers: self.score.batch_importance(layers, self.accumulated_scores, step),
        )

    def _prune_by(self, num_pruned: Sequence[int], importance: BatchScore) -> None:
        # Masked weights rank last, so that they stay masked as long as the sparsity does not decrease. With a lower
        # sparsity than before, the ranking would revive them.
        index = {layer.name: i for i, layer in enumerate(self.constraint.layers)}

        def masked_importance(layers: Sequence[Layer]) -> Tensor:
            scores = importance(layers)
            if self.constraint.is_dense:
                return scores
            return scores.masked_fill_(
                self.constraint.stacked_zeros([index[layer.name] for layer in layers]), -torch.inf
            )

        self.constraint.narrow(self._choose(num_pruned, masked_importance))

    @override
    def _drop_and_grow(
        self, sparsities: Sequence[float], progress: float, gradients: Mapping[str, Tensor], step: int
    ) -> None:
        growth = self.growth
        assert growth is not None
        layers = self.constraint.layers
        num_pruned = self._num_pruned(sparsities)
        still = {i for i, layer in enumerate(layers) if growth.needs_gradient and layer.name not in gradients}
        still -= self.constraint.frozen
        if still:
            # They take part in a rise of the sparsity, but not in what is dropped and grown.
            self._prune_by(num_pruned, lambda batch: stack_weights(batch).abs().float())
        masked = self.constraint.zeros

        def magnitude(i: int) -> Tensor:
            scores = layers[i].weight.abs().float()
            return (scores.fill_(torch.inf) if i in still else scores).masked_fill_(masked[i], -torch.inf)

        def priority(i: int) -> Tensor:
            if i in still:
                return torch.full_like(active[i], -torch.inf, dtype=torch.float32).masked_fill_(active[i], torch.inf)
            priorities = growth.priority(layers[i], gradients.get(layers[i].name), step)
            return priorities.masked_fill_(active[i], torch.inf)

        num_dropped = [
            growth.num_dropped_and_grown(
                self._size(group) - num - self._num_active(still & set(group.layers)), progress
            )
            for group, num in zip(self.ranking_groups, num_pruned, strict=True)
        ]
        # Drop the smallest active weights, then keep the rest and grow by priority until the sparsity is reached.
        num_inactive = [num + more for num, more in zip(num_pruned, num_dropped, strict=True)]
        # Two replacements, so that a weight that is dropped and grown again starts at zero like other grown weights.
        self.constraint.narrow(self._choose(num_inactive, self._by_layer(magnitude)))
        active = self.constraint.masks
        self.constraint.replace(self._choose(num_pruned, self._by_layer(priority)))

    def _num_active(self, indices: Iterable[int]) -> int:
        """Return the number of weights of some layers that are not masked; a collective if they are sharded."""
        layers, zeros = self.constraint.layers, self.constraint.zeros
        return sum(int((~layers[i].full(zeros[i])).sum()) for i in sorted(indices))

    def _by_layer(self, score: Callable[[int], Tensor]) -> BatchScore:
        """Return the scores of batches from those of single layers, given by their indices."""
        index = {layer.name: i for i, layer in enumerate(self.constraint.layers)}
        return lambda layers: stack([score(index[layer.name]) for layer in layers])

    def _choose(self, num_pruned: Sequence[int], importance: BatchScore) -> list[Tensor]:
        layers = self.constraint.layers
        masks: dict[int, Tensor] = {}
        for group, num in zip(self.ranking_groups, num_pruned, strict=True):
            trained = self._trained(group)
            members = [layers[i] for i in trained]
            chosen = self.pattern.choose(members, importance, num) if members else []
            masks.update(zip(trained, chosen, strict=True))
        zeros = self.constraint.zeros
        return [masks[i] if i in masks else ~zeros[i] for i in range(len(layers))]

    def _trained(self, group: RankingGroup) -> list[int]:
        """Return the layers of a group that may change."""
        return [i for i in group.layers if i not in self.constraint.frozen]

    def _size(self, group: RankingGroup) -> int:
        """Return the number of weights of a group that may change."""
        return sum(self.constraint.layers[i].num_weights for i in self._trained(group))

    def _num_pruned(self, sparsities: Sequence[float]) -> list[int]:
        groups = zip(self.ranking_groups, sparsities, strict=True)
        return [round(self._size(group) * sparsity) for group, sparsity in groups]

    @override
    def _current_sparsity(self, ranking_group: RankingGroup) -> float:
        num_weights = ranking_group.num_weights
        return (num_weights - self._num_active(ranking_group.layers)) / num_weights


def _interpolate(before: float, after: float, fraction: float) -> float:
    """Interpolate between two sparsities, with a density that decays exponentially (Tanaka et al. 2020)."""
    return after if fraction == 1 else 1 - (1 - before) * ((1 - after) / (1 - before)) ** fraction
