"""Whole channels of residual networks whose weights are sharded, and their removal from consolidated weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import TensorDataset

import lightning_compress as lc
from tests.cases import RAMP, Loader, assert_same, load, trainer
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_ddp import assert_close


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Stream(LightningModule):
    """A stream of 16 channels through three blocks; sharded block by block, the norms in parts of their own."""

    def __init__(self, *, is_sharded: bool) -> None:
        super().__init__()
        self.is_sharded = is_sharded
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), Block(), Block(), Block(), nn.LayerNorm(16), nn.Linear(16, 4))
        self.double()

    def configure_model(self) -> None:
        if self.is_sharded and not isinstance(self, FSDPModule):
            for module in (self.net[1].norm, *self.net[1:4], self.net[4], self.net, self):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Vectors(Loader):
    """This rank's share of batches of vectors."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs, classes = torch.randn(40, 8, generator=generator), torch.randint(4, (40,), generator=generator)
        super().__init__(TensorDataset(inputs.double(), classes))

    def __iter__(self) -> Iterator[Any]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for inputs, classes in super().__iter__():
            yield inputs[rank::size], classes[rank::size]


PATTERNS: dict[str, Callable[[], list[Callback]]] = {
    "inner": lambda: [lc.Pruning(0.5, pattern=lc.Channels(), schedule=RAMP)],
    "width": lambda: [lc.Pruning(0.4, pattern=lc.Channels(of="macs", width=True), schedule=RAMP)],
    "taylor": lambda: [lc.Pruning(0.4, pattern=lc.Channels(of="parameters"), score=lc.Taylor(), schedule=RAMP)],
    "depth": lambda: [lc.Pruning(0.4, pattern=lc.Depth(), schedule=RAMP)],
}


def fit(name: str, kind: str, path: Path | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Stream(is_sharded=kind == "fsdp2")
    run = trainer(PATTERNS[name](), **jobs.placed(kind))
    run.fit(model, Vectors())
    if path is not None:
        run.save_checkpoint(path)
    return {key: tensor.clone() for key, tensor in jobs.whole(model.state_dict()).items()}


@pytest.mark.parametrize("name", PATTERNS)
def test_channels_of_shards_are_those_of_one_process(name: str, pool: Pool, tmp_path: Path) -> None:
    first, second = pool(fit, name, "fsdp2", tmp_path / "last.ckpt")
    assert_same(first, second)
    one = fit(name, "one")
    assert_close(first, one)
    assert all(torch.equal(first[key] == 0, one[key] == 0) for key in one)
    model, inputs = Stream(is_sharded=False), torch.randn(3, 8).double()
    model.load_state_dict(load(tmp_path / "last.ckpt")["state_dict"])
    small, log = lc.shrink(model.net, inputs, width=name == "width")
    assert log.cuts or log.blocks
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    if name != "width":  # norms of a plain network do not skip the zeros of masked channels
        assert torch.allclose(small(inputs), model.net(inputs), atol=1e-9)
