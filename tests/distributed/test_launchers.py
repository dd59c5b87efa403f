"""The README's example of several devices, started as it says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "fully_" in block
    )
    (tmp_path / "train.py").write_text(example)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    run = subprocess.run([*torchrun, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    consolidate = [sys.executable, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    subprocess.run([*consolidate, "sharded.ckpt", "weights.ckpt"], cwd=tmp_path, check=True, timeout=600)
    state = torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"]
    weights = [state["net.1.weight"], state["net.3.weight"]]
    assert sum(int((weight == 0).sum()) for weight in weights) == 2131
    assert all(weight.unique().numel() <= 16 for weight in weights)
    assert all((state[f"net.{i}.quant_weight_scale"] > 0).all() for i in (1, 3))
