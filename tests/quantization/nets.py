"""Small networks with the structures that the placement of quantizers has to handle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inside: int = 4, outside: int = 4) -> nn.Sequential:
    """Convolution with a batch norm."""
    return nn.Sequential(nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside))


class Residual(nn.Module):
    """Residual block as in torchvision: a ReLU module that is called twice, and an in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.first(x)))
        y += x
        return self.relu(y)


class Gate(nn.Module):
    """Squeeze-and-excitation block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv()
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Dense(nn.Module):
    """Dense block: a concatenation, and a batch norm before the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 1)
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.conv(F.relu(self.norm(torch.cat([x, y], dim=1))))


class Statements(nn.Module):
    """In-place functions called as statements: the tensor written into is read, not the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.add_(x)
        y.relu_()
        z = self.second(y)
        z.mul_(y)
        self.relu(z)
        return self.third(z)


class KeywordLinear(nn.Linear):
    """Linear layer that passes all arguments by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(input=x, weight=self.weight, bias=self.bias)


class Keywords(nn.Module):
    """Tensors passed by keyword, and a property (``mT``) that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = KeywordLinear(3, 4), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(input=self.first(x)) - 1
        y = self.second(F.gelu(y[..., :3]).mT)
        return self.third(torch.add(torch.cat(tensors=[y, y], dim=-1)[..., :3], other=x[:, :1]))


class Attends(nn.Module):
    """Multi-head attention between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.attention(x, x, x, need_weights=False)[0])


class Scores(nn.Module):
    """Hand-written attention with a mask that is added to the scores.

    Args:
        how: ``"add"``; ``"where"``, before the addition; ``"bias"``, with the mask in a bias; ``"function"``.
        masked: Value of the mask at hidden positions.
    """

    def __init__(self, how: str = "add", masked: float = torch.finfo(torch.float32).min) -> None:
        super().__init__()
        self.how = how
        self.query, self.key, self.value, self.after = (nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("mask", torch.triu(torch.full((5, 5), masked), 1))
        self.register_buffer("hidden", torch.ones(5, 5).triu(1).bool())
        self.bias, self.scale = nn.Parameter(torch.randn(1, 5, 5)), nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.how == "function":
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias + self.mask)
            return self.after(attended) + x
        scores = query @ key.transpose(-1, -2)
        scores = (scores if self.how == "where" else scores * self.scale) / 8**0.5
        if self.how == "where":
            scores = torch.where(self.hidden, self.mask, scores)
        scores += self.bias + self.mask if self.how == "bias" else self.mask
        weights = F.dropout(scores.softmax(dim=-1), 0.1, self.training)
        return self.after(weights @ value) + x


class Classified(nn.Module):
    """A learned token before the others, as in vision transformers, and attention of two heads over all."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(1e-6 * torch.ones(1, 1, 8))
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
