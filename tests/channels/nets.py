"""Small networks, each with one thing that removal has to get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Residual(nn.Module):
    """A stream that a stem and two blocks write to, and inner channels of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 6), Block(8, 10))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x).relu()).mean(dim=(2, 3)))


class Squeeze(nn.Module):
    """A depthwise convolution, and a gate from its own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.gate = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.depthwise(self.expand(x)))
        gate = self.gate(nn.functional.silu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return self.project(x * gate.sigmoid()).mean(dim=(2, 3))


class Grouped(nn.Module):
    """A convolution of three groups of four channels between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 6, 3, padding=1, groups=3)
        self.after = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.grouped(self.norm(self.before(x)).relu()).relu()).mean(dim=(2, 3))


class Concatenated(nn.Module):
    """Two layers side by side, read by a norm, and one of them by a layer of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 5, 1)
        self.side = nn.Conv2d(6, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return (self.join(self.norm(torch.cat([left, right], dim=1)).relu()) + self.side(right)).mean(dim=(2, 3))


class Ghost(nn.Module):
    """Channels that a depthwise convolution doubles, added to a stream: two ways tie different channels together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.primary = nn.Conv2d(8, 4, 1)
        self.cheap = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        primary = self.primary(x)
        return self.fc((x + torch.cat([primary, self.cheap(primary)], dim=1)).relu().mean(dim=(2, 3)))


class Flattened(nn.Module):
    """A linear layer that reads every pixel, a transposed convolution, slopes for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.slopes = nn.PReLU(6)
        self.fc1, self.fc2 = nn.Linear(6 * 144, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.slopes(self.up(self.conv(x).relu())).flatten(1)).relu())


class Padded(nn.Module):
    """A shortcut without parameters, as in CIFAR ResNets: every second pixel, channels of zeros around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc((shortcut + self.conv2(self.conv1(x).relu())).relu().mean(dim=(2, 3)))


class Heads(nn.Module):
    """Attention that infers the width of its heads from the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=3)
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (3, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        heads = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.out(heads.transpose(1, 2).flatten(2)).mean(dim=1)


class SharedWeight(nn.Module):
    """Two layers with one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.other.weight = self.one.weight
        self.ends = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        y, z = (end(layer(x).relu()) for end, layer in zip(self.ends, (self.one, self.other), strict=True))
        return (y * z).mean(dim=(2, 3))


class Auxiliary(nn.Module):
    """A second head that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.head, self.auxiliary = nn.Conv2d(6, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        y = self.head(self.inner(x).relu())
        return (y, self.auxiliary(x)) if self.training else y


def transformer() -> nn.Module:
    """A vision transformer of two blocks with three heads each."""
    return VisionTransformer(
        img_size=6, patch_size=3, embed_dim=12, depth=2, num_heads=3, num_classes=4, mlp_ratio=2, qkv_bias=True
    )


SOUND: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "squeeze": Squeeze,
    "grouped": Grouped,
    "concatenated": Concatenated,
    "ghost": Ghost,
    "flattened": Flattened,
    "padded": Padded,
    "transformer": transformer,
}


def images(num: int = 2) -> Tensor:
    """Images that all of the networks take."""
    return torch.randn(num, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with values everywhere of which none is special."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point() and tensor.ndim < 2:
                tensor.data.uniform_(0.5, 1.5)
    return net.eval()
