"""Attention heads as channel groups, for timm's attention modules and others with the same attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.channels.members import Member, RemovalError


def attention_heads(model: nn.Module) -> Iterator[ChannelGroup]:
    """Yield one group for each attention module with ``qkv`` and ``proj`` linear layers and ``num_heads``."""
    for name, module in model.named_modules():
        if is_attention(module):
            # A module with parametrized weights is skipped here: the dependency graph reports the reason.
            with contextlib.suppress(RemovalError):
                yield _head_group(name, module)


def is_attention(module: nn.Module) -> bool:
    """Return True if a module is an attention module with heads of equal width."""
    qkv, proj, num_heads = (getattr(module, attribute, None) for attribute in ("qkv", "proj", "num_heads"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(num_heads, int)):
        return False
    return qkv.out_features == 3 * proj.in_features and proj.in_features % num_heads == 0


def _head_group(name: str, module: nn.Module) -> ChannelGroup:
    qkv, proj, num_heads = module.qkv, module.proj, module.num_heads
    assert isinstance(qkv, nn.Linear)
    assert isinstance(proj, nn.Linear)
    assert isinstance(num_heads, int)
    head_width = proj.in_features // num_heads
    # The rows of qkv are queries, keys and values one after the other, each of them head by head.
    heads = torch.arange(num_heads).repeat_interleave(head_width)
    outputs = Member(f"{name}.qkv".lstrip("."), qkv, True, torch.arange(3 * len(heads)), heads.repeat(3))
    inputs = Member(f"{name}.proj".lstrip("."), proj, False, torch.arange(len(heads)), heads)
    output_slices = [outputs.slice_of("weight", 0), *([outputs.slice_of("bias", 0)] if qkv.bias is not None else [])]
    # Swin's relative position bias has one column per head.
    per_head = Member(name, module, True, torch.arange(num_heads), torch.arange(num_heads))
    table = getattr(module, "relative_position_bias_table", None)
    carried = [per_head.slice_of("relative_position_bias_table", 1)] if isinstance(table, nn.Parameter) else []
    # No tensor shape gives the number of heads, and timm reshapes by it.
    attributes = {
        f"{name}.{attribute}".lstrip("."): per_channel
        for attribute, per_channel in (("num_heads", 1), ("attn_dim", head_width))
        if hasattr(module, attribute)
    }
    return ChannelGroup(
        name, num_heads, tuple(output_slices), tuple(carried), (inputs.slice_of("weight", 1),), attributes
    )
