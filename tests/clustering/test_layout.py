from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.clustering.layout import Granularity, Layout


def numbers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def test_a_tensor_is_one_row() -> None:
    layout = Layout(torch.Size([2, 3]), 1, "tensor")
    assert layout.num_codebooks == 1
    assert not layout.is_padded
    assert layout.to_rows(numbers(2, 3)).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_row_for_each_output_channel() -> None:
    layout = Layout(torch.Size([2, 3]), 1, "channel")
    assert layout.num_codebooks == 2
    assert layout.to_rows(numbers(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_last_row_of_a_number_of_channels_is_padded() -> None:
    layout = Layout(torch.Size([5, 2]), 1, 2)
    assert layout.num_codebooks == 3
    assert layout.is_padded
    assert layout.to_rows(numbers(5, 2)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]
    assert not Layout(torch.Size([6, 2]), 1, 2).is_padded


def test_fewer_channels_than_a_row_is_for() -> None:
    layout = Layout(torch.Size([2, 2]), 1, 3)
    assert layout.num_codebooks == 1
    assert layout.to_rows(numbers(2, 2)).tolist() == [[0, 1, 2, 3, 0, 0]]


def test_output_channels_of_transposed_convolutions_stand_second() -> None:
    shape = torch.Size([2, 3, 1, 2])
    assert Layout(shape, 0, "channel").to_rows(numbers(*shape)).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    layout = Layout(shape, 0, 2)
    assert layout.num_codebooks == 2
    assert layout.to_rows(numbers(*shape)).tolist() == [[0, 1, 6, 7, 2, 3, 8, 9], [4, 5, 10, 11, 0, 0, 0, 0]]


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    input_dim=st.sampled_from([0, 1]),
    granularity=st.sampled_from(["tensor", "channel", 1, 2, 3, 7]),
)
@settings(max_examples=100, deadline=None)
def test_from_rows_inverts_to_rows(shape: list[int], input_dim: int, granularity: Granularity) -> None:
    layout = Layout(torch.Size(shape), input_dim, granularity)
    weight = numbers(*shape) + 1
    rows = layout.to_rows(weight)
    assert rows.shape[0] == layout.num_codebooks
    assert torch.equal(layout.from_rows(rows), weight)
    assert int((rows == 0).sum()) == rows.numel() - weight.numel()
    assert bool((rows == 0).any()) == layout.is_padded


@pytest.mark.parametrize("input_dim", [0, 1])
def test_gradients_flow(input_dim: int) -> None:
    layout = Layout(torch.Size([3, 5]), input_dim, 2)
    weight = numbers(3, 5).requires_grad_()
    layout.from_rows(2 * layout.to_rows(weight)).sum().backward()
    assert torch.equal(weight.grad, torch.full((3, 5), 2.0))
