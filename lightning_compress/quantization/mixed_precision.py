"""Mixed precision: the bit width of each layer with the smallest total delta loss under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import escape

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]

from lightning_compress.quantization.int_spec import Int

# Coefficients of the capacity constraints stay below this number. The solver takes integers for integral, and
# constraints for satisfied, within 1e-6: that decides sums of such coefficients, but not those of millions of bits.
_BASE = 1024
# Largest cost that the solver is given: its absolute gap of 1e-6 is then 1e-12 of that.
_COST_SCALE = 1e6


@dataclass(frozen=True)
class Effect:
    """Delta loss of the model with the weights of one layer quantized, and all others in FP32.

    Attributes:
        layer: Layer name.
        num_weights: Number of weights of the layer.
        bits: Bits per weight.
        delta_loss: Mean loss minus that of the FP32 model; NaN or infinite if the loss is.
    """

    layer: str
    num_weights: int
    bits: int
    delta_loss: float

    @property
    def num_bytes(self) -> int:
        """Size of the bit-packed weights in bytes, rounded up."""
        return -(-self.num_weights * self.bits // 8)


@dataclass(frozen=True)
class _Option:
    """Effect as an option of the optimization.

    Attributes:
        effect: The effect.
        layer: Index of its layer.
        size: Size above that of the layer's smallest option.
        cost: Delta loss above the smallest one of the layer.
    """

    effect: Effect
    layer: int
    size: int
    cost: float


def by_layer(effects: Iterable[Effect]) -> dict[str, list[Effect]]:
    """Group effects by layer name."""
    layers: dict[str, list[Effect]] = {}
    for effect in effects:
        layers.setdefault(effect.layer, []).append(effect)
    return layers


def choose(effects: Iterable[Effect], *, max_bytes: int | None = None, mean_bits: float | None = None) -> list[Effect]:
    """Choose one effect of every layer: the smallest sum of delta losses within a budget.

    The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger 2004, chapter 11), solved to optimality as a
    mixed-integer linear program by HiGHS. Of options of a layer with equal delta losses, the one with the fewest bits
    is chosen.

    Args:
        effects: Effects to choose from, each layer's in ascending order of bits.
        max_bytes: Largest total of :attr:`Effect.num_bytes`, or ``None``.
        mean_bits: Largest mean of the bits per weight over all layers, or ``None``.

    Returns:
        The chosen effects, in the order of the layers.

    Raises:
        ValueError: If not exactly one budget is given, or no choice is within it.

    >>> effects = [Effect("a", 10, 2, 5.0), Effect("a", 10, 8, 0.0), Effect("b", 10, 2, 1.0), Effect("b", 10, 8, 0.0)]
    >>> [effect.bits for effect in choose(effects, mean_bits=5)]
    [8, 2]
    """
    layers = [_finite(layer) for layer in by_layer(effects).values()]
    if max_bytes is not None and mean_bits is None:
        sizes, budget = [[e.num_bytes for e in layer] for layer in layers], max_bytes
    elif mean_bits is not None and max_bytes is None:
        sizes = [[e.num_weights * e.bits for e in layer] for layer in layers]
        budget = _num_bits(mean_bits, (layer[0] for layer in layers))
    else:
        raise ValueError("Mixed precision needs one budget: give either max_bytes or mean_bits.")
    spare = budget - sum(options[0] for options in sizes)
    if spare < 0:
        given = f"max_bytes={max_bytes}" if mean_bits is None else f"mean_bits={mean_bits}"
        raise ValueError(f"{given} is impossible: {_smallest([layer[0] for layer in layers])}.")
    options = [
        _Option(effect, i, size - sizes[i][0], effect.delta_loss - min(e.delta_loss for e in layer))
        for i, layer in enumerate(layers)
        for k, (effect, size) in enumerate(zip(layer, sizes[i], strict=True))
        # An option with more bits that does not lower the loss is never needed.
        if all(effect.delta_loss < smaller.delta_loss for smaller in layer[:k])
    ]
    return [option.effect for option in _cheapest(options, spare)] if options else []


def as_quantization_spec(chosen: Sequence[Effect]) -> dict[str, Int | None]:
    """Return the bits of each layer in the form of ``QuantizationAwareTraining(weights=...)``.

    A glob of a module matches all modules inside it, and the first match counts: nested layers come first.
    """
    num_inside = {e.layer: sum(other.layer.startswith(f"{e.layer}.") for other in chosen) for e in chosen}
    return {escape(e.layer): Int(e.bits) for e in sorted(chosen, key=lambda e: num_inside[e.layer])}


def _cheapest(options: Sequence[_Option], spare: int) -> list[_Option]:
    """Return one option of every layer with the smallest total cost and a total size of at most ``spare``."""
    num_layers = 1 + max(option.layer for option in options)
    capacity, limits = _capacity(options, spare, num_layers)
    num_variables = capacity.shape[1]
    costs, one_each = np.zeros(num_variables), np.zeros((num_layers, num_variables))
    costs[: len(options)] = [option.cost for option in options]
    costs *= _COST_SCALE / (costs.max() or 1.0)
    for variable, option in enumerate(options):
        one_each[option.layer, variable] = 1
    upper = np.array([1] * len(options) + [num_layers] * (num_variables - len(options)))
    solution = milp(
        costs,
        integrality=np.ones(num_variables),
        bounds=Bounds(0, upper),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(capacity, -np.inf, limits)],
        options={"mip_rel_gap": 0.0},
    )
    assert solution.success, solution.message
    chosen = [option for option, value in zip(options, solution.x[: len(options)], strict=True) if value > 0.5]
    # The solver computes in doubles with tolerances; the budget is checked in exact integers.
    assert [option.layer for option in chosen] == list(range(num_layers))
    assert sum(option.size for option in chosen) <= spare
    # No option that costs more than this choice alone is part of a better one. Without them, costs are scaled by a
    # smaller maximum, and the gap is relative to the total: a layer that diverges with few bits hides no differences.
    total = sum(option.cost for option in chosen)
    affordable = [option for option in options if option.cost <= total]
    return chosen if len(affordable) == len(options) else _cheapest(affordable, spare)


def _capacity(options: Sequence[_Option], spare: int, num_layers: int) -> tuple[np.ndarray, list[int]]:
    """Return the constraint on the total size as a matrix and upper bounds, one row for each digit in base 1024.

    A long addition with a carry variable after each digit but the last: ``sum(digits) + carry_in - 1024 * carry_out``
    is at most the digit of ``spare``. There are integral carries exactly if the total is at most ``spare``, and a carry
    is never larger than the number of layers, each of which adds one digit.
    """
    spare = min(spare, sum(max(o.size for o in options if o.layer == layer) for layer in range(num_layers)))
    num_digits = 1
    while _BASE**num_digits <= max(spare, *(option.size for option in options)):
        num_digits += 1
    matrix = np.zeros((num_digits, len(options) + num_digits - 1))
    for row in range(num_digits):
        matrix[row, : len(options)] = [option.size // _BASE**row % _BASE for option in options]
    carries = matrix[:, len(options) :]
    for row in range(num_digits - 1):
        carries[row, row], carries[row + 1, row] = -_BASE, 1
    return matrix, [spare // _BASE**row % _BASE for row in range(num_digits)]


def _finite(layer: Sequence[Effect]) -> list[Effect]:
    """Return the effects that can be chosen: those with a finite delta loss."""
    finite = [effect for effect in layer if math.isfinite(effect.delta_loss)]
    if not finite:
        raise ValueError(f"{layer[0].layer!r} has no finite loss with any number of bits: exclude it in targets.")
    return finite


def _num_bits(mean_bits: float, layers: Iterable[Effect]) -> int:
    """Return the largest total number of bits with a mean."""
    return math.floor(mean_bits * sum(e.num_weights for e in layers))


def _smallest(effects: Sequence[Effect]) -> str:
    num_bytes, num_bits = sum(e.num_bytes for e in effects), sum(e.num_weights * e.bits for e in effects)
    # Rounded up, so that the budget in the message is possible, also where its product is rounded down.
    thousandths = math.ceil(1000 * num_bits / sum(e.num_weights for e in effects))
    if _num_bits(thousandths / 1000, effects) < num_bits:
        thousandths += 1
    return f"with the fewest bits of each layer it is {num_bytes} bytes, or {thousandths / 1000:g} bits on average"
