"""A step of the model itself, of which nothing remains; the mesh is of one process."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

from lightning_compress.trainer.in_place_probe import InPlaceProbe


class Counting(pl.LightningModule):
    """Keeps something of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))
        self.mean = MeanMetric()
        self.num_steps = 0
        self.outputs: list[Tensor] = []
        self.seen: dict[str, int] = {}
        self.last: Tensor | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.last = output = self.net(batch)
        self.new = output
        self.mean.update(output.detach())
        self.num_steps += 1
        self.outputs.append(output)
        self.seen["batches"] = batch_idx
        self.net.eval()
        self.log("loss", output.mean())
        return output.mean()


class Keeping(InPlaceProbe):
    keeps = "running_mean"


def state_of(model: Counting) -> list[Any]:
    metric = [getattr(model.mean, name).clone() for name in model.mean._defaults]
    modes = [module.training for module in model.modules()]
    own = [
        model.num_steps,
        list(model.outputs),
        dict(model.seen),
        model.last,
        hasattr(model, "new"),
        "log" in vars(model),
    ]
    return [*own, *modes, [t.tolist() for t in metric], model.mean._update_count, torch.get_rng_state().tolist()]


def test_nothing_remains_of_a_step(mesh: DeviceMesh) -> None:
    model = Counting()
    fully_shard(model.net, mesh=mesh["rows"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    batch = torch.randn(8, 4)
    before, buffers = state_of(model), [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        loss = InPlaceProbe(trainer, model, batch, 3).step()
    assert loss.isfinite()
    assert state_of(model) == before
    assert all(torch.equal(buffer, copied) for buffer, copied in zip(model.buffers(), buffers, strict=True))
    assert all(isinstance(parameter, DTensor) for parameter in model.net.parameters())


def test_buffers_that_are_kept(mesh: DeviceMesh) -> None:
    model = Counting()
    fully_shard(model.net, mesh=mesh["rows"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    norm = model.net[1]
    with torch.no_grad():
        Keeping(trainer, model, torch.randn(8, 4) + 5, 0).step()
    assert (norm.running_mean != 0).all()
    assert (norm.running_var == 1).all()
