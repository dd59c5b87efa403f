"""Ranking groups: layers that are ranked together, and the number of weights that each group loses."""

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
        layers: Indices of the layers in the constraint.
        num_pruned: Number of weights to prune in all of the layers at the end of the schedule.
        num_weights: Number of weights in all of the layers.
    """

    layers: tuple[int, ...]
    num_pruned: int
    num_weights: int

    @property
    def sparsity(self) -> float:
        """Final sparsity in [0, 1)."""
        return self.num_pruned / self.num_weights


def make_ranking_groups(
    layers: Sequence[Layer],
    sparsity: float | Mapping[str, float],
    distribution: Distribution | None = None,
    *,
    unit_size: Callable[[Layer], int] = lambda layer: 1,
) -> list[RankingGroup]:
    """Return one ranking group for all layers or per glob; with a distribution, one per layer.

    Args:
        layers: The layers.
        sparsity: Final sparsity of all layers, or sparsities by globs over layer names.
        distribution: Distribution of each sparsity over layers.
        unit_size: Number of weights of a layer that are pruned together.

    Raises:
        ValueError: If a glob matches no layer, or if a layer would lose all of its weights.
    """
    groups: list[RankingGroup] = []
    by_sparsity = group_by_sparsity(range(len(layers)), sparsity, lambda i: [layers[i].layer], kind="selected layer")
    for indices, target in by_sparsity:
        sizes = [layers[i].shape.numel() for i in indices]
        if distribution is None:
            groups.append(RankingGroup(tuple(indices), round(sum(sizes) * target), sum(sizes)))
        else:
            pruned = distribution.num_pruned([layers[i].shape for i in indices], target)
            groups += [RankingGroup((i,), num, size) for i, num, size in zip(indices, pruned, sizes, strict=True)]
    for group in groups:
        members = [layers[i] for i in group.layers]
        kept = group.num_weights - group.num_pruned
        # The ranking keeps the highest unit of every layer, for which there must be room.
        if kept < sum(unit_size(layer) for layer in members):
            raise ValueError(
                f"A sparsity of {group.sparsity:g} leaves {kept} weights for {shorten([m.name for m in members])}, "
                "fewer than one unit of each: lower the sparsity, or exclude layers with Targets(exclude=...)."
            )
    return groups


def group_by_sparsity(
    items: Sequence[T], sparsity: float | Mapping[str, float], names: Callable[[T], Sequence[str]], *, kind: str
) -> list[tuple[list[T], float]]:
    """Group items by the first glob that matches one of their names; items without a match are left out.

    Args:
        items: Layers or channel groups.
        sparsity: One sparsity for all items, or sparsities by globs.
        names: Maps an item to the layer names by which globs match it; messages show the first.
        kind: Description of an item for messages.

    Returns:
        Items and their sparsity, for each glob with items.

    Raises:
        ValueError: If a glob matches no item.

    >>> group_by_sparsity(["enc.0", "enc.1", "dec"], {"enc": 0.8, "dec": 0.5}, lambda name: [name], kind="layer")
    [(['enc.0', 'enc.1'], 0.8), (['dec'], 0.5)]
    """
    if not isinstance(sparsity, Mapping):
        return [(list(items), sparsity)]
    grouped: dict[str, list[T]] = {glob: [] for glob in sparsity}
    for glob in sparsity:
        if not any(matches(glob, name) for item in items for name in names(item)):
            available = shorten([names(item)[0] for item in items])
            raise ValueError(f"sparsity: {glob!r} matches no {kind}; the names are {available}.")
    for item in items:
        first = next((glob for glob in sparsity if any(matches(glob, name) for name in names(item))), None)
        if first is not None:
            grouped[first].append(item)
    return [(members, sparsity[glob]) for glob, members in grouped.items() if members]
