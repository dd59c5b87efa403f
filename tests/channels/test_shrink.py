from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from tests.channels.nets import SOUND, Concatenated, Padded, Residual, images, trained


def half_zero(net: nn.Module) -> nn.Module:
    """Zeros about half of the channels of each group."""
    for group in find_groups(net, (images(),), {})[0]:
        group.zero_(named_tensors(net), torch.arange(group.num_channels) % 2 == 1)
    return net


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_smaller_and_the_same_function(make: type[nn.Module]) -> None:
    net = half_zero(trained(make))
    before = copy.deepcopy(net.state_dict())
    small, _ = lc.shrink(net, images())
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in net.parameters())
    torch.testing.assert_close(small(images(5)), net(images(5)), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    small.train()(images(5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_a_second_round_and_both_in_one(make: type[nn.Module]) -> None:
    once, first = lc.shrink(half_zero(trained(make)), images())
    twice, second = lc.shrink(half_zero(once), images())
    fresh = make().eval()
    first.then(second).replay_(fresh)
    fresh.load_state_dict(twice.state_dict())
    torch.testing.assert_close(fresh(images(3)), twice(images(3)))


def test_attributes_follow_the_shapes() -> None:
    small, log = lc.shrink(half_zero(trained(SOUND["squeeze"])), images())
    assert isinstance(small.depthwise, nn.Conv2d)
    assert (small.depthwise.in_channels, small.depthwise.out_channels, small.depthwise.groups) == (4, 4, 4)
    assert log.attributes["depthwise.groups"] == (8, 4)
    assert log.layers["expand"] == (0, 2, 4, 6)
    small, _ = lc.shrink(half_zero(trained(SOUND["transformer"])), images())
    attention = small.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 4, 8)


def test_zeros_that_stay_are_told() -> None:
    net = trained(SOUND["transformer"])
    net.blocks[0].mlp.fc2.weight.data[3] = 0
    with pytest.warns(
        UserWarning, match="zero channels of 1 layers cannot be removed .'blocks.0.mlp.fc2': .*LayerNorm"
    ):
        lc.shrink(net, images())


def test_where_all_channels_are_zero_one_stays() -> None:
    net = trained(Concatenated)
    for group in find_groups(net, (images(),), {})[0]:
        if group.name == "left":
            group.zero_(named_tensors(net), torch.ones(4, dtype=torch.bool))
    small, _ = lc.shrink(net, images())
    assert small.left.out_channels == 1
    torch.testing.assert_close(small(images()), net(images()))


def test_a_channel_that_is_zero_in_only_one_output_slice_stays() -> None:
    net = trained(Residual)
    net.stem.weight.data[0] = 0.0
    net.stem.bias.data[0] = 0.0
    small, log = lc.shrink(net, images())
    assert log == lc.RemovalLog()
    assert small.stem.out_channels == 8


def test_frozen_and_shared_parameters_stay_what_they_are() -> None:
    net = trained(Padded)
    net.twin = nn.Conv2d(4, 8, 3, stride=2, padding=1)
    net.twin.weight = net.conv1.weight  # not called: it only shares
    net.conv1.bias.requires_grad_(False)
    small, _ = lc.shrink(half_zero(net), images())
    assert small.twin.weight is small.conv1.weight
    assert len(small.conv1.weight) == 4
    assert not small.conv1.bias.requires_grad
    assert small.conv2.bias.requires_grad


@pytest.mark.parametrize("inputs", [images(), (images(),), [images()], {"x": images()}], ids=lambda i: type(i).__name__)
def test_inputs_in_any_form(inputs: object) -> None:
    small, _ = lc.shrink(half_zero(trained(Residual)), inputs)
    assert small.stem.out_channels == 4


def test_copies_pickles_and_compiled_networks() -> None:
    net = half_zero(trained(Residual))
    small, log = lc.shrink(net, images())
    torch.testing.assert_close(copy.deepcopy(small)(images()), net(images()))
    assert pickle.loads(pickle.dumps(log)) == log
    net.compile(backend="eager")
    assert lc.shrink(net, images())[1] == log


def test_reloaded_in_a_clean_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    code = "from timm.models.vision_transformer import VisionTransformer; net = VisionTransformer(img_size=6, "
    code += "patch_size=3, embed_dim=12, depth=2, num_heads=3, num_classes=4, mlp_ratio=2, qkv_bias=True).eval()"
    small, log = lc.shrink(half_zero(trained(SOUND["transformer"])), images())
    log.save(tmp_path / "removal.json")
    lc.save_packed(small, tmp_path / "small.packed")
    torch.save((images(), small(images())), tmp_path / "expected.pt")
    script = f"""
import sys, torch, lightning_compress as lc
{code}
lc.RemovalLog.load("removal.json").replay_(net)
lc.load_packed("small.packed", into=net)
images, expected = torch.load("expected.pt", weights_only=True)
assert torch.equal(net(images), expected)
assert "lightning" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=600)
