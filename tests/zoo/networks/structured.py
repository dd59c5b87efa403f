"""Networks on tables, points, graphs and pairs, and those of reinforcement learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.subject import Example


class Recommender(nn.Module):
    """Embeddings of categories, their pairwise products, and a tower of linear layers, in DLRM's manner."""

    def __init__(self, num_tables: int = 4, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, width) for _ in range(num_tables))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        self.register_buffer("pairs", torch.tril_indices(num_tables + 1, num_tables + 1, -1))
        self.top = nn.Sequential(nn.Linear(width + self.pairs.shape[1], 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.stack([x, *(table(categories[:, k]) for k, table in enumerate(self.tables))], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([x, products], 1)))


class Points(nn.Module):
    """Shared layers on points, a predicted rotation, and a maximum over all points, in PointNet's manner."""

    def __init__(self) -> None:
        super().__init__()
        self.rotate = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.rotation = nn.Linear(16, 9)
        self.features = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5))

    def forward(self, points: Tensor) -> Tensor:
        rotation = self.rotation(torch.max(self.rotate(points), 2)[0]).view(-1, 3, 3) + torch.eye(3)
        rotated = torch.bmm(points.transpose(2, 1), rotation).transpose(2, 1)
        return F.log_softmax(self.head(torch.max(self.features(rotated), 2, keepdim=True)[0].flatten(1)), dim=1)


class GraphConvolution(nn.Module):
    """Two graph convolutions with a dense adjacency matrix, normalized by degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency + torch.eye(adjacency.shape[-1])
        inverse = adjacency.sum(-1).rsqrt()
        normalized = inverse.unsqueeze(-1) * adjacency * inverse.unsqueeze(-2)
        return normalized @ self.second(F.relu(normalized @ self.first(x)))


class Siamese(nn.Module):
    """One encoder on two images, and the cosine of normalized embeddings with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16),
        )  # fmt: skip
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (F.normalize(self.encoder(x), dim=-1) for x in (left, right))
        return (a * b).sum(-1) * self.temperature.exp(), torch.cdist(a, b)


class Player(nn.Module):
    """Dueling value network on stacked frames of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(4, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.value, self.advantage = nn.Linear(16 * 4, 1), nn.Linear(16 * 4, 6)

    def forward(self, frames: Tensor) -> Tensor:
        features = self.features(frames.float() / 255)
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)


class Policy(nn.Module):
    """Squashed normal policy: mean and standard deviation within bounds, two critics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.mean, self.log_deviation = nn.Linear(32, 2), nn.Linear(32, 2)
        self.critics = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.Mish(), nn.Linear(32, 1)) for _ in range(2))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(observation)
        mean, deviation = torch.tanh(self.mean(hidden)), self.log_deviation(hidden).clamp(-5, 2).exp()
        values = torch.stack([critic(torch.cat([observation, mean], -1)) for critic in self.critics])
        return mean, deviation, values.amin(0)


class FeatureTokens(nn.Module):
    """A token for each column of a table, transformer layers on them, in the FT-Transformer's manner."""

    def __init__(self, num_columns: int = 6, width: int = 16) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(num_columns, width)) for _ in range(2))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, table: Tensor) -> Tensor:
        tokens = table.unsqueeze(-1) * self.scale + self.shift
        tokens = torch.cat([self.token.expand(len(table), -1, -1), tokens], 1)
        return self.head(self.encoder(tokens)[:, 0])


def recommender() -> Example:
    """Embeddings, pairwise products and linear layers."""
    return Recommender(), (torch.rand(16, 5) * 100, torch.randint(0, 20, (16, 4)))


def points() -> Example:
    """Classifier of point clouds with a predicted rotation."""
    return Points(), torch.randn(8, 3, 32)


def graph_convolution() -> Example:
    """Graph convolutions on a dense matrix."""
    edges = (torch.rand(4, 10, 10) < 0.3).float()
    return GraphConvolution(), (torch.randn(4, 10, 8), (edges + edges.transpose(1, 2)).clamp(max=1))


def siamese() -> Example:
    """One encoder on two images."""
    return Siamese(), (torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16))


def player() -> Example:
    """Dueling network on bytes."""
    return Player(), torch.randint(0, 256, (8, 4, 44, 44), dtype=torch.uint8)


def policy() -> Example:
    """Actor and critics with tanh and clamps."""
    return Policy(), torch.randn(16, 6)


def feature_tokens() -> Example:
    """nn.TransformerEncoder on the columns of a table."""
    return FeatureTokens(), torch.randn(16, 6)
