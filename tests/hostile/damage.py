"""Damaged files, and the time and memory that reading one takes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_SECONDS, MAX_MEGABYTES = 1.0, 100.0


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to eight flipped bits."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def spliced(data: bytes, rng: random.Random) -> bytes:
    """A file that ends early, lacks a piece, or has one twice."""
    start = rng.randrange(len(data))
    stop = min(start + rng.choice([1, 4, 16, 64, 512]), len(data))
    return rng.choice([data[:start], data[:start] + data[stop:], data[:stop] + data[start:]])


def odd(rng: random.Random, old: object) -> Any:
    """Another value than is expected, of any type."""
    number = old if isinstance(old, (int, float)) and not isinstance(old, bool) else 3
    return rng.choice(
        [
            *(None, True, False, -1, 0, 1, 2, 255, 2**16, 2**31, 2**40, 2**63, 10**30, 0.5, "", "x", "1", [], [[]], {}),
            *(number + 1, number - 1, 2 * number, float("nan"), [old], {"a": old}, "__class__", "forward", "os.system"),
        ]
    )


def edited(value: Any, rng: random.Random) -> Any:
    """Plain data with one key or item changed, dropped, doubled or renamed; the data themselves stay as they are."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        parent = pending.pop()
        children = [*parent.items()] if isinstance(parent, dict) else [*enumerate(parent)]
        places += [(parent, key) for key, _ in children]
        pending += [child for _, child in children if isinstance(child, (dict, list))]
    parent, key = rng.choice(places)
    change = rng.choice(["value", "value", "swap", "drop", "add"])
    other = rng.choice(places)
    if change == "drop":
        del parent[key]
    elif change == "value":
        parent[key] = odd(rng, parent[key])
    elif change == "swap":
        parent[key] = json.loads(json.dumps(other[0][other[1]]))
    elif isinstance(parent, dict):
        parent[rng.choice([f"{key}x", "x", "version", str(other[1])])] = odd(rng, parent[key])
    else:
        parent.insert(key, odd(rng, parent[key]))
    return value


class Outcomes:
    """Counts of files that were read right and refused, and the largest cost of one."""

    def __init__(self) -> None:
        self.right = self.refused = 0
        self.seconds = self.megabytes = 0.0

    def read(self, seed: int, action: Callable[[], bool], *refusals: type[BaseException]) -> None:
        """Read one file; ``action`` returns True if its content is right."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, start = _kilobytes("VmRSS"), time.process_time()
        try:
            assert action(), f"seed {seed}: something else was read, without a word"
            self.right += 1
        except refusals:
            self.refused += 1
        # Of the process, not of the clock: other work on the machine must not count.
        seconds, megabytes = time.process_time() - start, (_kilobytes("VmHWM") - before) / 1024
        self.seconds, self.megabytes = max(self.seconds, seconds), max(self.megabytes, megabytes)
        assert seconds < MAX_SECONDS, f"seed {seed}: {seconds:.2f} s"
        assert megabytes < MAX_MEGABYTES, f"seed {seed}: {megabytes:.0f} MB"

    def __str__(self) -> str:
        return (
            f"{self.right + self.refused} files: {self.right} right, {self.refused} refused; at most "
            f"{self.seconds:.2f} s and {self.megabytes:.0f} MB"
        )


def _kilobytes(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])
