from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_compress.distillation.mean_teacher import MeanTeacherNetwork
from tests.cases import assert_same
from tests.distributed import jobs


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).to(dtype)


def trained(student: nn.Module, seed: int) -> nn.Module:
    """Moves all parameters and buffers."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in student.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
        else:
            tensor.add_(1)
    return student


def optimizer(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), lr=0.1)


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_is_bit_for_bit_the_interpolation_with_the_growing_decay(decay: float) -> None:
    student = net()
    teacher = MeanTeacherNetwork(student, decay=decay, name="mean")
    expected = {name: p.detach().clone() for name, p in student.named_parameters()}
    for step in range(1, 30):
        trained(student, step)
        teacher.step(student, optimizer(student))
        weight = 1 - min(decay, (1 + step) / (10 + step))
        for name, parameter in student.named_parameters():
            expected[name].lerp_(parameter.detach(), weight)
            assert torch.equal(teacher.network.get_parameter(name), expected[name])
    for name, buffer in student.named_buffers():
        assert torch.equal(teacher.network.get_buffer(name), buffer)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_its_dtype_where_the_student_is_converted(dtype: torch.dtype) -> None:
    teacher, student = MeanTeacherNetwork(net(), decay=0.5, name="mean"), trained(net(), 1).to(dtype)
    start = net()[0].weight.detach().clone()
    teacher.step(student, optimizer(student))
    assert {p.dtype for p in teacher.network.parameters()} == {torch.float32}
    assert torch.equal(teacher.network[0].weight, start.lerp(student[0].weight.detach().float(), 1 - 2 / 11))


def test_state_goes_on_exactly() -> None:
    student = net()
    whole = MeanTeacherNetwork(student, decay=0.9, name="mean")
    for step in range(3):
        whole.step(trained(student, step), optimizer(student))
    resumed = MeanTeacherNetwork(net(), decay=0.9, name="mean")
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    trained(student, 9)
    for teacher in (whole, resumed):
        teacher.step(student, optimizer(student))
    assert resumed.state_dict()["steps"] == 4
    for name, value in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value)
    assert resumed.identity == whole.identity == {"name": "mean", "hash": ""}


def test_a_resumed_average_of_a_quantized_student(tmp_path: Path) -> None:
    whole = jobs.distil("qat", "one", 0, tmp_path, mean_teacher=True)
    resumed = jobs.distil("qat", "one", 50, None, tmp_path / "step=5.ckpt", mean_teacher=True)
    assert_same(resumed.state, whole.state)
    assert_same(resumed.teacher, whole.teacher)
    assert not any("quant_" in name for name in whole.teacher)
