"""Forecasting: an LSTM with teacher forcing by probability, a quantile loss, and gradients clipped by the Trainer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.projects.project import Project

QUANTILES = (0.1, 0.5, 0.9)


class Seq2Seq(nn.Module):
    def __init__(self, hidden: int = 24, horizon: int = 4) -> None:
        super().__init__()
        self.horizon = horizon
        self.encoder = nn.LSTM(3, hidden, num_layers=2, batch_first=True, dropout=0.1)
        self.decoder = nn.GRUCell(1, hidden)
        self.head = nn.Linear(hidden, len(QUANTILES))

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.encoder(x)
        state, last, out = h[-1], x[:, -1, :1], []
        for _ in range(self.horizon):
            state = self.decoder(last, state)
            step = self.head(state)
            out.append(step)
            last = step[:, 1:2]
        return torch.stack(out, dim=1)


class Forecaster(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Seq2Seq()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def quantile_loss(self, forecast: Tensor, target: Tensor) -> Tensor:
        errors = target[..., None] - forecast
        return sum(torch.max((q - 1) * errors[..., i], q * errors[..., i]).mean() for i, q in enumerate(QUANTILES))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.quantile_loss(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "train_loss"}


def data() -> DataLoader:
    time = torch.linspace(0, 20, 64)
    series = torch.stack([time.sin(), time.cos(), (2 * time).sin()], dim=1)
    windows = torch.stack([series[i : i + 16] for i in range(32)])
    return DataLoader(
        TensorDataset(windows, torch.stack([series[i + 16 : i + 20, 0] for i in range(32)])), batch_size=8
    )


PROJECT = Project(
    Forecaster,
    data,
    deployed="model",
    inputs=lambda: torch.randn(4, 16, 3),
    teacher=lambda: Seq2Seq(48),
    refusals={"channels": "one of its channels is selected by its index"},
)
