"""Small fits, and a reader of offline W&B runs."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def _chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks of a ``.wandb`` file.

    The format is LevelDB's log format, except for a file header of 7 bytes in the first block and the CRC.
    """
    assert data[:4] == b":W&B"
    position = 7
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0:
            return
        body = data[position + 7 : position + 7 + length]
        assert zlib.crc32(bytes([kind]) + body) == checksum, f"damaged at byte {position}"
        yield kind, body
        position += 7 + length


def read_records(file: Path) -> Iterator[Record]:
    """Yield the records of a ``.wandb`` file."""
    chunks: list[bytes] = []
    for kind, body in _chunks(file.read_bytes()):
        chunks = [body] if kind in (_FULL, _FIRST) else [*chunks, body]
        if kind in (_FULL, _LAST):
            yield Record.FromString(b"".join(chunks))


@dataclass
class Run:
    """Metrics of a run.

    Attributes:
        file: The ``.wandb`` file.
        rows: Each call of ``log``, in order.
        axes: The step metric of each defined metric or glob.
    """

    file: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)

    def series(self, name: str) -> list[tuple[int, Any]]:
        """Return the points of a metric along ``trainer/global_step``."""
        return [(row["trainer/global_step"], row[name]) for row in self.rows if name in row]


# Polls until W&B's process has written its last record: about ten minutes, far more than any machine needs.
_MAX_POLLS, _POLL_SECONDS = 12_000, 0.05


def finished_records(file: Path) -> list[Record]:
    """Wait for the exit record of a run, which may be written after ``wandb.finish`` returns; return all records."""
    for _ in range(_MAX_POLLS):
        # A record that is not completely written yet has a wrong checksum.
        with contextlib.suppress(AssertionError):
            records = list(read_records(file))
            if any(record.HasField("exit") for record in records):  # others may follow
                return records
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"{file} has no exit record")


def read_run(directory: Path) -> Run:
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    run = Run(file)
    for record in finished_records(file):
        if record.HasField("history"):
            items = record.history.item
            run.rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif record.HasField("metric"):
            run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return run


@pytest.fixture
def wandb_run() -> Callable[[Path], Run]:
    """Reads the only offline run under a directory."""
    return read_run


class Small(pl.LightningModule):
    """A plain classifier."""

    def __init__(self, *, dim: int = 8, learning_rate: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(dim, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.learning_rate = learning_rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


def make_loader(*, num: int = 24, dim: int = 8, batch_size: int = 4) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(num, dim, generator=generator), torch.randint(0, 3, (num,), generator=generator))
    return DataLoader(data, batch_size=batch_size)


def make_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "callbacks": list(callbacks),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**defaults, **options})


@pytest.fixture
def small() -> type[Small]:
    return Small


@pytest.fixture
def loader() -> DataLoader:
    return make_loader()


@pytest.fixture
def trainer() -> Callable[..., pl.Trainer]:
    """Makes a quiet Trainer on the CPU."""
    return make_trainer
