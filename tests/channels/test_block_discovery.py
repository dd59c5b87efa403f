from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.channels.block_discovery import block_group, find_blocks, zero_modules
from lightning_compress.channels.groups import named_tensors
from tests.channels.nets import Residual, images, trained, transformer
from tests.channels.test_width import MODELS, inputs_of


def swin() -> nn.Module:
    small = {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=4, **small)


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 8, 12, 16), num_classes=4)


def deit() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=3, num_classes=4)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (Residual, ["blocks.0", "blocks.1"]),
    "vit_tiny": (MODELS["vit_tiny"][0], ["blocks.0", "blocks.1"]),
    "deit_tiny": (deit, ["blocks.0", "blocks.1", "blocks.2"]),
    "swin_tiny": (swin, [f"layers.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]),
    "convnext_atto": (
        convnext,
        ["stages.0.blocks.0", "stages.1.blocks.0", *(f"stages.2.blocks.{i}" for i in (0, 1)), "stages.3.blocks.0"],
    ),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=4), ["layer1.0", "layer1.1", "layer2.1"]),
}
every_net = pytest.mark.parametrize("name", [name for name in BLOCKS if name != "resnet18"])


def inputs(name: str, num: int = 2) -> Tensor:
    return images(num) if name == "residual" else inputs_of("vit_tiny", num)


def without_last(name: str) -> nn.Module:
    """A network in which the last block is zero."""
    net = trained(BLOCKS[name][0])
    for parameter in net.get_submodule(BLOCKS[name][1][-1]).parameters():
        nn.init.zeros_(parameter)
    return net


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_with_an_identity_shortcut(name: str) -> None:
    make, blocks = BLOCKS[name]
    net = make().train()
    state = copy.deepcopy(net.state_dict())
    found, reasons = find_blocks(net, (inputs(name),), {})
    assert found[: len(blocks)] == blocks
    assert not any(".downsample" in block or block.endswith(".0") for block in found[len(blocks) :])
    assert reasons == {}
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@every_net
def test_a_zero_block_is_replaced_by_the_identity(name: str) -> None:
    net, block = without_last(name), BLOCKS[name][1][-1]
    (outermost,) = zero_modules(net)
    assert block.startswith(outermost)
    small, log = lc.shrink(net, inputs(name))
    assert type(small.get_submodule(block)) is nn.Identity
    assert (log.blocks, log.cuts) == ((block,), {})
    torch.testing.assert_close(small(inputs(name, 5)), net(inputs(name, 5)))
    fresh = BLOCKS[name][0]().eval()
    log.replay_(fresh)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(inputs(name)), small(inputs(name)))
    log.replay_(fresh)  # a model of the final shapes is left unchanged
    assert torch.equal(fresh(inputs(name)), small(inputs(name)))


@every_net
def test_both_train_alike(name: str) -> None:
    masked = without_last(name)
    zeros = {parameter: parameter == 0 for parameter in masked.parameters()}
    small, _ = lc.shrink(masked, inputs(name))
    for net in (masked, small):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.001, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            net(inputs(name, 3)).square().mean().backward()
            for parameter, mask in zeros.items() if net is masked else ():
                parameter.grad.masked_fill_(mask, 0.0)
            optimizer.step()
    torch.testing.assert_close(small(inputs(name)), masked(inputs(name)), rtol=1e-5, atol=1e-6)


def test_blocks_that_are_called_with_more_arguments_or_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 1), Residual().blocks[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(self.stem(x).relu())).mean(dim=(1, 2, 3))

    assert find_blocks(Twice(), (images(),), {}) == ([], {"block": "it is called more than once"})
    llama = MODELS["llama"][0]().eval()
    found, reasons = find_blocks(llama, (inputs_of("llama"),), {})
    assert found == []
    assert reasons == {f"model.layers.{i}": "it is called with more than one argument" for i in (0, 1)}


def test_norms_behind_the_addition_and_shared_weights() -> None:
    assert find_blocks(MODELS["bert"][0]().eval(), (inputs_of("bert"),), {}) == ([], {})
    net = Residual()
    net.twin = net.blocks[1].conv1
    assert find_blocks(net, (images(),), {})[0] == ["blocks.0"]


def test_a_model_that_reads_its_blocks_keeps_them() -> None:
    class Reads(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.blocks[0].conv1.weight.shape[0]

    found, reasons = find_blocks(Reads(), (images(),), {})
    assert found == ["blocks.1"]
    assert reasons == {"blocks.0": "the model computes a different output without it"}


def test_a_zero_module_that_is_no_block_stays() -> None:
    net = trained(transformer)
    for parameter in net.blocks[1].mlp.parameters():
        nn.init.zeros_(parameter)
    small, log = lc.shrink(net, images())
    assert log.blocks == ()
    assert type(small.blocks[1].mlp) is type(net.blocks[1].mlp)
    torch.testing.assert_close(small(images()), net(images()))


def test_channels_and_blocks_in_one_log(tmp_path: Path) -> None:
    net = trained(Residual)
    group = block_group(net, ["blocks.1"])
    group.zero_(named_tensors(net), torch.ones(1, dtype=torch.bool))
    assert group.dead(named_tensors(net)).all()
    with torch.no_grad():
        for tensor in (net.blocks[0].conv1.weight, net.blocks[0].norm1.weight, net.blocks[0].norm1.bias):
            tensor[:2] = 0
    small, log = lc.shrink(net, images())
    assert log.layers["blocks.0.conv1"] == (2, 3, 4, 5)
    assert log.blocks == ("blocks.1",)
    log.save(tmp_path / "log.json")
    assert lc.RemovalLog.load(tmp_path / "log.json") == log
    assert pickle.loads(pickle.dumps(log)) == log
    fresh = Residual().eval()
    lc.RemovalLog.load(tmp_path / "log.json").replay_(fresh)
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh(images()), net(images()))


def test_channels_of_a_block_that_is_removed_later() -> None:
    first = trained(Residual)
    with torch.no_grad():
        for tensor in (first.blocks[1].conv1.weight, first.blocks[1].norm1.weight, first.blocks[1].norm1.bias):
            tensor[:3] = 0
    once, log = lc.shrink(first, images())
    for parameter in once.blocks[1].parameters():
        nn.init.zeros_(parameter)
    twice, later = lc.shrink(once, images())
    both = log.then(later)
    fresh = Residual().eval()
    both.replay_(fresh)
    fresh.load_state_dict(twice.state_dict())
    torch.testing.assert_close(fresh(images()), twice(images()))
    both.replay_(fresh)


def test_the_optimizer_state_of_the_rest_is_carried_over() -> None:
    net = without_last("residual")
    small, log = lc.shrink(net, images())
    old, new = (torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (net, small))
    net(images()).sum().backward()
    old.step()
    lc.carry_optimizer_state(old, new, log)
    assert torch.equal(
        new.state[small.stem.weight]["momentum_buffer"], old.state[net.stem.weight]["momentum_buffer"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (("gone",), "the model has no module 'gone'"),
        (("blocks.0", "blocks.7"), "the model has no module 'blocks.7'"),
    ],
)
def test_blocks_of_another_model(blocks: tuple[str, ...], words: str) -> None:
    _, log = lc.shrink(without_last("residual"), images())
    net = Residual()
    with pytest.raises(ValueError, match=f"The removal log belongs to another model: {words}"):
        replace(log, blocks=blocks).replay_(net)
    assert list(net.state_dict()) == list(Residual().state_dict())


def test_a_model_without_some_of_the_blocks() -> None:
    _, log = lc.shrink(without_last("residual"), images())
    net = Residual()
    log.replay_(net)
    with pytest.raises(ValueError, match=r"'blocks\.1' has no parameters, hence is no residual block"):
        replace(log, blocks=("blocks.0", "blocks.1")).replay_(net)


def test_heads_of_a_vision_transformer_that_lost_blocks() -> None:
    make: Any = VisionTransformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make(img_size=6, patch_size=3, embed_dim=12, depth=3, num_heads=3, num_classes=4, mlp_ratio=2).eval()
    for parameter in (*net.blocks[0].parameters(), *net.blocks[2].parameters()):
        nn.init.zeros_(parameter)
    net.blocks[1].attn.qkv.weight.data.view(3, 3, 4, 12)[:, 1] = 0
    net.blocks[1].attn.qkv.bias.data.view(3, 3, 4)[:, 1] = 0
    small, log = lc.shrink(net, images())
    assert log.blocks == ("blocks.0", "blocks.2")
    assert small.blocks[1].attn.num_heads == 2
    torch.testing.assert_close(small(images()), net(images()))
