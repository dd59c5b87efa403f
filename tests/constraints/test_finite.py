from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_compress.constraints.finite import check_finite
from lightning_compress.constraints.layer import Layer


def check(*tensors: Tensor) -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(2, 2))) for i in range(len(tensors))]
    batches, stacks = [[i] for i in range(len(tensors))], [tensor.unsqueeze(0) for tensor in tensors]
    check_finite(layers, batches, stacks, quantity="weights", purpose="ranked")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_layer_with_such_a_value_is_named(value: float, dtype: torch.dtype) -> None:
    bad = torch.ones(3, 2, dtype=dtype)
    bad[1, 1] = value
    with pytest.raises(ValueError, match=r"^'1\.weight' has weights that are NaN or infinite, which cannot be ranked"):
        check(torch.ones(2), bad, bad)


def test_finite_and_empty_tensors_pass() -> None:
    check(torch.tensor([65504.0], dtype=torch.float16), torch.tensor([1e300], dtype=torch.float64), torch.zeros(0, 4))
    check(torch.zeros(0, 4))
    check()


def test_a_layer_within_a_batch_is_named() -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(2, 2))) for i in range(4)]
    stacked = torch.ones(3, 2, 2)
    stacked[1, 0, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^'2\.weight' has weights"):
        check_finite(layers, [[1], [0, 2, 3]], [torch.ones(1, 2, 2), stacked], quantity="weights", purpose="ranked")


def test_a_shard_on_another_rank_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("0.weight", nn.Parameter(torch.ones(2, 2)))
    monkeypatch.setattr(Layer, "group", "ranks")

    def all_reduce(tensor: Tensor, operation: object, group: object) -> None:
        assert (operation, group) == (dist.ReduceOp.MAX, "ranks")
        tensor.fill_(1)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    with pytest.raises(ValueError, match=r"^'0\.weight' has weights"):
        check_finite([layer], [[0]], [layer.weight[None]], quantity="weights", purpose="ranked")
