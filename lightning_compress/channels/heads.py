"""Attention heads as channels: of timm's attention modules, and of others that are built alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.channels.members import Member, Unfit


def attention_heads(model: nn.Module) -> Iterator[ChannelGroup]:
    """One group for each attention module with ``qkv`` and ``proj`` linear layers and ``num_heads``."""
    for name, module in model.named_modules():
        if is_attention(module):
            # Where a weight is computed from others, the groups that are found from the graph say so.
            with contextlib.suppress(Unfit):
                yield _heads(name, module)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is attention whose heads can be told apart."""
    qkv, proj, num_heads = (getattr(module, attribute, None) for attribute in ("qkv", "proj", "num_heads"))
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(num_heads, int)):
        return False
    return qkv.out_features == 3 * proj.in_features and proj.in_features % num_heads == 0


def _heads(name: str, module: nn.Module) -> ChannelGroup:
    qkv, proj, num_heads = module.qkv, module.proj, module.num_heads
    assert isinstance(qkv, nn.Linear)
    assert isinstance(proj, nn.Linear)
    assert isinstance(num_heads, int)
    heads = torch.arange(num_heads).repeat_interleave(proj.in_features // num_heads)
    made = Member(f"{name}.qkv".lstrip("."), qkv, True, torch.arange(3 * len(heads)), heads.repeat(3))
    read = Member(f"{name}.proj".lstrip("."), proj, False, torch.arange(len(heads)), heads)
    output_slices = [made.at("weight", 0), *([made.at("bias", 0)] if qkv.bias is not None else [])]
    each = Member(name, module, True, torch.arange(num_heads), torch.arange(num_heads))
    # Swin's bias of relative positions has a column for each head.
    table = getattr(module, "relative_position_bias_table", None)
    carried_slices = [each.at("relative_position_bias_table", 1)] if isinstance(table, nn.Parameter) else []
    amounts = {"num_heads": 1, "attn_dim": proj.in_features // num_heads}
    counts = {f"{name}.{key}".lstrip("."): amount for key, amount in amounts.items() if hasattr(module, key)}
    return ChannelGroup(name, num_heads, tuple(output_slices), tuple(carried_slices), (read.at("weight", 1),), counts)
