"""Networks that timm lacks."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from lightning_compress.data import CIFAR10DataModule
from lightning_compress.models import networks

KEYS = {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}


@pytest.mark.parametrize(("name", "num_parameters"), [("resnet20_cifar", 269_722), ("resnet56_cifar", 853_018)])
def test_cifar_resnets(name, num_parameters):
    model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert {key.partition(".")[0] for key in model.state_dict()} == KEYS
    assert "layer3.2.conv2.weight" in model.state_dict()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert timm.create_model(name, num_classes=7, in_chans=1)(torch.zeros(2, 1, 16, 16)).shape == (2, 7)


def test_shortcut_subsamples_and_pads_both_sides():
    block = networks.CifarBlock(16, 32).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_conv4():
    model = timm.create_model("conv4", in_chans=1, img_size=8, num_classes=10)
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        (64, 1, 3, 3),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
        (128, 128, 3, 3),
        (256, 512),
        (256, 256),
        (10, 256),
    ]
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    # The size of the paper's for CIFAR-10: 2.4 million.
    assert sum(p.numel() for p in timm.create_model("conv4").parameters()) == 2_425_930


def test_wrong_arguments():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        networks.CifarResNet(21)
    with pytest.raises(ValueError, match="img_size=2"):
        timm.create_model("conv4", img_size=2)
    with pytest.raises(ValueError, match="conv4 has no pretrained weights"):
        timm.create_model("conv4", pretrained=True)


SHARED = Path(os.environ.get("LIGHTNING_COMPRESS_TEST_DATA", "../shared/data"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accuracy"), [("resnet20", 0.9173), ("resnet56", 0.9339)])
def test_published_accuracy(name, accuracy):
    """Needs the weights, and CIFAR-10 as folders of images in the directory that the variable names."""
    weights, images = SHARED / "weights" / f"cifar10_{name}.safetensors", SHARED / "cifar10"
    if not weights.is_file() or not (images / "test").is_dir():
        pytest.skip(f"LIGHTNING_COMPRESS_TEST_DATA={SHARED} lacks {weights.name} or cifar10/test/<class>/")
    model = timm.create_model(f"{name}_cifar").eval()
    model.load_state_dict(safetensors.torch.load_file(weights))
    data = CIFAR10DataModule(str(images), batch_size=500)
    data.setup("test")
    with torch.inference_mode():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test_dataloader())
    assert right / 10_000 == pytest.approx(accuracy, abs=1e-4)
