"""Stems for small images."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.models.catalogue.counting import on_meta
from lightning_compress.models.stem import keep_resolution_


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("resnet10t", 2, 8),  # a stem of three convolutions
        ("resnet18", 2, 8),
        ("densenet121", 2, 8),  # a pool of another name
        ("mobilenetv2_035", 2, 4),
        ("tf_efficientnet_lite0", 2, 4),  # padding that depends on the stride
        ("repvgg_a0", 2, 4),  # branches
        ("squeezenet1_1", 3, 15),
    ],
)
def test_resolution_is_kept(name: str, before: int, after: int) -> None:
    model = on_meta(name, num_classes=3)
    images, shapes = torch.zeros(1, 3, 64, 64, device="meta"), {n: p.shape for n, p in model.state_dict().items()}
    assert model.forward_features(images).shape[2] == before
    keep_resolution_(model, name)
    assert model.forward_features(images).shape[2] == after
    assert {n: p.shape for n, p in model.state_dict().items()} == shapes
    assert model(images).shape == (1, 3)


def test_pools_of_later_stages_stay() -> None:
    model = timm.create_model("squeezenet1_1")
    keep_resolution_(model, "squeezenet1_1")
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 2
    vgg = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.MaxPool2d(2))
    vgg.default_cfg = {"first_conv": "0"}
    keep_resolution_(vgg, "vgg")
    assert vgg[0].stride == (1, 1)
    assert sum(isinstance(module, nn.MaxPool2d) for module in vgg.modules()) == 2


def test_in_the_module(tmp_path) -> None:
    module = lc.ClassificationModule("mobilenetv2_035", 3, small_input=True)
    assert module.model.conv_stem.stride == (1, 1)
    assert module.hparams["small_input"] is True
    assert lc.ClassificationModule("mobilenetv2_035", 3).model.conv_stem.stride == (2, 2)
    own = timm.create_model("resnet10t", num_classes=3)
    assert lc.ClassificationModule(own, 3, small_input=True).model.conv1[0].stride == (1, 1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vit_tiny_patch16_224", "'vit_tiny_patch16_224' embeds patches of 16x16"),
        ("convnext_atto", "patches of 4x4"),
        ("vgg11", "the first convolution of 'vgg11' has stride 1 already"),
        ("resnet20_cifar", "the first convolution of 'resnet20_cifar' is unknown"),
        ("mixer_s32_224", "patches of 32x32"),
    ],
)
def test_what_it_cannot_be_done_with(model: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        keep_resolution_(on_meta(model), model)


def test_networks_of_ones_own_say_nothing() -> None:
    with pytest.raises(ValueError, match="first convolution of 'Linear' is unknown"):
        lc.ClassificationModule(nn.Linear(2, 2), 2, small_input=True)
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(3, 3, 3, stride=2))
    for place in ("0", "2", ("0",), ("1", "2"), ("1", "0")):
        model.default_cfg = {"first_conv": place}
        with pytest.raises(ValueError, match="first convolution of 'own' is unknown"):
            keep_resolution_(model, "own")
