"""Puts pattern, score, distribution and growth together into new masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.growth import Growth
from lightning_compress.pruning.patterns import WeightPattern
from lightning_compress.pruning.probe_scores import Probe, ProbeScore, probe_score
from lightning_compress.pruning.ranking_groups import RankingGroup
from lightning_compress.pruning.scores import GradientScore, Score


class Ranked(Protocol):
    """What is ranked together."""

    @property
    def sparsity(self) -> float:
        """The final sparsity."""


P = TypeVar("P", bound=Ranked)


class Pruner(ABC, Generic[P]):
    """Finds new masks, and gathers what its score is to know for that.

    Args:
        constraint: Holds the masks and the layers.
        pools: What is ranked together, and the final sparsities.
        score: What ranks it.
        probe_score: The same, if it needs passes of its own for that.
    """

    def __init__(
        self, constraint: MaskConstraint, pools: Sequence[P], score: Score, probe_score: ProbeScore | None
    ) -> None:
        self.constraint = constraint
        self.pools = list(pools)
        self.score = score
        self.probe_score = probe_score
        self.accumulated_scores: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    @property
    def has_accumulated_scores(self) -> bool:
        """Whether the score can be asked now."""
        return not isinstance(self.score, GradientScore) or bool(self.accumulated_scores)

    @torch.no_grad()
    def read_gradients(self, layers: Sequence[Layer], scale: float = 1.0) -> None:
        """Takes in dense gradients, loss scale included, of a step that is about to be made on ``layers``."""
        if isinstance(self.score, GradientScore):
            for layer in layers:
                gradient = torch.zeros_like(layer.weight) if layer.parameter.grad is None else layer.gradient
                self._pending[layer.name] = self.score.contribution(layer.weight.float(), gradient.float() / scale)

    def step_completed(self, layers: Sequence[Layer]) -> None:
        """Counts the gradients that were read, now that the step has been made."""
        for layer in layers:
            if layer.name in self._pending:
                new, old = self._pending.pop(layer.name), self.accumulated_scores.get(layer.name)
                self.accumulated_scores[layer.name] = new if old is None else old.add_(new)

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
        """Replaces the masks by those due now.

        Args:
            sparsity: Gives the sparsity that is due from a final sparsity.
            step: Completed optimizer steps.
            probe: Makes a probe, for scores that need one.
            drop_and_grow: Fraction of the schedule that is done, if weights are to be dropped and grown.
            gradients: Dense gradients, for growth that needs them.
        """
        due = [sparsity(pool.sparsity) for pool in self.pools]
        if drop_and_grow is not None:
            self._drop_and_grow(due, drop_and_grow, gradients or {}, step)
        elif self.probe_score is not None:
            assert probe is not None
            self._probe(self.probe_score, due, probe(), step)
        else:
            self._prune(due, step)
        if isinstance(self.score, GradientScore) and self.score.restarts:
            self.accumulated_scores = {}

    def _probe(self, score: ProbeScore, due: Sequence[float], probe: Probe, step: int) -> None:
        names = [layer.name for layer in self.constraint.layers]
        before = [self._masked(pool) for pool in self.pools]
        for done in range(1, score.rounds + 1):
            self.constraint.project_copy_(probe.model)
            with torch.enable_grad():
                accumulated_scores = score.accumulated_scores(probe, names)
            self.accumulated_scores = dict(zip(names, accumulated_scores, strict=True))
            self._prune([_exponential(*ends, done / score.rounds) for ends in zip(before, due, strict=True)], step)
        self.accumulated_scores = {}

    @abstractmethod
    def _prune(self, due: Sequence[float], step: int) -> None:
        """Masks the lowest, up to a sparsity of each pool."""

    @abstractmethod
    def _masked(self, pool: P) -> float:
        """The sparsity that the masks give a pool."""

    def _drop_and_grow(self, due: Sequence[float], done: float, gradients: Mapping[str, Tensor], step: int) -> None:
        """Drops and grows weights."""
        raise AssertionError("only weights grow back")


class WeightPruner(Pruner[RankingGroup]):
    """Masks for the layers of a constraint, pool by pool.

    Args:
        constraint: Holds the masks and the layers.
        pools: Layers that are ranked together, and their targets.
        score: What ranks the weights.
        pattern: Shape of the zeros.
        growth: What grows back, if anything.
    """

    def __init__(
        self,
        constraint: MaskConstraint,
        pools: Sequence[RankingGroup],
        score: Score,
        *,
        pattern: WeightPattern,
        growth: Growth | None = None,
    ) -> None:
        super().__init__(constraint, pools, score, probe_score(score, channels=False))
        self.pattern = pattern
        self.growth = growth

    @override
    def _prune(self, due: Sequence[float], step: int) -> None:
        def importance(i: int) -> Tensor:
            layer = self.constraint.layers[i]
            scores = self.score.importance(layer, self.accumulated_scores.get(layer.name), step)
            return scores if self.constraint.is_dense else scores.masked_fill_(self.constraint.zeros[i], -torch.inf)

        chosen = self._choose(self._numbers(due), importance)
        # What is pruned stays so, also where a lower sparsity is due than the masks have.
        self.constraint.replace(
            [new.logical_and_(~old) for new, old in zip(chosen, self.constraint.zeros, strict=True)]
        )

    @override
    def _drop_and_grow(self, due: Sequence[float], done: float, gradients: Mapping[str, Tensor], step: int) -> None:
        growth = self.growth
        assert growth is not None
        dead = self.constraint.zeros
        layers = self.constraint.layers
        pruned = self._numbers(due)

        def magnitude(i: int) -> Tensor:
            return layers[i].weight.abs().float().masked_fill_(dead[i], -torch.inf)

        def priority(i: int) -> Tensor:
            ranked = growth.priority(layers[i], gradients.get(layers[i].name), step)
            return ranked.masked_fill_(live[i], torch.inf)

        extra = [
            growth.num_dropped_and_grown(pool.num_weights - num, done)
            for pool, num in zip(self.pools, pruned, strict=True)
        ]
        live = self._choose([num + more for num, more in zip(pruned, extra, strict=True)], magnitude)
        live = [new.logical_and_(~old) for new, old in zip(live, dead, strict=True)]
        grown = self._choose(pruned, priority)
        # Grown weights begin at zero, also those that were dropped just now.
        self.constraint.replace(live)
        self.constraint.replace(grown)

    def _choose(self, due: Sequence[int], importance: Callable[[int], Tensor]) -> list[Tensor]:
        layers = self.constraint.layers
        index = {id(layer): i for i, layer in enumerate(layers)}
        masks: dict[int, Tensor] = {}
        for pool, num_pruned in zip(self.pools, due, strict=True):
            members = [layers[i] for i in pool.layers]
            chosen = self.pattern.choose(members, lambda layer: importance(index[id(layer)]), num_pruned)
            masks.update(zip(pool.layers, chosen, strict=True))
        return [masks[i] for i in range(len(layers))]

    def _numbers(self, due: Sequence[float]) -> list[int]:
        """Number of weights to prune in each pool."""
        return [round(pool.num_weights * sparsity) for pool, sparsity in zip(self.pools, due, strict=True)]

    @override
    def _masked(self, pool: RankingGroup) -> float:
        layers, zeros = self.constraint.layers, self.constraint.zeros
        return sum(int(layers[i].full(zeros[i]).sum()) for i in pool.layers) / pool.num_weights


def _exponential(before: float, after: float, part: float) -> float:
    """The sparsity at a part of the way between two, along an exponential curve of density."""
    return after if part == 1 else 1 - (1 - before) * ((1 - after) / (1 - before)) ** part
