"""Embedding width of the classes that people prune: nothing is left whole but inputs and outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import lightning_compress as lc
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.masked_norms import attach_norms_, masked_norms
from lightning_compress.profiling import count_macs
from tests.channels.nets import transformer

TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 30}


def vit(name: str) -> nn.Module:
    return timm.create_model(name, img_size=32, depth=2, embed_dim=48, num_heads=3, num_classes=4)


def swin() -> nn.Module:
    small = {"img_size": 32, "window_size": 2, "embed_dim": 16, "depths": (1, 2, 1), "num_heads": (2, 2, 4)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=4, **small)


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), num_classes=4)


def bert() -> nn.Module:
    config = BertConfig(**TINY, max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2, use_cache=False))


# With the number of channels of the streams, and of groups with heads or hidden units.
MODELS: dict[str, tuple[Callable[[], nn.Module], list[int], int]] = {
    "vit_tiny": (lambda: vit("vit_tiny_patch16_224"), [48], 4),
    "deit_tiny": (lambda: vit("deit_tiny_patch16_224"), [48], 4),
    "swin_tiny": (swin, [16, 32, 64], 8),
    "convnext_atto": (convnext, [8, 12, 16, 24], 5),
    "bert": (bert, [16], 5),  # with a pooler
    "llama": (llama, [16], 4),
}
every_model = pytest.mark.parametrize("name", MODELS)


def inputs_of(name: str, num: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    if name in ("bert", "llama"):
        return torch.randint(0, 30, (num, 7), generator=generator)
    return torch.randn(num, 3, 32, 32, generator=generator)


def make(name: str) -> nn.Module:
    """The model with random values everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name][0]().eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.data.uniform_(0.5, 1.5)
            else:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
    return model


def output_of(model: nn.Module, inputs: Tensor) -> Tensor:
    output: Any = model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def half_masked(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    model = make(name)
    groups, _ = find_groups(model, (inputs_of(name),), {}, width=True)
    for group in groups:
        group.zero_(named_tensors(model), torch.arange(group.num_channels) % 2 == 1)
        attach_norms_(model, group.norms)
    return model, groups


def assert_close(output: Tensor, expected: Tensor) -> None:
    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()


@every_model
def test_nothing_is_left_whole(name: str) -> None:
    model = make(name)
    groups, reasons = find_groups(model, (inputs_of(name),), {}, width=True)
    assert reasons == {}
    assert [group.num_channels for group in groups if group.norms] == MODELS[name][1]
    assert len([group for group in groups if not group.norms]) == MODELS[name][2]
    assert all(group.name for group in groups)


@every_model
def test_masked_is_removed(name: str) -> None:
    model, _ = half_masked(name)
    small, _ = lc.shrink(model, inputs_of(name))
    expected = output_of(model, inputs_of(name, 5))
    assert_close(output_of(small, inputs_of(name, 5)), expected)
    assert count_macs(small, inputs_of(name)).total < 0.5 * count_macs(model, inputs_of(name)).total
    assert masked_norms(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    kinds = {type(module) for module in model.modules()}
    assert {type(module) for module in small.modules()} == kinds
    widths = {len(module.weight) for module in small.modules() if isinstance(module, nn.LayerNorm)}
    assert all(module.normalized_shape == module.weight.shape for module in small.modules() if type(module).__name__ in
               ("LayerNorm", "LayerNorm2d"))  # fmt: skip
    assert not widths or min(widths) == MODELS[name][1][0] // 2


@every_model
def test_a_fresh_model_takes_the_smaller_weights(name: str) -> None:
    small, log = lc.shrink(half_masked(name)[0], inputs_of(name))
    fresh = MODELS[name][0]().eval()
    log.replay_(fresh)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(output_of(fresh, inputs_of(name)), output_of(small, inputs_of(name)))
    again, nothing = lc.shrink(fresh, inputs_of(name))
    assert nothing.cuts == {}
    assert torch.equal(output_of(again, inputs_of(name)), output_of(fresh, inputs_of(name)))


@every_model
def test_both_train_alike(name: str) -> None:
    """Two steps of the masked model, projected as the callback does, and of the smaller one."""
    model, _ = half_masked(name)
    zeros = {parameter: parameter == 0 for parameter in model.parameters()}
    small, _ = lc.shrink(model, inputs_of(name))
    masked = model
    for net in (masked, small):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            output_of(net, inputs_of(name, 3)).square().mean().backward()
            for parameter, mask in zeros.items() if net is masked else ():
                parameter.grad.masked_fill_(mask, 0.0)
            optimizer.step()
    assert all(not parameter[mask].any() for parameter, mask in zeros.items())
    assert_close(output_of(small, inputs_of(name)), output_of(masked, inputs_of(name)))


def test_by_default_streams_keep_their_width() -> None:
    groups, reasons = find_groups(transformer(), (torch.randn(2, 3, 6, 6),), {})
    assert not any(group.norms for group in groups)
    assert "LayerNorm mixes channels" in reasons["patch_embed.proj"]


def test_weights_of_a_checkpoint_in_a_plain_model() -> None:
    """Without hooks, zeros are taken for masked channels only if that is asked for."""
    masked, _ = half_masked("vit_tiny")
    plain = MODELS["vit_tiny"][0]().eval()
    plain.load_state_dict(masked.state_dict())
    inputs = inputs_of("vit_tiny")
    with pytest.warns(UserWarning, match=r"zero channels of \d layers cannot be removed"):
        kept, _ = lc.shrink(plain, inputs)
    assert_close(kept(inputs), plain(inputs))
    small, _ = lc.shrink(plain, inputs, width=True)
    assert_close(small(inputs), masked(inputs))
    assert (plain(inputs) - masked(inputs)).abs().max() > 0.01, "or else the hooks were not needed"


def test_norms_that_cannot_be_narrowed_keep_the_stream() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    groups, reasons = find_groups(net, (torch.randn(2, 4),), {}, width=True)
    assert groups == []
    assert reasons == {"0": "its channels pass through '1', and LayerNorm mixes channels"}


def test_one_norm_over_two_streams() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 5)
            self.norm, self.head = nn.LayerNorm(11), nn.Linear(11, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(torch.cat([self.left(x), self.right(x)], dim=-1)))

    torch.manual_seed(0)
    net, x = Joined(), torch.randn(5, 4)
    groups, reasons = find_groups(net, (x,), {}, width=True)
    assert [group.num_channels for group in groups] == [6, 5]
    assert reasons == {}
    for group in groups:
        attach_norms_(net, group.norms)
    groups[0].zero_(named_tensors(net), torch.arange(6) < 2)
    small, _ = lc.shrink(net, x)
    assert small.norm.normalized_shape == (9,)
    assert_close(small(x), net(x))
    twice = copy.deepcopy(small)
    assert_close(twice(x), small(x))


def test_a_module_that_fixes_its_width_is_left_whole() -> None:
    """``nn.MultiheadAttention`` needs the width it was made with."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3))
    groups, reasons = find_groups(net, (torch.randn(2, 5, 4),), {}, width=True)
    assert [group.name for group in groups] == ["1.linear1"]
    assert set(reasons) >= {"0", "1.linear2"}
