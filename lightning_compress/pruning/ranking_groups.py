"""Which layers are ranked together, and how many weights each such pool loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.distributions import Distribution
from lightning_compress.targets import matches, shorten

T = TypeVar("T")


@dataclass(frozen=True)
class RankingGroup:
    """Layers that are ranked together.

    Attributes:
        layers: Indices of the layers.
        num_pruned: Number of weights to prune in all of them at the end.
        num_weights: Number of weights in all of them.
    """

    layers: tuple[int, ...]
    num_pruned: int
    num_weights: int

    @property
    def sparsity(self) -> float:
        """The final sparsity."""
        return self.num_pruned / self.num_weights


def make_ranking_groups(
    layers: Sequence[Layer],
    sparsity: float | Mapping[str, float],
    distribution: Distribution | None = None,
    *,
    unit_size: Callable[[Layer], int] = lambda layer: 1,
) -> list[RankingGroup]:
    """One pool for all layers or for each glob, or one for each layer if a distribution spreads the sparsity.

    Raises:
        ValueError: For a glob that matches no layer, and if a layer would lose all its weights.
    """
    parts = ranked_together(range(len(layers)), sparsity, lambda i: [layers[i].layer], of="selected layer")
    pools: list[RankingGroup] = []
    for indices, part in parts:
        sizes = [layers[i].shape.numel() for i in indices]
        if distribution is None:
            pools.append(RankingGroup(tuple(indices), round(sum(sizes) * part), sum(sizes)))
        else:
            pruned = distribution.num_pruned([layers[i].shape for i in indices], part)
            pools += [RankingGroup((i,), num, size) for i, num, size in zip(indices, pruned, sizes, strict=True)]
    for pool in pools:
        members = [layers[i] for i in pool.layers]
        kept = pool.num_weights - pool.num_pruned
        if kept < sum(unit_size(layer) for layer in members):
            raise ValueError(
                f"A sparsity of {pool.sparsity:g} leaves {kept} weights for {shorten([m.name for m in members])}, "
                "too few for one unit of each: lower it, or leave layers out with Targets(exclude=...)."
            )
    return pools


def ranked_together(
    items: Sequence[T], sparsity: float | Mapping[str, float], names: Callable[[T], Sequence[str]], *, of: str
) -> list[tuple[list[T], float]]:
    """All items, or items by the first glob that matches one of their names, with the sparsity of each such part.

    Items without a match are left out.

    Args:
        items: What is pruned.
        sparsity: One for all, or by globs.
        names: Names of the layers of an item, the first of which stands for it.
        of: What an item is, for the message.

    Raises:
        ValueError: For a glob that matches none.
    """
    if not isinstance(sparsity, Mapping):
        return [(list(items), sparsity)]
    parts: dict[str, list[T]] = {glob: [] for glob in sparsity}
    for glob in sparsity:
        if not any(matches(glob, name) for item in items for name in names(item)):
            there = shorten([names(item)[0] for item in items])
            raise ValueError(f"sparsity: {glob!r} matches no {of}; they are {there}.")
    for item in items:
        first = next((glob for glob in sparsity if any(matches(glob, name) for name in names(item))), None)
        if first is not None:
            parts[first].append(item)
    return [(part, sparsity[glob]) for glob, part in parts.items() if part]
