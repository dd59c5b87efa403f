"""The choice of bit widths under a budget, against all choices."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_compress as lc
from lightning_compress.quantization.mixed_precision import Effect, choose


@st.composite
def measurements(draw: st.DrawFn, largest: int = 500) -> lc.Sensitivity:
    """Up to five layers with up to three bit widths, and delta losses that add up without rounding."""
    effects = []
    for layer in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, largest))
        for bits in sorted(draw(st.sets(st.integers(2, 8), min_size=1, max_size=3))):
            effects.append(Effect(f"layer{layer}", size, bits, draw(st.integers(-16, 160)) / 8))
    return lc.Sensitivity(1.0, tuple(effects))


def choices(found: lc.Sensitivity) -> list[tuple[Effect, ...]]:
    """All choices of one effect for every layer."""
    layers = [list(group) for _, group in itertools.groupby(found.effects, key=lambda e: e.layer)]
    return list(itertools.product(*layers))


def num_bytes(choice: tuple[Effect, ...]) -> int:
    return sum(-(-e.num_weights * e.bits // 8) for e in choice)


def num_bits(choice: tuple[Effect, ...]) -> int:
    return sum(e.num_weights * e.bits for e in choice)


def delta_loss(choice: tuple[Effect, ...]) -> float:
    return sum(e.delta_loss for e in choice)


def as_choice(found: lc.Sensitivity, specs: dict[str, lc.Int | None]) -> tuple[Effect, ...]:
    assert set(specs) == {effect.layer for effect in found.effects}
    return tuple(e for e in found.effects if specs[e.layer] == lc.Int(e.bits))


@given(measurements(), st.data())
@settings(deadline=None)
def test_the_choice_is_optimal_within_bytes(found: lc.Sensitivity, data: st.DataObject) -> None:
    sizes = [num_bytes(choice) for choice in choices(found)]
    budget = data.draw(st.integers(min(sizes), max(sizes) + 1))
    chosen = as_choice(found, found.choose(max_bytes=budget))
    assert num_bytes(chosen) <= budget
    assert delta_loss(chosen) == min(delta_loss(choice) for choice in choices(found) if num_bytes(choice) <= budget)


@given(measurements(), st.floats(2, 8))
@settings(deadline=None)
def test_the_choice_is_optimal_within_mean_bits(found: lc.Sensitivity, mean_bits: float) -> None:
    budget = mean_bits * sum(e.num_weights for e in choices(found)[0])
    possible = [choice for choice in choices(found) if num_bits(choice) <= budget]
    if not possible:
        with pytest.raises(ValueError, match="is impossible"):
            found.choose(mean_bits=mean_bits)
        return
    chosen = as_choice(found, found.choose(mean_bits=mean_bits))
    assert num_bits(chosen) <= budget
    assert delta_loss(chosen) == min(map(delta_loss, possible))


@given(measurements(largest=10**11), st.data(), st.integers(-1, 1))
@settings(deadline=None)
def test_a_single_byte_decides_between_choices_of_any_size(
    found: lc.Sensitivity, data: st.DataObject, missing: int
) -> None:
    """Budgets next to the exact size of a choice, in sizes for which the solver's tolerance is thousands of bytes."""
    sizes = sorted(num_bytes(choice) for choice in choices(found))
    budget = max(data.draw(st.sampled_from(sizes)) - missing, sizes[0])
    chosen = as_choice(found, found.choose(max_bytes=budget))
    assert num_bytes(chosen) <= budget
    assert delta_loss(chosen) == min(delta_loss(choice) for choice in choices(found) if num_bytes(choice) <= budget)


@given(measurements(), st.data())
@settings(deadline=None)
def test_a_common_factor_of_sizes_costs_nothing(found: lc.Sensitivity, data: st.DataObject) -> None:
    # Eight weights per byte and bit: sizes in bytes then have the factor, too.
    small, huge = (
        [Effect(e.layer, e.num_weights * factor, e.bits, e.delta_loss) for e in found.effects]
        for factor in (8, 8 * 10**9)
    )
    sizes = [num_bytes(choice) for choice in choices(lc.Sensitivity(1.0, tuple(small)))]
    budget = data.draw(st.integers(min(sizes), max(sizes)))
    of_small, of_huge = choose(small, max_bytes=budget), choose(huge, max_bytes=budget * 10**9)
    assert sum(e.num_bytes for e in of_huge) <= budget * 10**9
    assert sum(e.delta_loss for e in of_huge) == sum(e.delta_loss for e in of_small)


@given(measurements())
@settings(deadline=None)
def test_an_impossible_budget_names_the_smallest_one(found: lc.Sensitivity) -> None:
    smallest = min(map(num_bytes, choices(found)))
    with pytest.raises(ValueError, match=rf"max_bytes={smallest - 1} is impossible: .* {smallest} bytes") as caught:
        found.choose(max_bytes=smallest - 1)
    found.choose(max_bytes=smallest)
    found.choose(mean_bits=float(str(caught.value).partition(" bytes, or ")[2].split()[0]))


@given(measurements(), st.data())
@settings(deadline=None)
def test_ties_are_broken_alike_each_time(found: lc.Sensitivity, data: st.DataObject) -> None:
    effects = [Effect(e.layer, 100, e.bits, float(e.bits < 5)) for e in found.effects]
    budget = data.draw(st.floats(8, 8.5))
    assert choose(effects, mean_bits=budget) == choose(effects, mean_bits=budget)


def test_a_mean_in_the_message_is_possible_where_its_product_rounds_down() -> None:
    layers = {"a": (150, 3), "b": (393, 2), "c": (30, 5), "d": (227, 2)}  # 2.3 bits, but 2.3 * 800 < 1840
    effects = [Effect(name, size, bits, 0.0) for name, (size, bits) in layers.items()]
    with pytest.raises(ValueError, match=r"it is 232 bytes, or 2\.301 bits on average"):
        choose(effects, mean_bits=2.0)
    assert choose(effects, mean_bits=2.301) == effects


def test_of_equal_delta_losses_the_fewest_bits_are_chosen() -> None:
    delta_losses = {("a", 39): (1.0, 1.0, 0.0), ("b", 14): (0.0, 0.0, 0.0), ("c", 93): (1.0, 2.0, 1.0)}
    effects = [
        Effect(*key, bits, delta_loss)
        for key, row in delta_losses.items()
        for bits, delta_loss in zip((2, 4, 8), row, strict=True)
    ]
    assert [e.bits for e in choose(effects, max_bytes=100)] == [8, 2, 2]
    # Also where the sizes in bytes are equal.
    assert choose([Effect("a", 1, 2, 5.0), Effect("a", 1, 8, 5.0)], max_bytes=10)[0].bits == 2


def test_a_choice_that_exceeds_the_budget_by_a_byte_does_not_hide_the_best_one() -> None:
    """As a single constraint, in which 1 byte in 1e8 is within the solver's tolerance, this gives no solution."""
    effects = [
        Effect(name, 100_000_009, bits, delta_loss)
        for name, delta_losses in (("a", (0.4456, 0.2351, 0.0821)), ("b", (0.3744, 0.1368, 0.0657)))
        for bits, delta_loss in zip((2, 4, 8), delta_losses, strict=True)
    ]
    assert [e.bits for e in choose(effects, max_bytes=150_000_014)] == [8, 4]
    assert [e.bits for e in choose(effects, max_bytes=150_000_013)] == [4, 4]


def test_layers_of_ragged_sizes_use_the_whole_budget() -> None:
    layers = {"a": 1_000_003, "b": 2_000_003}
    effects = [Effect(name, size, bits, 1 / (size * bits)) for name, size in layers.items() for bits in (2, 4)]
    assert [e.bits for e in choose(effects, mean_bits=4)] == [4, 4]
    assert [e.bits for e in choose(effects, mean_bits=4 - 1e-6)] == [4, 2]
    assert [e.bits for e in choose(effects, max_bytes=500_002 + 1_000_002)] == [4, 4]
    assert [e.bits for e in choose(effects, max_bytes=500_002 + 1_000_001)] == [4, 2]


def test_the_smallest_choice_is_always_possible() -> None:
    effects = [Effect(name, size, bits, 1.0 / bits) for name, size in (("a", 7), ("b", 10**9 + 7)) for bits in (2, 8)]
    assert [e.bits for e in choose(effects, mean_bits=2)] == [2, 2]


@pytest.mark.parametrize("budget", [8, 100])
def test_with_room_for_all_every_layer_has_its_smallest_delta_loss(budget: float) -> None:
    effects = [Effect(name, 10**9 + 7, bits, -bits / 3) for name in "abc" for bits in (2, 4, 8)]
    assert [e.bits for e in choose(effects, mean_bits=budget)] == [8, 8, 8]


@pytest.mark.parametrize("diverged", [1.0, 1e6, 1e12, 1e30])
def test_a_layer_that_diverges_hides_no_differences(diverged: float) -> None:
    effects = [
        Effect("diverges", 10, 2, diverged), Effect("diverges", 10, 8, 0.0),
        Effect("a", 10, 2, 3e-6), Effect("a", 10, 8, 0.0),
        Effect("b", 10, 2, 2e-6), Effect("b", 10, 8, 0.0),
    ]  # fmt: skip
    assert [e.bits for e in choose(effects, mean_bits=6)] == [8, 8, 2]


def test_without_layers_there_is_nothing_to_choose() -> None:
    assert choose([], max_bytes=0) == []


@pytest.mark.parametrize("budgets", [{}, {"max_bytes": 10, "mean_bits": 4.0}])
def test_exactly_one_budget_is_required(budgets: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give either max_bytes or mean_bits"):
        lc.Sensitivity(1.0, (Effect("a", 1, 2, 0.0),)).choose(**budgets)


def test_bit_widths_without_a_finite_loss_are_not_chosen() -> None:
    broken = (Effect("a", 8, 2, math.nan), Effect("a", 8, 4, 1.0), Effect("a", 8, 8, math.inf))
    assert lc.Sensitivity(1.0, broken).choose(max_bytes=100) == {"a": lc.Int(4)}
    with pytest.raises(ValueError, match=r"is impossible: .* 4 bytes, or 4 bits"):
        lc.Sensitivity(1.0, broken).choose(max_bytes=3)
    with pytest.raises(ValueError, match="'a' has no finite loss"):
        lc.Sensitivity(1.0, broken[:1]).choose(max_bytes=100)


def test_a_layer_inside_another_keeps_its_own_number() -> None:
    effects = (Effect("a", 8, 2, 0.0), Effect("a.b", 8, 4, 0.0), Effect("c[0]", 8, 8, 0.0))
    chosen = lc.Sensitivity(1.0, effects).choose(mean_bits=8)
    assert list(chosen.items()) == [("a.b", lc.Int(4)), ("c[[]0]", lc.Int(8)), ("a", lc.Int(2))]
