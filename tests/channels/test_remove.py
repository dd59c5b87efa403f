from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.channels.remove import remaining_group, remove_
from tests.channels.nets import SOUND, images


def some(group: ChannelGroup, *channels: int) -> Tensor:
    chosen = torch.zeros(group.num_channels, dtype=torch.bool)
    chosen[list(channels)] = True
    return chosen


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    tensors = model.state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_what_is_left_of_groups_can_be_removed_next(make: Callable[[], nn.Module]) -> None:
    at_once = make().eval()
    in_turn = copy.deepcopy(at_once)
    groups, _ = find_groups(at_once, (images(),), {})
    assert groups
    first = {group: some(group, 0) for group in groups}
    log = remove_(in_turn, first)
    left = {group: remaining_group(group, channels, log) for group, channels in first.items()}
    assert [group.num_channels for group in left.values()] == [group.num_channels - 1 for group in groups]
    # The last channel of those that have a second one: the channel before it in what is left.
    later = {rest: some(rest, rest.num_channels - 1) for rest in left.values() if rest.num_channels > 1}
    remove_(in_turn, later)
    remove_(at_once, {g: some(g, 0, -1) if g.num_channels > 2 else some(g, 0) for g in groups})
    assert_same(in_turn, at_once)
    in_turn(images())
