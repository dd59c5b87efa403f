"""Which layers are ranked together, and how many weights each such pool loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.distributions import Distribution
from lightning_compress.targets import matches, shorten


@dataclass(frozen=True)
class Pool:
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


def make_pools(
    layers: Sequence[Layer],
    sparsity: float | Mapping[str, float],
    distribution: Distribution | None = None,
    *,
    unit_size: Callable[[Layer], int] = lambda layer: 1,
) -> list[Pool]:
    """One pool for all layers or for each glob, or one for each layer if a distribution spreads the sparsity.

    Raises:
        ValueError: For a glob that matches no layer, and if a layer would lose all its weights.
    """
    parts = _parts(layers, sparsity) if isinstance(sparsity, Mapping) else [(range(len(layers)), sparsity)]
    pools: list[Pool] = []
    for indices, part in parts:
        sizes = [layers[i].shape.numel() for i in indices]
        if distribution is None:
            pools.append(Pool(tuple(indices), round(sum(sizes) * part), sum(sizes)))
        else:
            pruned = distribution.num_pruned([layers[i].shape for i in indices], part)
            pools += [Pool((i,), num, size) for i, num, size in zip(indices, pruned, sizes, strict=True)]
    for pool in pools:
        members = [layers[i] for i in pool.layers]
        kept = pool.num_weights - pool.num_pruned
        if kept < sum(unit_size(layer) for layer in members):
            raise ValueError(
                f"A sparsity of {pool.sparsity:g} leaves {kept} weights for {shorten([m.name for m in members])}, "
                "too few for one unit of each: lower it, or leave layers out with Targets(exclude=...)."
            )
    return pools


def _parts(layers: Sequence[Layer], sparsity: Mapping[str, float]) -> list[tuple[list[int], float]]:
    parts: dict[str, list[int]] = {glob: [] for glob in sparsity}
    names = [layer.layer for layer in layers]
    for glob in sparsity:
        if not any(matches(glob, name) for name in names):
            raise ValueError(f"sparsity: {glob!r} matches no selected layer; they are {shorten(names)}.")
    for i, name in enumerate(names):
        first = next((glob for glob in sparsity if matches(glob, name)), None)
        if first is not None:
            parts[first].append(i)
    return [(indices, sparsity[glob]) for glob, indices in parts.items() if indices]
