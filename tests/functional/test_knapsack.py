"""The multiple-choice knapsack against all choices there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.functional import knapsack
from lightning_compress.functional.knapsack import cheapest


@st.composite
def problems(draw: st.DrawFn, largest: int = 60) -> tuple[list[list[int]], list[list[float]], int]:
    """Up to five items of up to four options, and a budget within which there is a choice."""
    sizes = draw(
        st.lists(st.lists(st.integers(1, largest), min_size=1, max_size=4).map(sorted), min_size=1, max_size=5)
    )
    # Multiples of 1/8 add up without rounding, so that totals can be compared for equality.
    loss = st.integers(-40, 400).map(lambda eighths: eighths / 8)
    losses = [draw(st.lists(loss, min_size=len(options), max_size=len(options))) for options in sizes]
    smallest, most = sum(o[0] for o in sizes), sum(o[-1] for o in sizes)
    return sizes, losses, draw(st.integers(smallest, most + most // 4))


def total(values: list[list], picks: tuple[int, ...] | list[int]) -> float:
    return sum(options[pick] for options, pick in zip(values, picks, strict=True))


def least_loss(sizes: list[list[int]], losses: list[list[float]], budget: int) -> float:
    """By trying all choices."""
    every = itertools.product(*(range(len(options)) for options in sizes))
    return min(total(losses, picks) for picks in every if total(sizes, picks) <= budget)


@given(problems())
def test_no_choice_within_the_budget_is_better(problem):
    sizes, losses, budget = problem
    picks = cheapest(sizes, losses, budget)
    assert total(sizes, picks) <= budget
    assert total(losses, picks) == least_loss(sizes, losses, budget)


@given(problems(largest=10**9), st.sampled_from([4, 64, 1000]))
@settings(deadline=None)
def test_what_is_promised_of_large_budgets(problem, units):
    sizes, losses, budget = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_MOST_UNITS", units)
        picks = cheapest(sizes, losses, budget)
    smallest = sum(options[0] for options in sizes)
    reduced = budget - len(sizes) * -(-(budget - smallest) // units)
    assert total(sizes, picks) <= budget
    if reduced >= smallest:
        assert total(losses, picks) <= least_loss(sizes, losses, reduced)


@given(problems())
def test_a_common_factor_of_sizes_costs_nothing(problem):
    sizes, losses, budget = problem
    huge = [[size * 10**9 for size in options] for options in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_MOST_UNITS", 300)  # five items of at most 60
        assert cheapest(huge, losses, budget * 10**9) == cheapest(sizes, losses, budget)


def test_the_smallest_choice_is_always_possible():
    sizes = [[7, 10**9 + 1], [11, 10**9 + 7]]
    assert cheapest(sizes, [[1.0, 0.0], [1.0, 0.0]], 18) == [0, 0]


def test_of_equal_losses_the_smallest():
    assert cheapest([[1, 2, 3]], [[5.0, 5.0, 5.0]], 3) == [0]


def test_without_items_there_is_nothing_to_choose():
    assert cheapest([], [], 0) == []


def test_an_impossible_budget():
    with pytest.raises(ValueError, match="A budget of 2 is impossible: the smallest choice takes 3"):
        cheapest([[1, 4], [2, 4]], [[1.0, 0.0], [1.0, 0.0]], 2)


def test_with_room_for_all_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(knapsack, "_MOST_UNITS", 4)
    sizes = [[1, 4], [1, 4], [1, 5]]
    assert cheapest(sizes, [[1.0, 0.0]] * 3, 100) == [1, 1, 1]
