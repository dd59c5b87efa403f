"""What networks take, on networks small enough to count by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lightning_compress.models.catalogue.counting import int8_bytes, macs, on_meta, sizes


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


def test_multiply_accumulates() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Attention()).eval()
    pixels = 4 * 4
    convolution, projection, attention = pixels * 8 * 27, pixels * 8 * 24, 2 * pixels * pixels * 8
    assert macs(model, (3, 6, 6)) == convolution + projection + attention


def test_groups_count_once() -> None:
    with torch.device("meta"):
        assert macs(nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 4, 4)) == 16 * 8 * 9


def test_bytes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model.register_buffer("index", torch.zeros(5), persistent=False)
    model.scale = nn.Parameter(torch.ones(3))
    found = sizes(model)
    assert found.params == 216 + 8 + 16 + 8 + 8 + 3
    assert found.fp32_bytes == 4 * found.params + 4 * 16 + 8  # running statistics, and how many batches they saw
    assert found.int8_bytes == (216 + 8 * 8) + (8 + 8 * 2) + 4 * (8 + 3)


def test_shared_weights_are_stored_once() -> None:
    layer = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    assert int8_bytes(nn.Sequential(layer, other, layer)) == 16 + 8 * 4
    assert sizes(nn.Sequential(layer, other, layer)).params == 16 + 4 + 4


def test_published_figures() -> None:
    model = on_meta("mobilenetv2_100")
    assert not model.training
    assert next(model.parameters()).is_meta
    assert sizes(model).params == 3_504_872  # table 4 of the paper: 3.4 M parameters, 300 M multiply-adds
    assert macs(model, (3, 224, 224)) == 300_774_272
    assert sizes(model).params == sum(p.numel() for p in timm.create_model("mobilenetv2_100").parameters())


def test_counting_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    on_meta("lcnet_035", num_classes=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_raises() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        macs(on_meta("vit_tiny_patch16_224"), (3, 32, 32))
