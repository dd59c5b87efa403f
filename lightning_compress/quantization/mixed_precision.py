"""The numbers of bits that cost least under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape

from lightning_compress.functional.knapsack import cheapest
from lightning_compress.quantization.int_spec import Int


@dataclass(frozen=True)
class Effect:
    """What it does to the loss that one layer's weights are integers, all else being float.

    Attributes:
        layer: Name of the layer.
        num_weights: How many weights it has.
        bits: Of each of them.
        rise: Mean loss minus that of the float model; not finite where the loss is not.
    """

    layer: str
    num_weights: int
    bits: int
    rise: float

    @property
    def num_bytes(self) -> int:
        """Of the integers, packed into whole bytes."""
        return -(-self.num_weights * self.bits // 8)


def by_layer(effects: Iterable[Effect]) -> dict[str, list[Effect]]:
    """The effects of each layer's numbers of bits."""
    layers: dict[str, list[Effect]] = {}
    for effect in effects:
        layers.setdefault(effect.layer, []).append(effect)
    return layers


def choose(effects: Iterable[Effect], *, max_bytes: int | None = None, mean_bits: float | None = None) -> list[Effect]:
    """One effect of every layer, of the smallest total rise within a budget.

    Args:
        effects: Those to choose from, each layer's fewest bits first.
        max_bytes: Most bytes of all layers, or ``None``.
        mean_bits: Most bits of a weight on average over all layers, or ``None``.

    Raises:
        ValueError: If not exactly one budget is given, or nothing is within it.
    """
    layers = [_finite(layer) for layer in by_layer(effects).values()]
    if max_bytes is not None and mean_bits is None:
        sizes, budget = [[e.num_bytes for e in layer] for layer in layers], max_bytes
    elif mean_bits is not None and max_bytes is None:
        sizes = [[e.num_weights * e.bits for e in layer] for layer in layers]
        budget = math.floor(mean_bits * sum(layer[0].num_weights for layer in layers))
    else:
        raise ValueError("Mixed precision needs one budget: give either max_bytes or mean_bits.")
    if sum(options[0] for options in sizes) > budget:
        given = f"max_bytes={max_bytes}" if mean_bits is None else f"mean_bits={mean_bits}"
        raise ValueError(f"{given} is impossible: {_smallest([layer[0] for layer in layers])}.")
    picks = cheapest(sizes, [[e.rise for e in layer] for layer in layers], budget)
    return [layer[pick] for layer, pick in zip(layers, picks, strict=True)]


def as_numbers(chosen: Sequence[Effect]) -> dict[str, Int | None]:
    """Integers by globs; what lies inside of another layer comes first, as the first glob that matches counts."""
    inside = {e.layer: sum(other.layer.startswith(f"{e.layer}.") for other in chosen) for e in chosen}
    return {escape(e.layer): Int(e.bits) for e in sorted(chosen, key=lambda e: inside[e.layer])}


def _finite(layer: Sequence[Effect]) -> list[Effect]:
    """The effects that can be chosen."""
    finite = [effect for effect in layer if math.isfinite(effect.rise)]
    if not finite:
        raise ValueError(f"{layer[0].layer!r} has no finite loss with any number of bits: exclude it in targets.")
    return finite


def _smallest(effects: Sequence[Effect]) -> str:
    num_bytes, num_weights = sum(e.num_bytes for e in effects), sum(e.num_weights for e in effects)
    mean_bits = sum(e.num_weights * e.bits for e in effects) / num_weights
    rounded = math.ceil(mean_bits * 1000) / 1000  # up, so that what the message says is possible
    return f"with the fewest bits of each layer it is {num_bytes} bytes, or {rounded:g} bits on average"
