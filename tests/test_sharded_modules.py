"""Copies of sharded modules on a mesh of one process; more processes are in ``tests/distributed``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_compress.sharded_modules import copy_unsharded, copy_whole, is_sharded, placeholder, reshard


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


@pytest.fixture
def sharded(mesh: DeviceMesh) -> nn.Sequential:
    net = network()
    fully_shard(net[0], mesh=mesh["rows"])
    return fully_shard(net, mesh=mesh["rows"])


def test_a_copy_of_a_module_that_is_cut(mesh: DeviceMesh) -> None:
    plain, cut, inputs = network().eval(), network().eval(), torch.randn(8, 4)
    parallelize_module(cut, mesh["rows"], {"0": ColwiseParallel(), "3": RowwiseParallel()})
    copied = copy_whole(cut)
    assert not is_sharded(copied)
    assert {name: type(p) for name, p in copied.named_parameters()} == {
        name: nn.Parameter for name, _ in plain.named_parameters()
    }
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in copied.modules())
    assert torch.equal(copied(inputs), plain(inputs))


def full(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor()


def test_sharded_modules_are_told_apart(sharded: nn.Sequential) -> None:
    assert is_sharded(sharded)
    assert not is_sharded(network())
    sharded(torch.ones(2, 4))
    assert is_sharded(sharded)


def test_parameters_of_the_outermost_module_are_sharded_again(sharded: nn.Sequential) -> None:
    held = list(sharded.parameters())
    with torch.no_grad():
        sharded(torch.ones(2, 4))
    assert any(found is not parameter for found, parameter in zip(sharded.parameters(), held, strict=True))
    reshard(sharded)
    assert all(found is parameter for found, parameter in zip(sharded.parameters(), held, strict=True))


def test_a_copy_is_the_module_of_before(sharded: nn.Sequential) -> None:
    plain, inputs = network(), torch.randn(8, 4)
    calls: list[int] = []
    sharded.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    with torch.no_grad():
        sharded(inputs)  # from now on FSDP2 has hooks on state dicts, too
        plain(inputs)
    copied = copy_unsharded(sharded, full)
    assert [type(part) for part in copied.modules()] == [type(part) for part in plain.modules()]
    assert {name: type(p) for name, p in copied.named_parameters()} == {
        name: nn.Parameter for name, _ in plain.named_parameters()
    }
    assert not any("fsdp" in name or "composable" in name for part in copied.modules() for name in vars(part))
    for name, value in copied.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    calls.clear()
    assert torch.equal(copied.eval()(inputs), plain.eval()(inputs))
    assert calls == [8]
    copy.deepcopy(copied)


def test_the_original_is_still_sharded(sharded: nn.Sequential) -> None:
    with torch.no_grad():
        sharded(torch.ones(2, 4))
    before = [list(part._state_dict_pre_hooks) for part in sharded.modules()]
    copy_unsharded(sharded, full)
    assert isinstance(sharded, FSDPModule)
    assert isinstance(sharded[0], FSDPModule)
    assert [list(part._state_dict_pre_hooks) for part in sharded.modules()] == before
    sharded(torch.ones(2, 4)).sum().backward()
    assert all(isinstance(p, DTensor) and isinstance(p.grad, DTensor) for p in sharded.parameters())


def test_a_copy_with_placeholders_takes_no_memory(sharded: nn.Sequential) -> None:
    copied = copy_unsharded(sharded, placeholder)
    assert [p.shape for p in copied.parameters()] == [p.shape for p in network().parameters()]
    assert all(p.untyped_storage().nbytes() == 4 for p in copied.parameters())
    assert copied(torch.randn(8, 4)).isfinite().all()
