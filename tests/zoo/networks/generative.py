"""Generators and density models: super-resolution, flows, autoencoders, diffusion, adversarial networks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.subject import Example


class Upscaler(nn.Module):
    """Residual blocks with scaled branches, PixelShuffle, and the image added, in EDSR's manner."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(3)
        )
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        start = y = self.stem(x)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        enlarged = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.out(self.up(start + y)) + enlarged + self.mean


class Coupling(nn.Module):
    """Affine coupling of halves of the features, with the logarithm of its determinant."""

    def __init__(self, width: int, *, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        self.net = nn.Sequential(
            nn.Linear(width // 2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, -1)[:: -1 if self.swap else 1]
        log_scale, shift = self.net(kept).chunk(2, -1)
        log_scale = torch.tanh(log_scale)
        halves = (kept, changed * log_scale.exp() + shift)
        return torch.cat(halves[:: -1 if self.swap else 1], -1), log_scale.sum(-1)


class Flow(nn.Module):
    """Real NVP: coupled halves with learned invertible mixing, the log density of a normal distribution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(width, swap=bool(k % 2)) for k in range(4))
        self.mixing = nn.ParameterList(torch.linalg.qr(torch.randn(width, width)).Q for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_determinant = x.new_zeros(x.shape[0])
        for coupling, matrix in zip(self.couplings, self.mixing, strict=True):
            x, change = coupling(x @ matrix)
            log_determinant = log_determinant + change
        return x, log_determinant - 0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)


class VariationalAutoencoder(nn.Module):
    """Convolutions to mean and log variance, a sample in training only, transposed convolutions back."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.log_variance = nn.Linear(16 * 16, latent), nn.Linear(16 * 16, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 16 * 16), nn.ReLU(), nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decoder(code), mean, log_variance


class Generator(nn.Sequential):
    """Transposed convolutions with norms from a code to an image, in DCGAN's manner."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip


class Radiance(nn.Module):
    """Layers on sines and cosines of coordinates with a second input of them, in NeRF's manner."""

    def __init__(self, octaves: int = 4, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(octaves))
        size = 3 * 2 * octaves
        self.first = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width + size, width), nn.ReLU())
        self.density, self.color = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        angles = (points.unsqueeze(-1) * self.frequencies).flatten(1)
        encoded = torch.cat([angles.sin(), angles.cos()], 1)
        hidden = self.second(torch.cat([self.first(encoded), encoded], 1))
        return F.softplus(self.density(hidden)), self.color(hidden).sigmoid()


class TimedBlock(nn.Module):
    """Group norms and convolutions with a shift by the embedded time step, as in denoising diffusion."""

    def __init__(self, inside: int, outside: int, width: int = 32) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.GroupNorm(4, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * outside))
        self.norm, self.conv = nn.GroupNorm(4, outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.norm(self.before(x)) * (1 + scale) + shift
        return self.shortcut(x) + self.conv(F.silu(y))


class SpatialAttention(nn.Module):
    """Attention of all positions of a map to each other, by einsum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(4, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weights = (torch.einsum("bci,bcj->bij", query, key) * query.shape[1] ** -0.5).softmax(-1)
        return x + self.out(torch.einsum("bij,bcj->bci", weights, value).view_as(x))


class Denoiser(nn.Module):
    """U-Net with one step down and up, on an image and its time step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -8, 8)))
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.stem, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.first, self.middle, self.last = TimedBlock(8, 8), TimedBlock(8, 16), TimedBlock(24, 8)
        self.attention = SpatialAttention(16)
        self.out = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        skip = self.first(self.stem(x), time)
        inner = self.attention(self.middle(self.down(skip), time))
        return self.out(self.last(torch.cat([F.interpolate(inner, scale_factor=2.0), skip], 1), time))


def super_resolution() -> Example:
    """Residual network with PixelShuffle."""
    return Upscaler(), torch.rand(4, 3, 12, 12)


def flow() -> Example:
    """Real NVP with its log density."""
    return Flow(), torch.randn(16, 8)


def variational_autoencoder() -> Example:
    """Variational autoencoder that samples in training only."""
    return VariationalAutoencoder(), torch.rand(8, 1, 16, 16)


def generator() -> Example:
    """Generator of transposed convolutions."""
    return Generator(), torch.randn(8, 16, 1, 1)


def radiance() -> Example:
    """Network on encoded coordinates, density and color."""
    return Radiance(), torch.rand(32, 3)


def diffusion() -> Example:
    """U-Net of a diffusion model with embedded time steps, group norms and attention."""
    return Denoiser(), (torch.randn(4, 1, 16, 16), torch.tensor([1.0, 100.0, 400.0, 900.0]))


def vector_quantized() -> Example:
    """monai: autoencoder with a codebook."""
    from monai.networks.nets import VQVAE

    network = VQVAE(
        2, 1, 1, channels=(8, 16), num_res_layers=1, num_res_channels=(8, 16), num_embeddings=16, embedding_dim=8,
        downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2,
    )  # fmt: skip
    return network, torch.rand(4, 1, 16, 16)
