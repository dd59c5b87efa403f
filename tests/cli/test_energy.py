"""Energy of a call from counters that tests write."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_compress.cli.energy import joules_per_call


class FakeNvml:
    """NVML of two GPUs; CUDA sees the second one only."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {"GPU-a": 7_000, "GPU-b": 100_000}
        self.can_count = True

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.can_count:
            raise self.NVMLError
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="b"))
    return fake


@pytest.fixture
def package(tmp_path: Path) -> Path:
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("5000000\n")
    # A part of the package, which must not be counted twice.
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("1")
    return counter


def test_cpu_packages(package: Path) -> None:
    def call() -> None:
        package.write_text(str(int(package.read_text()) + 2_000_000))

    assert joules_per_call(call, num_calls=4, counters=package.parents[1]) == 2.0


def test_a_gpu_beside_the_cpu(package: Path, nvml: FakeNvml) -> None:
    def call() -> None:
        package.write_text(str(int(package.read_text()) + 2_000_000))
        nvml.millijoules["GPU-b"] += 30_000
        nvml.millijoules["GPU-a"] += 1_000_000  # of another process

    assert joules_per_call(call, num_calls=2, counters=package.parents[1]) == 32.0


def test_a_gpu_alone(tmp_path: Path, nvml: FakeNvml) -> None:
    def call() -> None:
        nvml.millijoules["GPU-b"] += 500

    assert joules_per_call(call, num_calls=3, counters=tmp_path) == 0.5


def test_not_measurable(tmp_path: Path, package: Path, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap() -> None:
        package.write_text("3")

    assert joules_per_call(wrap, num_calls=1, counters=tmp_path) is None
    nvml.can_count = False
    assert joules_per_call(lambda: None, num_calls=1, counters=tmp_path / "nowhere") is None
    nvml.can_count = True
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert joules_per_call(lambda: None, num_calls=1, counters=tmp_path / "nowhere") is None


def test_the_idle_power_of_a_gpu_is_not_charged_to_a_call_on_the_cpu(
    package: Path, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)

    def call() -> None:
        package.write_text(str(int(package.read_text()) + 1_000_000))
        nvml.millijoules["GPU-b"] += 30_000

    assert joules_per_call(call, num_calls=1, counters=package.parents[1]) == 1.0
