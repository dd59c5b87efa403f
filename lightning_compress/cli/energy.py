"""Energy of a call, from Intel's RAPL counters of the CPU package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_COUNTERS = Path("/sys/class/powercap")


def joules_per_call(call: Callable[[], Any], *, num_calls: int, counters: Path = _COUNTERS) -> float | None:
    """Return the energy of the CPU packages per call, idle power included, or ``None`` where it cannot be read.

    Args:
        call: Function without arguments.
        num_calls: Number of calls to average over.
        counters: Directory of the kernel's power capping interface.
    """
    before = _read_joules(counters)
    if before is None:
        return None
    for _ in range(num_calls):
        call()
    after = _read_joules(counters)
    # A counter that wraps around gives a negative difference.
    return None if after is None or after < before else (after - before) / num_calls


def _read_joules(counters: Path) -> float | None:
    try:
        packages = [path for path in counters.glob("intel-rapl:*") if path.name.count(":") == 1]
        readings = [int((path / "energy_uj").read_text()) for path in packages]
    except (OSError, ValueError):
        return None
    return sum(readings) / 1e6 if readings else None
