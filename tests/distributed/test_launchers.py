"""The README's examples of several devices, started as it says."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_compress as lc

README = Path(__file__).parents[2] / "README.md"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def example(words: str = "fully_shard") -> str:
    """The only block with these words; by default that which shards a model."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return found


def check_weights(folder: Path) -> None:
    """The distributed checkpoint has the sparsity, the clusters and the scales that were asked for."""
    consolidate = [sys.executable, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    subprocess.run([*consolidate, "sharded.ckpt", "weights.ckpt"], cwd=folder, check=True, timeout=600)
    state = torch.load(folder / "weights.ckpt", weights_only=True)["state_dict"]
    weights = [state["net.1.weight"], state["net.3.weight"]]
    assert sum(int((weight == 0).sum()) for weight in weights) == 2131
    assert all(weight.unique().numel() <= 16 for weight in weights)
    assert all((state[f"net.{i}.quant_weight_scale"] > 0).all() for i in (1, 3))


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(example())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    run = subprocess.run([*torchrun, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    check_weights(tmp_path)


PREEMPTED = """
import os, signal
from lightning.pytorch import Callback

class Preempted(Callback):
    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step == 20 and not os.path.exists("requeued"):
            os.kill(os.getpid(), signal.SIGUSR1)  # as SLURM does before it ends a job
            trainer.strategy.barrier()
            os._exit(0)

    def on_train_start(self, trainer, model):
        print("starts at step", trainer.global_step, flush=True)
"""


@pytest.mark.slow
def test_a_job_that_slurm_requeues(tmp_path: Path) -> None:
    script = PREEMPTED + example().replace("callbacks = [", "callbacks = [Preempted(), ")
    (tmp_path / "train.py").write_text(script)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" > requeued\n')
    scontrol.chmod(0o755)
    for expected in ("starts at step 0", "starts at step 20"):
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        job |= {"SLURM_NODELIST": "localhost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        job |= {"SLURM_NODEID": "0", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "train.py"],
                cwd=tmp_path,
                env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        for rank in ranks:
            output = rank.communicate(timeout=900)[0]
            assert rank.returncode == 0, output
            assert expected in output
    assert (tmp_path / "requeued").read_text().split() == ["requeue", "7"]
    check_weights(tmp_path)


@pytest.mark.slow
def test_ray_train(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    (tmp_path / "train.py").write_text(example("from ray"))
    # Ray would otherwise count the processors of the machine, and wait for ones that a container has not got.
    start = "import ray; ray.init(num_cpus=3, include_dashboard=False); import runpy; "
    script = [sys.executable, "-c", f"{start}runpy.run_path('train.py', run_name='__main__')"]
    run = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    state = lc.load_packed(tmp_path / "digits.packed")
    weights = [tensor for name, tensor in state.items() if name.endswith("weight") and tensor.ndim > 1]
    zeros, number = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros / number == pytest.approx(0.9, abs=0.01)
