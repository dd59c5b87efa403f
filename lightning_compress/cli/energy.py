"""Energy of a call, from the counters of the CPU packages (Intel's RAPL) and of the GPUs (NVML)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_COUNTERS = Path("/sys/class/powercap")


def joules_per_call(call: Callable[[], Any], *, num_calls: int, counters: Path = _COUNTERS) -> float | None:
    """Return the energy of CPU packages and GPUs per call, idle power included, or ``None`` where none can be read.

    GPUs are read where CUDA is in use and ``nvidia-ml-py`` is installed.

    Args:
        call: Function without arguments.
        num_calls: Number of calls to average over.
        counters: Directory of the kernel's power capping interface.
    """
    before = _read_joules(counters)
    if not before:
        return None
    for _ in range(num_calls):
        call()
    after = _read_joules(counters)
    differences = [joules - before[name] for name, joules in after.items() if name in before]
    # A counter that wraps around gives a negative difference.
    if len(differences) < len(before) or any(difference < 0 for difference in differences):
        return None
    return sum(differences) / num_calls


def _read_joules(counters: Path) -> dict[str, float]:
    """Return the readings of all counters, by name."""
    return {**_read_packages(counters), **_read_gpus()}


def _read_packages(counters: Path) -> dict[str, float]:
    try:
        packages = [path for path in counters.glob("intel-rapl:*") if path.name.count(":") == 1]
        return {path.name: int((path / "energy_uj").read_text()) / 1e6 for path in packages}
    except (OSError, ValueError):
        return {}


def _read_gpus() -> dict[str, float]:
    # Not is_available: a call on the CPU is not charged with the idle power of GPUs.
    if not torch.cuda.is_initialized():
        return {}
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return {}
    # Calls of a GPU are asynchronous.
    torch.cuda.synchronize()
    try:
        pynvml.nvmlInit()
        # By UUID, since CUDA may see some of the GPUs only.
        uuids = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
        handles = {uuid: pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
        # In millijoules since the driver was loaded; GPUs before Volta have no counter.
        return {uuid: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3 for uuid, h in handles.items()}
    except pynvml.NVMLError:
        return {}
