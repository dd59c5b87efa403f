from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from lightning_compress.constraints.layer import Layer, group_of, local_shards


def test_weight_is_detached_and_on_the_same_storage() -> None:
    linear = nn.Linear(3, 2)
    layer = Layer("net.weight", linear.weight)
    assert not layer.weight.requires_grad
    layer.weight[0, 0] = 9.0
    assert linear.weight[0, 0] == 9.0
    assert layer.shape == (2, 3)
    assert layer.group is None


def test_layer_is_named_as_users_write_it() -> None:
    parameter = nn.Linear(1, 1).weight
    assert Layer("net._orig_mod.conv.weight", parameter).layer == "net.conv"
    assert Layer("weight", parameter).layer == ""


def test_a_whole_weight_is_its_own_part() -> None:
    layer = Layer("weight", nn.Linear(3, 2).weight)
    noise = torch.rand(2, 3)
    assert torch.equal(layer.local(noise), noise)
    assert layer.full(noise) is noise


def test_gradient() -> None:
    linear = nn.Linear(3, 2)
    linear.weight.grad = torch.ones(2, 3)
    assert Layer("weight", linear.weight).gradient is linear.weight.grad


def test_a_sharded_weight_is_processed_as_plain_tensors(mesh: DeviceMesh) -> None:
    parameter = nn.Parameter(distribute_tensor(torch.tensor([[0.5], [1.5]]), mesh["rows"], [Shard(0)]))
    layer = Layer("weight", parameter)
    assert layer.group is not None
    for shard in (layer.weight, *local_shards([parameter])):
        assert not isinstance(shard, DTensor)
    for full in (torch.tensor([[0.5], [1.5]]), torch.tensor([[True], [False]])):
        assert torch.equal(layer.full(layer.local(full)), full)


@pytest.mark.parametrize(
    ("placement", "shard_dim"), [(Shard(0), 0), (Shard(1), 1), (Shard(-1), 1), (Replicate(), None)], ids=str
)
def test_layouts_of_tensor_parallelism(mesh: DeviceMesh, placement: Placement, shard_dim: int | None) -> None:
    parameter = nn.Parameter(distribute_tensor(torch.arange(6.0).view(2, 3), mesh["rows"], [placement]))
    layer = Layer("weight", parameter)
    assert layer.shard_dim == shard_dim
    assert (layer.group is None) == (shard_dim is None)
    assert layer.shard_shape == layer.shape == (2, 3)
    assert not isinstance(layer.weight, DTensor)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert torch.equal(layer.full(layer.local(mask)), mask)
    whole = Layer("other", nn.Parameter(torch.ones(2, 3)))
    assert group_of([whole, layer]) is layer.group
    assert group_of([whole]) is None


def test_a_mesh_of_two_dimensions_is_refused(mesh: DeviceMesh) -> None:
    parameter = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Shard(0), Shard(1)]))
    with pytest.raises(ValueError, match=r"^'weight' is laid out as .* over a mesh of 2 dimensions"):
        Layer("weight", parameter)


@pytest.mark.parametrize(("dim", "shapes"), [(0, [(1, 4), (1, 4), (0, 4)]), (1, [(2, 2), (2, 2), (2, 0)])])
def test_ranks_beyond_the_rows_of_a_weight_hold_nothing(
    dim: int, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer("weight", nn.Parameter(torch.arange(8.0).view(2, 4)))
    monkeypatch.setattr(Layer, "group", "ranks")
    monkeypatch.setattr(Layer, "shard_dim", dim)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda group, rank=rank: rank)
        found.append(layer.local(layer.parameter.detach()))
    assert [tuple(shard.shape) for shard in found] == shapes
    assert torch.equal(torch.cat(found, dim), layer.weight)
    assert layer.shard_shape == shapes[0]


def test_inputs_are_the_second_dimension_where_nothing_else_is_said() -> None:
    layer = Layer("weight", nn.Linear(3, 2).weight)
    assert layer.shape[layer.input_dim] == 3
    assert layer.knows_input_dim
