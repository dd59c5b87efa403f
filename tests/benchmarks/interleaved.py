"""Timing two or more things against each other in one run, so that what else the machine does hits all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


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


def ratio_quartiles(results: Mapping[str, list[float]], arm: str, base: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios of two arms, round by round."""
    ratios = [a / b for a, b in zip(results[arm], results[base], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def ratio(results: Mapping[str, list[float]], arm: str, base: str) -> str:
    """Median and quartiles of the ratios of two arms, round by round."""
    low, middle, high = ratio_quartiles(results, arm, base)
    return f"{middle:.4f} (quartiles {low:.4f} to {high:.4f}, {len(results[arm])} rounds)"


def onnx_runs(path: Path, images: np.ndarray, *, runs: int = 10) -> Callable[[], list[float]]:
    """Times of some runs of a file in ONNX Runtime, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {value.name: images for value in runtime.get_inputs()}

    def run() -> list[float]:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            runtime.run(None, feed)
            times.append(time.perf_counter() - start)
        return times

    return run
