"""Small networks with what deployed ones have, and what is known of their quantization."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.arguments import as_arguments


class Residual(nn.Module):
    """Residuals, squeeze and excitation, hard-swish; norms with zero, tiny and negative gammas; an empty channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.act = nn.Hardswish()
        self.fc = nn.Linear(8, 5)
        with torch.no_grad():
            self.bn1.weight.copy_(torch.tensor([0.0, 1e-8, -1.0, 1.0, -1e-3, 2.0, 1.0, 1.0]))
            self.bn1.bias.uniform_(-1, 1)
            self.bn1.running_var.uniform_(0.1, 2)
            self.bn2.running_mean.uniform_(-1, 1)
            self.conv1.weight[3] = 0.0  # a pruned channel
            self.conv2.weight.flatten()[::2] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)) + x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(F.adaptive_avg_pool2d(x * gate, 1).flatten(1))


class Dense(nn.Module):
    """Concatenations, a norm that cannot be folded, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.conv1(x)], 1)
        z = torch.cat([y, self.conv2(F.relu(self.norm(y)))], 1)
        return self.conv3(F.max_pool2d(F.avg_pool2d(z, 2), 2)).flatten(1)


class Shuffled(nn.Module):
    """Halves of the channels, one of them convolved, joined, clipped and padded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv1(x).chunk(2, dim=1)
        return self.conv3(F.pad(F.relu(torch.cat([left, self.conv2(right)], 1)), (1, 1, 1, 1)))


class Token(nn.Module):
    """Puts a token before the others and reads it alone, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.fc = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(F.gelu(self.fc(x))[:, 0])


class Pooled(nn.Module):
    """What is pooled is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.conv3(torch.cat([x, self.conv2(x)], 1))


class Scaled(nn.Module):
    """Branches with the same tiny scale, two of each width, as in ConvNeXt before training."""

    def __init__(self) -> None:
        super().__init__()
        widths = (4, 4, 6, 6)
        self.scales = nn.ParameterList(torch.full((width, 1, 1), 1e-6) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths)
        self.stem = nn.Conv2d(3, 4, 1)
        self.wider = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, (scale, conv) in enumerate(zip(self.scales, self.convs, strict=True)):
            x = self.wider(x) if i == 2 else x
            x = x + scale * conv(x)
        return x


class InPlace(nn.Module):
    """Functions in place whose results are not used, but the tensors that they were written into."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y.add_(x)
        y.relu_()
        return self.second(y)


class Transposed(nn.Sequential):
    """Transposed convolutions: plain, grouped and depthwise, with and without norms."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(3, 8, 2, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 3, groups=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.ConvTranspose2d(6, 6, 3, groups=3),
            nn.Conv2d(6, 4, 1),
        )
        for norm in (self[1], self[4], self[7]):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.uniform_(tensor, -1, 1)
            nn.init.uniform_(norm.running_var, 0.1, 2)


class Named(nn.Module):
    """Reads and returns dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.left(a) + self.right(b))
        return {"logits": self.head(hidden), "hidden": hidden}


def plain(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Makes a sequence with fresh weights: the seed decides about them, not when this file is imported."""

    def make() -> nn.Module:
        network = copy.deepcopy(nn.Sequential(*layers))
        for layer in network:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return network

    return make


@dataclass(frozen=True)
class Subject:
    """A network and how it is quantized.

    Attributes:
        make: Makes it.
        shapes: Shapes of one sample, by name where it is called with keywords.
        numbers: Arguments of ``calibrate``.
        num_integer: Number of its convolutions and linear layers with INT8 kernels.
        others: Numbers of some of its other operators with INT8 and with FP32 kernels.
        constant: Whether it is calibrated with zeros only.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[int, ...] | Mapping[str, tuple[int, ...]]
    num_integer: tuple[int, int]
    others: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    constant: bool = False

    @property
    def num_levels(self) -> int:
        """Steps from the smallest to the largest activation."""
        return 15 if self.numbers is FOUR else 254

    def batch(self, size: int) -> Any:
        """Inputs, the same for the same size."""
        generator = torch.Generator().manual_seed(size)
        if isinstance(self.shapes, Mapping):
            return {name: torch.randn(size, *shape, generator=generator) for name, shape in self.shapes.items()}
        return torch.randn(size, *self.shapes, generator=generator)

    def quantized(self) -> nn.Module:
        """The network with calibrated quantizers."""
        torch.manual_seed(0)
        batch = torch.zeros(4, *self.shapes) if self.constant else self.batch(64)
        return lc.calibrate(self.make(), [batch], **self.numbers)


IMAGE = (3, 8, 8)
FOUR = {"weights": lc.Int(4), "activations": lc.Int(4)}
SUBJECTS = {
    "residual": Subject(Residual, IMAGE, (4, 1), {"add": (1, 0)}),
    "four_bits": Subject(Residual, IMAGE, (4, 1), numbers=FOUR),
    "constant": Subject(Residual, IMAGE, (4, 1), constant=True),
    "dense": Subject(Dense, IMAGE, (3, 0)),
    "shuffled": Subject(Shuffled, IMAGE, (3, 0)),
    "token": Subject(Token, (5, 6), (0, 2), {"concat": (1, 0)}),  # and one of numbers that are a shape
    "scaled": Subject(Scaled, IMAGE, (6, 0)),
    "pooled": Subject(Pooled, IMAGE, (3, 0), {"concat": (1, 0)}),
    "depthwise": Subject(
        plain(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.SiLU()), IMAGE, (2, 0)
    ),
    "conv1d": Subject(plain(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3)), (3, 12), (2, 0)),
    "linear": Subject(plain(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,), (0, 2)),
    "symmetric": Subject(
        plain(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
        (6,),
        (0, 2),
        numbers={"activations": lc.Int(8, symmetric=True)},
    ),
    "transposed": Subject(Transposed, IMAGE, (1, 0), {"conv_transpose": (0, 4)}),  # of floats in ONNX Runtime
    # The biases of products of matrices are added as floats.
    "tokens": Subject(plain(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (5, 6), (0, 2), {"add": (0, 2)}),
    "written": Subject(InPlace, IMAGE, (2, 0), {"add": (0, 1)}),
    "named": Subject(Named, {"a": (6,), "b": (4,)}, (0, 3)),
}


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    args, kwargs = as_arguments(batch)
    with torch.no_grad():
        output = model(*args, **kwargs)
    return list(output.values()) if isinstance(output, dict) else [output]
