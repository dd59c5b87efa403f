from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.schedules import Progress, Schedule, check_time, time_value

CURVES = ["linear", "cubic", "exponential", "cosine"]


def at(step: int, *, total: int = 100, per_epoch: int = 10) -> Progress:
    """The progress of a run of ``total`` steps."""
    return Progress(steps=step, fraction=step / total, epochs=step / per_epoch)


def updates(schedule: Schedule, *, total: int, per_epoch: int = 10) -> list[int]:
    """The steps at which a callback that asks after every step makes its updates."""
    tick, finished, steps = -1, False, []
    for step in range(total + 1):
        now = at(step, total=total, per_epoch=per_epoch)
        if finished or not now.reached(schedule.begin):
            continue
        if schedule.tick(now) > tick or schedule.finished(now):
            steps.append(step)
        tick, finished = max(tick, schedule.tick(now)), schedule.finished(now)
    return steps


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("linear", [0.0, 0.2, 0.4, 0.6, 0.8]),
        ("cubic", [0.0, 0.4625, 0.7, 0.7875, 0.8]),
        ("exponential", [0.0, 1 - 0.2**0.25, 1 - 0.2**0.5, 1 - 0.2**0.75, 0.8]),
        ("cosine", [0.0, 0.4 * (1 - math.sqrt(0.5)), 0.4, 0.4 * (1 + math.sqrt(0.5)), 0.8]),
        ("one_shot", [0.8] * 5),
    ],
)
def test_curves_at_quarters(curve: Any, expected: list[float]) -> None:
    schedule = Schedule(begin=0.2, end=0.6, curve=curve)
    values = [schedule.sparsity(0.8, at(step)) for step in (20, 30, 40, 50, 60)]
    assert values == pytest.approx(expected)
    assert schedule.sparsity(0.8, at(19)) == 0.0
    assert schedule.sparsity(0.8, at(99)) == 0.8


@given(
    curve=st.sampled_from(CURVES),
    target=st.floats(0, 0.999),
    begin=st.floats(0, 0.5),
    length=st.floats(0.01, 0.5),
    a=st.floats(0, 1),
    b=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_curves_are_monotone_between_zero_and_the_target(
    curve: Any, target: float, begin: float, length: float, a: float, b: float
) -> None:
    schedule = Schedule(begin=begin, end=begin + length, curve=curve)
    early, late = (schedule.sparsity(target, Progress(0, x, 0.0)) for x in sorted((a, b)))
    assert 0 <= early <= late + 1e-12
    assert late <= target + 1e-12
    assert schedule.sparsity(target, Progress(0, 1.0, 0.0)) == target


@given(curve=st.sampled_from(CURVES), target=st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_the_target_is_met_exactly_at_the_end(curve: Any, target: float) -> None:
    assert Schedule(end=0.7, curve=curve).sparsity(target, at(70)) == target
    assert Schedule(end=70, curve=curve).sparsity(target, at(70)) == target
    assert Schedule(end="7ep", curve=curve).sparsity(target, at(70)) == target


def test_exponential_removes_the_same_part_of_what_is_left_each_time() -> None:
    schedule = Schedule(begin=0, end="5ep", every="1ep", curve="exponential")
    left = [1 - schedule.sparsity(1 - 0.8**5, at(10 * epoch)) for epoch in range(6)]
    assert [b / a for a, b in itertools.pairwise(left)] == pytest.approx([0.8] * 5)


def test_units_agree() -> None:
    by_fraction, by_steps, by_epochs = Schedule(0.2, 0.6), Schedule(20, 60), Schedule("2ep", "6ep")
    for step in range(100):
        values = [s.sparsity(0.9, at(step)) for s in (by_fraction, by_steps, by_epochs)]
        assert values == pytest.approx([values[0]] * 3, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "total", "num"),
    [
        (Schedule(end=0.7, every=0.01), 1000, 71),  # at 0, 0.01, ..., 0.7
        (Schedule(end=0.7, every=0.01), 50, 36),  # a hundredth is half a step: every step up to 35
        (Schedule(end=0.5, every=0.1), 1000, 6),
        (Schedule(begin=0, end=300, every=100), 1000, 4),
        (Schedule(begin=50, end=300, every=100), 1000, 4),  # 50, 150, 250 and the last at 300
        (Schedule(end="5ep", every="1ep"), 100, 6),
        (Schedule(begin="2ep", end="5ep", every="2ep"), 100, 3),
        (Schedule(begin=0.25, curve="one_shot"), 100, 1),
        (Schedule(begin=0.0, curve="one_shot"), 100, 1),
    ],
)
def test_number_of_updates(schedule: Schedule, total: int, num: int) -> None:
    steps = updates(schedule, total=total)
    assert len(steps) == num
    assert schedule.finished(at(steps[-1], total=total))


def test_times_of_updates() -> None:
    assert updates(Schedule(begin=50, end=300, every=100), total=400) == [50, 150, 250, 300]
    assert updates(Schedule(begin=0.1, end=0.35, every=0.1), total=100) == [10, 20, 30, 35]
    assert updates(Schedule(end="3ep", every="1ep"), total=100) == [0, 10, 20, 30]
    assert updates(Schedule(begin=0.1, end=0.5, every=20), total=100) == [10, 20, 40, 50]
    assert updates(Schedule(begin=0.33, curve="one_shot"), total=100) == [33]


@given(total=st.integers(1, 400), end=st.floats(0.001, 1.0), every=st.floats(0.001, 0.5))
@settings(max_examples=100, deadline=None)
def test_the_last_update_is_always_made(total: int, end: float, every: float) -> None:
    schedule = Schedule(end=end, every=every)
    last = updates(schedule, total=total)[-1]
    assert schedule.sparsity(0.9, at(last, total=total)) == 0.9


@given(total=st.integers(1, 3000), parts=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_a_fraction_is_not_missed_by_a_rounding_error(total: int, parts: int) -> None:
    schedule = Schedule(end=1.0, every=1 / parts)
    for part in range(parts + 1):
        if (part * total) % parts == 0:
            assert schedule.tick(at(part * total // parts, total=total)) == part


def test_nothing_is_due_before_the_beginning() -> None:
    assert Schedule(begin=0.5, end=0.9).tick(at(49)) == -1
    assert Schedule(begin=0.5, end=0.9).tick(at(50)) == 0


def test_a_fraction_of_a_run_without_an_end() -> None:
    unbounded = Progress(steps=5, fraction=None, epochs=0.5)
    with pytest.raises(ValueError, match=r"max_epochs or max_steps, or write an int .* '12ep'"):
        Schedule(begin=0.1).sparsity(0.5, unbounded)
    assert Schedule(begin=0, end=10, every=1, curve="linear").sparsity(0.5, unbounded) == 0.25


def test_time_value() -> None:
    assert time_value("2.5ep") == 2.5


@pytest.mark.parametrize("time", [0, 0.0, 1.0, 7, "12ep", "0.5ep"])
def test_times(time: Any) -> None:
    check_time("begin", time)


@pytest.mark.parametrize(
    ("time", "advice"),
    [
        (1.5, r"begin=1\.5 is a fraction.*'1\.5ep' for epochs"),
        (-0.1, "begin=-0.1 is a fraction"),
        (-3, "must not be negative"),
        ("12", "write '12ep'"),
        ("ep", "is not a valid time"),
        ("-1ep", "is not a valid time"),
        ("1.2.3ep", "is not a valid time"),
        (True, "is not a valid time"),
        (None, "is not a valid time"),
        (math.nan, "begin=nan"),
    ],
)
def test_invalid_times(time: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_time("begin", time)
    with pytest.raises(ValueError, match=advice):
        Schedule(begin=time)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"end": 1}, r"end=1\.0 for the whole run or end='1ep'"),
        ({"begin": 0.8, "end": 0.7}, "must come before"),
        ({"begin": 0.7, "end": 0.7}, "must come before"),
        ({"begin": 0.1, "end": 100}, "same unit"),
        ({"begin": "1ep", "end": 0.5}, "same unit"),
        ({"every": 0}, "greater than 0"),
        ({"every": 0.0}, "greater than 0"),
        ({"curve": "cubical"}, "one_shot.*linear.*cubic"),
        ({"end": 0.0}, "must come before"),
    ],
)
def test_invalid_schedules(fields: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        Schedule(**fields)


def test_a_beginning_at_zero_goes_with_every_unit() -> None:
    for end in (10, "3ep", 0.5):
        Schedule(end=end)
        Schedule(begin=0, end=end)


def test_a_schedule_is_frozen_equal_and_hashable() -> None:
    assert Schedule(end=0.5) == eval(repr(Schedule(end=0.5)))
    assert len({Schedule(), Schedule(), Schedule(end=0.5)}) == 2
