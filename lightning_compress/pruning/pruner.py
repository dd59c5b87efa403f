"""Puts pattern, score, distribution and growth together into new masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.growth import Growth
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.pools import Pool
from lightning_compress.pruning.scores import GradientScore, Probe, ProbeScore, Score


class Pruner:
    """Masks for the layers of a constraint, pool by pool.

    Args:
        constraint: Holds the masks and the layers.
        pools: Layers that are ranked together, and their targets.
        pattern: Shape of the zeros.
        score: What ranks the weights.
        growth: What grows back, if anything.
    """

    def __init__(
        self,
        constraint: MaskConstraint,
        pools: Sequence[Pool],
        *,
        pattern: Pattern,
        score: Score,
        growth: Growth | None = None,
    ) -> None:
        self.constraint = constraint
        self.pools = list(pools)
        self.pattern = pattern
        self.score = score
        self.growth = growth
        self.evidence: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    @property
    def has_evidence(self) -> bool:
        """Whether the score can be asked now."""
        return not isinstance(self.score, GradientScore) or bool(self.evidence)

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
                new, old = self._pending.pop(layer.name), self.evidence.get(layer.name)
                self.evidence[layer.name] = new if old is None else old.add_(new)

    @torch.no_grad()
    def update(
        self,
        sparsity: Callable[[float], float],
        *,
        step: int,
        probe: Callable[[], Probe] | None = None,
        exchange: float | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replaces the masks by those due now.

        Args:
            sparsity: Gives the sparsity that is due from a final sparsity.
            step: Completed optimizer steps.
            probe: Makes a probe, for scores that need one.
            exchange: Fraction of the schedule that is done, if weights are to be dropped and grown.
            gradients: Dense gradients, for growth that needs them.
        """
        due = [round(pool.num_weights * sparsity(pool.sparsity)) for pool in self.pools]
        if exchange is not None and self.growth is not None:
            self._exchange(due, exchange, gradients or {}, step)
        elif isinstance(self.score, ProbeScore):
            assert probe is not None
            self._probe(self.score, due, probe(), step)
        else:
            self._prune(due, step)
        if isinstance(self.score, GradientScore) and self.score.restarts:
            self.evidence = {}

    def _prune(self, due: Sequence[int], step: int) -> None:
        def importance(i: int) -> Tensor:
            layer = self.constraint.layers[i]
            scores = self.score.importance(layer, self.evidence.get(layer.name), step)
            return scores if self.constraint.is_dense else scores.masked_fill_(self.constraint.zeros[i], -torch.inf)

        chosen = self._choose(due, importance)
        # What is pruned stays so, also where a lower sparsity is due than the masks have.
        self.constraint.replace(
            [new.logical_and_(~old) for new, old in zip(chosen, self.constraint.zeros, strict=True)]
        )

    def _probe(self, score: ProbeScore, due: Sequence[int], probe: Probe, step: int) -> None:
        names = [layer.name for layer in self.constraint.layers]
        before = [self._num_masked(pool) for pool in self.pools]
        for done in range(1, score.rounds + 1):
            self.constraint.project_copy_(probe.model)
            with torch.enable_grad():
                evidence = score.evidence(probe, names)
            self.evidence = dict(zip(names, evidence, strict=True))
            part = done / score.rounds
            self._prune([_exponential(*ends, part) for ends in zip(self.pools, before, due, strict=True)], step)
        self.evidence = {}

    def _exchange(self, due: Sequence[int], done: float, gradients: Mapping[str, Tensor], step: int) -> None:
        growth = self.growth
        assert growth is not None
        dead = self.constraint.zeros
        layers = self.constraint.layers

        def magnitude(i: int) -> Tensor:
            return layers[i].weight.abs().float().masked_fill_(dead[i], -torch.inf)

        def priority(i: int) -> Tensor:
            ranked = growth.priority(layers[i], gradients.get(layers[i].name), step)
            return ranked.masked_fill_(live[i], torch.inf)

        extra = [growth.exchanged(pool.num_weights - num, done) for pool, num in zip(self.pools, due, strict=True)]
        live = self._choose([num + more for num, more in zip(due, extra, strict=True)], magnitude)
        live = [new.logical_and_(~old) for new, old in zip(live, dead, strict=True)]
        grown = self._choose(due, priority)
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

    def _num_masked(self, pool: Pool) -> int:
        return sum(int(self.constraint.layers[i].whole(self.constraint.zeros[i]).sum()) for i in pool.layers)


def _exponential(pool: Pool, before: int, after: int, part: float) -> int:
    """Number of weights to prune at a part of the way between two numbers, along an exponential curve of density."""
    start, end = pool.num_weights - before, pool.num_weights - after
    return pool.num_weights - round(start * (end / start) ** part)
