from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint

MASK = torch.tensor([[True, False, True], [False, False, True]])


def make(values: Tensor | None = None) -> tuple[nn.Linear, MaskConstraint]:
    linear = nn.Linear(3, 2)
    if values is not None:
        linear.weight.data.copy_(values)
    return linear, MaskConstraint([Layer("weight", linear.weight)])


def num_pruned(constraint: MaskConstraint) -> int:
    return sum(int(zeros.sum()) for zeros in constraint.zeros)


def bits(tensor: Tensor) -> list[int]:
    return tensor.flatten().view(torch.int32).tolist()


def test_at_first_everything_may_live() -> None:
    linear, constraint = make()
    before = linear.weight.clone()
    constraint.project_weights_()
    assert torch.equal(linear.weight, before)
    assert num_pruned(constraint) == 0
    assert constraint.masks[0].all()


def test_replace_writes_zeros_and_leaves_the_rest() -> None:
    linear, constraint = make(torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]))
    parameter = linear.weight
    constraint.replace([MASK])
    assert linear.weight is parameter
    assert linear.weight.tolist() == [[1.0, 0.0, 3.0], [0.0, 0.0, -6.0]]
    assert num_pruned(constraint) == 3
    assert torch.equal(constraint.masks[0], MASK)


def test_zeros_are_positive_also_in_place_of_negative_infinite_and_nan_weights() -> None:
    linear, constraint = make(torch.tensor([[1.0, -2.0, 3.0], [-torch.inf, torch.nan, -0.0]]))
    constraint.replace([MASK])
    zeros = linear.weight.detach()[~MASK]
    assert bits(zeros) == [0, 0, 0]


def test_weights_that_moved_are_projected_back() -> None:
    linear, constraint = make()
    constraint.replace([MASK])
    linear.weight.data.fill_(7.0)
    constraint.project_weights_()
    assert linear.weight.tolist() == [[7.0, 0.0, 7.0], [0.0, 0.0, 7.0]]


def test_gradients_are_projected_where_there_are_any() -> None:
    linear, constraint = make()
    constraint.replace([MASK])
    constraint.project_gradients_()
    assert linear.weight.grad is None
    linear.weight.grad = torch.full((2, 3), -5.0)
    constraint.project_gradients_()
    assert linear.weight.grad.tolist() == [[-5.0, 0.0, -5.0], [0.0, 0.0, -5.0]]
    assert bits(linear.weight.grad[~MASK]) == [0, 0, 0]


def test_gradients_of_some_layers_only() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    constraint = MaskConstraint([Layer("0.weight", first.weight), Layer("1.weight", second.weight)])
    constraint.replace([MASK, ~MASK])
    second.weight.grad = torch.ones(2, 3)
    constraint.project_gradients_()
    assert first.weight.grad is None
    assert torch.equal(second.weight.grad != 0, ~MASK)


OPTIMIZERS: list[tuple[Callable[..., torch.optim.Optimizer], dict[str, Any], set[str]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, {"momentum_buffer"}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {"momentum_buffer"}),
    (torch.optim.Adam, {"amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    (torch.optim.AdamW, {}, {"exp_avg", "exp_avg_sq"}),
    (torch.optim.RMSprop, {"momentum": 0.9}, {"square_avg", "momentum_buffer"}),
]


@pytest.mark.parametrize(("cls", "options", "names"), OPTIMIZERS)
def test_optimizer_state_is_projected(
    cls: Callable[..., torch.optim.Optimizer], options: dict[str, Any], names: set[str]
) -> None:
    linear, constraint = make()
    optimizer = cls(linear.parameters(), lr=0.1, **options)
    linear(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    constraint.replace([MASK])
    bias = {name: value.clone() for name, value in optimizer.state[linear.bias].items()}
    step = optimizer.state[linear.weight].get("step")
    step = None if step is None else step.clone()
    constraint.project_state_(optimizer)
    state = optimizer.state[linear.weight]
    shaped = {name for name, value in state.items() if isinstance(value, Tensor) and value.shape == (2, 3)}
    assert shaped == names
    for name in names:
        assert bits(state[name][~MASK]) == [0, 0, 0]
        assert (state[name][MASK] != 0).all()
    assert step is None or torch.equal(state["step"], step)
    assert all(torch.equal(optimizer.state[linear.bias][name], value) for name, value in bias.items())


@pytest.mark.parametrize(("cls", "options", "names"), OPTIMIZERS)
def test_projected_gradient_and_state_let_no_step_move_a_masked_weight(
    cls: Callable[..., torch.optim.Optimizer], options: dict[str, Any], names: set[str]
) -> None:
    linear, constraint = make()
    optimizer = cls(linear.parameters(), lr=0.1, **options)
    for step in range(4):
        optimizer.zero_grad()
        linear(torch.randn(4, 3)).square().sum().backward()
        constraint.project_gradients_()
        optimizer.step()
        if step == 1:
            constraint.replace([MASK])
            constraint.project_state_(optimizer)
        if step > 1:  # without a projection of the weights
            assert (linear.weight[~MASK] == 0).all()


def test_state_of_another_shape_is_left_alone() -> None:
    linear, constraint = make()
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    optimizer.state[linear.weight] = {"row": torch.ones(2, 1), "step": torch.tensor(3.0), "flag": True}
    constraint.replace([MASK])
    constraint.project_state_(optimizer)
    assert optimizer.state[linear.weight]["row"].tolist() == [[1.0], [1.0]]
    assert optimizer.state[linear.weight]["step"] == 3


def test_a_copy_of_the_model_is_projected_by_name() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    constraint = MaskConstraint([Layer("0.weight", net[0].weight)])
    constraint.replace([MASK])
    copy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    other = copy[1].weight.clone()
    constraint.project_copy_(copy)
    assert torch.equal(copy[0].weight != 0, MASK)
    assert torch.equal(copy[1].weight, other)


def test_state_dict_round_trip_through_a_safe_file(tmp_path) -> None:
    _, constraint = make()
    constraint.replace([MASK])
    torch.save(constraint.state_dict(), tmp_path / "masks")
    linear, other = make(torch.ones(2, 3))
    other.load_state_dict(torch.load(tmp_path / "masks", weights_only=True))
    assert torch.equal(other.masks[0], MASK)
    assert torch.equal(linear.weight != 0, MASK)
    assert constraint.state_dict()["weight"].tolist() == [0b100101]


def test_masks_of_other_weights_are_refused_by_name() -> None:
    _, constraint = make()
    with pytest.raises(ValueError, match=r"no mask for 'weight'.*another model or other targets"):
        constraint.load_state_dict({"other.weight": torch.zeros(1, dtype=torch.uint8)})
    with pytest.raises(ValueError, match=r"'weight' does not fit its shape \(2, 3\)"):
        constraint.load_state_dict({"weight": torch.zeros(9, dtype=torch.uint8)})
    assert num_pruned(constraint) == 0


def test_equal_masks_have_one_digest_and_a_flipped_bit_another() -> None:
    (_, first), (_, second) = make(), make()
    for constraint in (first, second):
        constraint.replace([MASK])
    assert first.digest() == second.digest()
    assert len(first.digest()) == 8
    flipped = MASK.clone()
    flipped[0, 0] = False
    second.replace([flipped])
    assert first.digest() != second.digest()


def test_masks_given_do_not_stay_shared() -> None:
    _, constraint = make()
    mask = MASK.clone()
    constraint.replace([mask])
    mask.fill_(True)
    assert torch.equal(constraint.masks[0], MASK)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    linear = nn.Linear(3, 2).to(dtype)
    constraint = MaskConstraint([Layer("weight", linear.weight)])
    constraint.replace([MASK])
    assert torch.equal(linear.weight != 0, MASK)
    assert linear.weight.dtype == dtype


def test_narrower_masks_revive_nothing() -> None:
    layer = Layer("weight", nn.Parameter(torch.ones(1, 4)))
    constraint = MaskConstraint([layer])
    constraint.replace([torch.tensor([[True, True, False, False]])])
    constraint.narrow([torch.tensor([[True, False, True, False]])])
    assert constraint.masks[0].tolist() == [[True, False, False, False]]
    assert layer.weight.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_satisfied_is_what_holds_in_all_layers_that_are_trained() -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(1, 4))) for i in range(3)]
    constraint = MaskConstraint(layers)
    assert constraint.is_satisfied()
    constraint.replace([torch.tensor([[True, False, True, True]])] * 3)
    assert [layer.weight.tolist() for layer in layers] == [[[1.0, 0.0, 1.0, 1.0]]] * 3
    assert constraint.is_satisfied()
    with torch.no_grad():
        layers[1].parameter.fill_(1.0)
    assert not constraint.is_satisfied()
    constraint.frozen = frozenset([1])
    assert constraint.is_satisfied()


class Device(Tensor):
    """Looks like a tensor of a GPU."""

    @property
    def is_cuda(self) -> bool:
        return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_a_gpu_have_positive_zeros_too(dtype: torch.dtype) -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(1, 3))) for i in range(2)]
    constraint = MaskConstraint(layers)
    constraint.replace([torch.tensor([[True, False, True]]), torch.tensor([[False, True, True]])])
    plain = [torch.tensor([[-1.0, -2.0, 3.0]], dtype=dtype) for _ in range(2)]
    for indices in ((0,), (1,), (0, 1)):
        tensors = [tensor.clone() for tensor in plain]
        constraint._project_({i: tensors[i].as_subclass(Device) for i in indices})
        for i in indices:
            assert tensors[i].tolist() == [[-1.0, 0.0, 3.0], [0.0, -2.0, 3.0]][i : i + 1]
            assert tensors[i].signbit().sum() == 1


def test_a_tied_weight_is_projected_under_either_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    constraint = MaskConstraint([Layer("1.weight", net[1].weight)])
    constraint.replace([torch.eye(2, dtype=torch.bool)])
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    constraint.project_copy_(net)
    assert net[0].weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_dense_is_only_where_nothing_is_masked() -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(1, 2 + i))) for i in range(2)]
    constraint = MaskConstraint(layers)
    assert constraint.is_dense
    for masked in range(2):
        masks = [torch.ones(1, 2 + i, dtype=torch.bool) for i in range(2)]
        masks[masked][0, 0] = False
        constraint.replace(masks)
        assert not constraint.is_dense


def test_frozen_layers_keep_weights_and_gradients() -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(1, 2))) for i in range(2)]
    constraint = MaskConstraint(layers)
    constraint.replace([torch.tensor([[True, False]])] * 2)
    constraint.frozen = frozenset([1])
    for layer in layers:
        layer.parameter.data.fill_(1.0)
        layer.parameter.grad = torch.ones(1, 2)
    constraint.project_weights_()
    constraint.project_gradients_()
    assert [layer.weight.tolist() for layer in layers] == [[[1.0, 0.0]], [[1.0, 1.0]]]
    assert [layer.gradient.tolist() for layer in layers] == [[[1.0, 0.0]], [[1.0, 1.0]]]
    assert [*constraint.trained_batches()] == [[0]]
