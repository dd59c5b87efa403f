"""One thread per process, nothing sent anywhere, and nothing written outside the test's directory."""

import os

# Before PyTorch is imported: processes of parallel tests must not compete for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

# Processes that tests start find the package from wherever they are.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
)

import lightning.pytorch  # noqa: F401  (its log handler keeps the stderr of its import, which a test may close)
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.utilities import registry
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

pytest_plugins = ["tests.fits"]  # fixtures of small fits

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Every Trainer looks through all installed packages for callbacks; nothing is installed while tests run.
registry.entry_points = functools.cache(registry.entry_points)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delenv("LIGHTNING_COMPRESS_RUN_DIRECTORY", raising=False)
    return tmp_path


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("rows", "columns"))
    dist.destroy_process_group()
