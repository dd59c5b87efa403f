"""Recurrent networks, experts, state spaces and forecasters."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.subject import Example

VOCABULARY, LENGTH = 64, 12


class Tagger(nn.Module):
    """Embedding, recurrent layers in both directions, a label for each token."""

    def __init__(self, recurrent: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.project = nn.Linear(16, 24)
        self.recurrent = recurrent(24, 16, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.labels = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.recurrent(F.relu(self.project(self.embedding(ids))))
        return self.labels(hidden)


class Attentive(nn.Module):
    """GRU cells in a loop with additive attention over an encoded sequence."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.GRU(8, width, batch_first=True)
        self.cell = nn.GRUCell(width, width)
        self.query, self.key, self.score = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.out = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        encoded, state = self.encoder(x)
        keys, state, outputs = self.key(encoded), state[-1], []
        for _ in range(4):
            weights = self.score(torch.tanh(keys + self.query(state).unsqueeze(1))).softmax(1)
            context = (weights * encoded).sum(1)
            state = self.cell(context, state)
            outputs.append(self.out(torch.cat([state, context], -1)))
        return torch.stack(outputs, 1)


class LineReader(nn.Module):
    """Convolutions, columns as a sequence, a recurrent layer: text recognition."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 32)
        self.features = nn.Sequential()
        for inside, outside in pairwise(widths):
            self.features.extend([nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(True)])
            self.features.append(nn.MaxPool2d((2, 1)))
        self.recurrent = nn.LSTM(32 * 2, 24, bidirectional=True)
        self.logits = nn.Linear(48, 11)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).flatten(1, 2).permute(2, 0, 1)
        return F.log_softmax(self.logits(self.recurrent(columns)[0]), dim=-1)


class Experts(nn.Module):
    """Tokens are sent to the best expert of several, of which some get none."""

    def __init__(self, width: int = 16, num_experts: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        gates, chosen = self.router(tokens).softmax(-1).max(-1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            out.index_add_(0, rows, expert(tokens[rows]) * gates[rows, None])
        return out.view_as(x)


class DenseExperts(Experts):
    """All experts compute all tokens, and their results are weighted."""

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        return torch.einsum("bte,btew->btw", gates, torch.stack([expert(x) for expert in self.experts], 2))


class WithExperts(nn.Module):
    """Residual layers around experts."""

    def __init__(self, experts: type[Experts]) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.experts = nn.ModuleList(experts() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, experts in zip(self.norms, self.experts, strict=True):
            x = x + experts(norm(x))
        return self.head(x.mean(1))


class SelectiveScan(nn.Module):
    """State space whose matrices depend on the input, computed step by step, as in Mamba.

    Args:
        width: Channels.
        state: Size of the state of a channel.
    """

    def __init__(self, width: int = 16, state: int = 4) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 3, padding=2, groups=width)
        self.select, self.step = nn.Linear(width, 2 * state + 1), nn.Linear(1, width)
        self.decay = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(width, 1))
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.inside(x).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        step, into, out_of = self.select(x).split([1, self.decay.shape[1], self.decay.shape[1]], -1)
        step = F.softplus(self.step(step))
        kept = torch.exp(-step.unsqueeze(-1) * self.decay.exp())
        added = (step * x).unsqueeze(-1) * into.unsqueeze(2)
        state, outputs = torch.zeros_like(added[:, 0]), []
        for t in range(x.shape[1]):
            state = kept[:, t] * state + added[:, t]
            outputs.append((state * out_of[:, t].unsqueeze(1)).sum(-1))
        return self.outside((torch.stack(outputs, 1) + x * self.skip) * F.silu(gate))


class ScanBlocks(nn.Module):
    """Blocks of a root-mean-square norm and a selective scan, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in range(2))
        self.scans = nn.ModuleList(SelectiveScan() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, scan in zip(self.norms, self.scans, strict=True):
            x = x + scan(norm(x))
        return self.head(x)


class Forecaster(nn.Module):
    """Blocks that each explain a part of a series and hand on the rest, as in N-BEATS, on a normalized series."""

    def __init__(self, past: int = 24, future: int = 6) -> None:
        super().__init__()
        self.past = past
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(past, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, past + future))
            for _ in range(3)
        )

    def forward(self, series: Tensor) -> Tensor:
        mean, deviation = series.mean(1, keepdim=True), series.std(1, keepdim=True) + 1e-5
        rest, forecast = (series - mean) / deviation, torch.zeros(())
        for block in self.blocks:
            explained, further = block(rest).split([self.past, block[-1].out_features - self.past], 1)
            rest, forecast = rest - explained, forecast + further
        return forecast * deviation + mean


def lstm_tagger() -> Example:
    """Labels of tokens by an LSTM in both directions."""
    return Tagger(nn.LSTM), torch.randint(0, VOCABULARY, (8, LENGTH))


def gru_tagger() -> Example:
    """Labels of tokens by a GRU in both directions."""
    return Tagger(nn.GRU), torch.randint(0, VOCABULARY, (8, LENGTH))


def gru_attention() -> Example:
    """GRU cells in a loop with additive attention."""
    return Attentive(), torch.randn(8, LENGTH, 8)


def line_reader() -> Example:
    """Convolutions and an LSTM over columns, log probabilities."""
    return LineReader(), torch.randn(4, 1, 16, 24)


def experts() -> Example:
    """Mixture of experts with one expert for each token, empty ones included."""
    return WithExperts(Experts), torch.randn(2, 3, 8)


def dense_experts() -> Example:
    """Mixture of experts with weights for all, by einsum."""
    return WithExperts(DenseExperts), torch.randn(8, 6, 8)


def selective_scan() -> Example:
    """Selective state space by a loop over steps, as in Mamba."""
    return ScanBlocks(), torch.randn(8, 6, 8)


def forecaster() -> Example:
    """Doubly residual forecaster of linear layers on a series that is normalized by its own statistics."""
    return Forecaster(), torch.randn(8, 24).cumsum(1) * 10 ** torch.linspace(-1, 1, 8).unsqueeze(1)


def patch_forecaster() -> Example:
    """transformers: PatchTST, patches of a series, batch norms over tokens."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    config = PatchTSTConfig(
        num_input_channels=2, context_length=32, patch_length=8, patch_stride=8, prediction_length=4,
        num_hidden_layers=1, d_model=16, num_attention_heads=2, ffn_dim=32,
    )  # fmt: skip
    return PatchTSTForPrediction(config), {"past_values": torch.randn(8, 32, 2).cumsum(1)}
