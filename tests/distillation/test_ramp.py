"""Weights that follow a schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.distillation.ramp import Ramp
from lightning_compress.schedules import Progress, Schedule


def at(fraction: float) -> Progress:
    return Progress(steps=round(100 * fraction), fraction=fraction, epochs=10 * fraction)


def test_from_the_beginning_to_the_end_of_the_run() -> None:
    ramp = Ramp(2.0, 1.0)
    assert [ramp.at(at(x)) for x in (0.0, 0.25, 0.5, 1.0)] == [2.0, 1.75, 1.5, 1.0]


@pytest.mark.parametrize("begin", [0.2, 20, "2ep"])
@pytest.mark.parametrize("curve", ["linear", "cubic", "cosine"])
def test_a_later_beginning(begin: float | str, curve: str) -> None:
    end = {float: 0.6, int: 60, str: "6ep"}[type(begin)]
    ramp = Ramp(1.0, 3.0, Schedule(begin=begin, end=end, curve=curve))
    middle = {"linear": 2.0, "cubic": 1 + 2 * 0.875, "cosine": 2.0}[curve]
    weights = [ramp.at(at(x)) for x in (0.0, 0.1, 0.2, 0.4, 0.6, 0.9)]
    assert weights == pytest.approx([1.0, 1.0, 1.0, middle, 3.0, 3.0])


def test_one_shot_jumps_at_the_beginning() -> None:
    ramp = Ramp(1.0, 0.0, Schedule(begin="3ep", curve="one_shot"))
    assert [ramp.at(at(x)) for x in (0.0, 0.29, 0.3, 1.0)] == [1.0, 1.0, 0.0, 0.0]


def test_every_does_not_matter() -> None:
    assert Ramp(0.0, 1.0, Schedule(end=1.0, every=0.5, curve="linear")).at(at(0.25)) == 0.25


def test_runs_without_bound() -> None:
    endless = Progress(steps=5, fraction=None, epochs=0.5)
    assert Ramp(0.0, 1.0, Schedule(end=10, curve="linear")).at(endless) == 0.5
    with pytest.raises(ValueError, match="max_epochs"):
        Ramp(0.0, 1.0).at(endless)


@given(first=st.floats(0, 1e3), last=st.floats(0, 1e3), fraction=st.floats(0, 1))
def test_between_both(first: float, last: float, fraction: float) -> None:
    weight = Ramp(first, last, Schedule(end=0.5, curve="cosine")).at(at(fraction))
    assert min(first, last) - 1e-9 <= weight <= max(first, last) + 1e-9


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["first", "last"])
def test_weights_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Ramp(**{"first": 1.0, "last": 1.0, name: value})


def test_an_exponential_ramp_has_no_way() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        Ramp(0.0, 1.0, Schedule(curve="exponential"))
