"""Timing two or more things against each other in one run, so that what else the machine does hits all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping


def medians(arms: Mapping[str, Callable[[], list[float]]], *, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Runs every arm once a round, in random order, and keeps the median of the times it returns, in seconds."""
    order = random.Random(seed)
    results: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm()  # warm-up
    for _ in range(rounds):
        for name in order.sample(list(arms), len(arms)):
            results[name].append(statistics.median(arms[name]()))
    return results


def ratio(results: Mapping[str, list[float]], arm: str, base: str) -> str:
    """Median and quartiles of the ratios of two arms, round by round."""
    ratios = sorted(a / b for a, b in zip(results[arm], results[base], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.4f} (quartiles {low:.4f} to {high:.4f}, {len(ratios)} rounds)"
