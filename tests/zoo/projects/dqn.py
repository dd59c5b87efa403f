"""Deep Q-learning: an endless dataset of experience, and a target network that is synchronized every few steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import lightning_compress as lc
from tests.zoo.projects.project import Project

OBSERVATIONS, ACTIONS = 4, 2


class DQN(nn.Module):
    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(OBSERVATIONS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, ACTIONS)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.float())


class ReplayBuffer:
    def __init__(self, capacity: int) -> None:
        self.buffer: deque[tuple[Any, ...]] = deque(maxlen=capacity)

    def sample(self, size: int) -> tuple[np.ndarray, ...]:
        indices = np.random.default_rng(0).choice(len(self.buffer), size)
        return tuple(np.stack(column) for column in zip(*(self.buffer[i] for i in indices), strict=True))


class RLDataset(IterableDataset):
    def __init__(self, buffer: ReplayBuffer, sample_size: int) -> None:
        self.buffer, self.sample_size = buffer, sample_size

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        yield from zip(*self.buffer.sample(self.sample_size), strict=True)


class DQNLightning(LightningModule):
    def __init__(self, sync_rate: int = 2, gamma: float = 0.99) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = DQN()
        self.target_net = DQN()
        self.buffer = ReplayBuffer(100)
        self.populate(100)

    def populate(self, steps: int) -> None:
        rng = np.random.default_rng(0)
        for _ in range(steps):
            state, following = rng.normal(size=(2, OBSERVATIONS)).astype(np.float32)
            self.buffer.buffer.append((state, rng.integers(ACTIONS), np.float32(rng.normal()), False, following))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, nb_batch: int) -> Tensor:
        states, actions, rewards, dones, next_states = batch
        q = self.net(states).gather(1, actions.long().unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            following = self.target_net(next_states).max(1)[0]
            following[dones] = 0.0
        loss = nn.functional.mse_loss(q, following.detach() * self.hparams.gamma + rewards)
        if self.global_step % self.hparams.sync_rate == 0:
            self.target_net.load_state_dict(self.net.state_dict())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(RLDataset(self.buffer, 32), batch_size=8)


PROJECT = Project(
    DQNLightning,
    lambda: None,
    deployed="net",
    targets=lc.Targets(module="net"),
    inputs=lambda: torch.randn(4, OBSERVATIONS),
    options={"max_epochs": -1, "max_steps": 10},
)
