from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.clustering.codebook_spec import CodebookSpec, point_masses
from lightning_compress.constraints.layer import Layer


def layer_of(weight: Tensor, input_dim: int = 1) -> Layer:
    return Layer("conv.weight", nn.Parameter(weight.clone()), input_dim)


def clustered(spec: CodebookSpec, weight: Tensor, input_dim: int = 1, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The clustered weights, the index of each and the values of the clusters."""
    options = {name: option.unsqueeze(0) if isinstance(option, Tensor) else option for name, option in options.items()}
    layout = spec.layout(layer_of(weight, input_dim))
    indices, centers = spec.cluster(layout, weight.unsqueeze(0), **options)
    assert indices.dtype == torch.int32
    assert indices.shape == (1, weight.numel())
    index, values = indices[0], centers[0]
    return values[index].view(weight.shape), index, values


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_one_codebook_for_a_tensor() -> None:
    weight = torch.tensor([[1.0, 2.0], [9.0, 8.0]])
    found, index, values = clustered(CodebookSpec(2), weight)
    assert values.tolist() == [1.5, 8.5]
    assert index.tolist() == [0, 0, 1, 1]
    assert found.tolist() == [[1.5, 1.5], [8.5, 8.5]]


def test_one_codebook_for_each_channel() -> None:
    weight = torch.tensor([[1.0, 2.0, 9.0, 8.0], [-1.0, -1.0, -5.0, -5.0]])
    _, index, values = clustered(CodebookSpec(2, "channel"), weight)
    assert values.tolist() == [1.5, 8.5, -5.0, -1.0]
    assert index.tolist() == [0, 0, 1, 1, 3, 3, 2, 2]


def test_padding_of_the_last_group_has_no_mass() -> None:
    weight = torch.tensor([[1.0, 2.0], [9.0, 8.0], [5.0, 7.0]])
    _, index, values = clustered(CodebookSpec(2, 2), weight)
    assert values.tolist() == [1.5, 8.5, 5.0, 7.0]
    assert index.tolist() == [0, 0, 1, 1, 2, 3]


def test_channels_of_transposed_convolutions() -> None:
    weight = torch.tensor([[1.0, -1.0], [2.0, -1.0], [9.0, -5.0], [8.0, -5.0]])
    found, index, _ = clustered(CodebookSpec(2, "channel"), weight, input_dim=0)
    assert found.tolist() == [[1.5, -1], [1.5, -1], [8.5, -5], [8.5, -5]]
    assert index.tolist() == [0, 3, 0, 3, 1, 2, 1, 2]


@pytest.mark.parametrize("granularity", ["tensor", "channel", 2])
@pytest.mark.parametrize("input_dim", [0, 1])
def test_zeros_have_index_0_and_no_mass(granularity: Any, input_dim: int) -> None:
    weight = normal(4, 5, 3)
    zeros = weight.abs() < 0.5
    spec = CodebookSpec(4, granularity)
    found, index, values = clustered(spec, weight, input_dim, zeros=zeros)
    assert float(values[0]) == 0
    assert torch.equal(index == 0, zeros.flatten())
    others, _, _ = clustered(spec, torch.where(zeros, 0.3, weight), input_dim, zeros=zeros)
    torch.testing.assert_close(others, found)
    layout = spec.layout(layer_of(weight, input_dim))
    for row, dead in zip(layout.to_rows(found), layout.to_rows(zeros.float()), strict=True):
        assert len(row[dead == 0].unique()) <= 4  # with 0 of the padding


def test_zero_is_one_of_the_clusters() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, 2.0, 8.0, 9.0]])
    _, index, values = clustered(CodebookSpec(3), weight, zeros=weight == 0)
    assert values.tolist() == [0.0, 1.5, 8.5]
    assert index.tolist() == [0, 0, 1, 1, 2, 2]
    _, index, values = clustered(CodebookSpec(2), weight, zeros=weight == 0)
    assert values.tolist() == [0.0, 5.0]


def test_nothing_but_zeros() -> None:
    weight = torch.zeros(3, 4)
    found, index, values = clustered(CodebookSpec(4), weight, zeros=torch.ones(3, 4, dtype=torch.bool))
    assert index.tolist() == [0] * 12
    assert values.isfinite().all()
    assert torch.equal(found, weight)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_fewer_distinct_weights_than_clusters_stay_as_they_are(granularity: Any) -> None:
    weight = torch.tensor([[0.1, 0.1, -0.7, 0.3, 0.1, -0.7]] * 2)
    found, index, values = clustered(CodebookSpec(5, granularity), weight)
    assert torch.equal(found, weight)
    assert set(values.tolist()) == set(weight.flatten().tolist())
    assert int(index.max()) < len(values)


def test_sensitive_weights_are_preferred() -> None:
    weight, importance = torch.tensor([[0.0, 4.0, 10.0]]), torch.tensor([[1.0, 3.0, 1.0]])
    assert clustered(CodebookSpec(2), weight)[2].tolist() == [2.0, 10.0]
    assert clustered(CodebookSpec(2), weight, importance=importance)[2].tolist() == [3.0, 10.0]
    heavy = torch.tensor([[100.0, 100.0, 1.0]])
    assert clustered(CodebookSpec(2), weight, importance=heavy)[2][0] == 0.0


def test_vectors_of_neighbors() -> None:
    weight = torch.tensor([[1.0, 5.0, 9.0, 0.0], [9.0, 2.0, 1.0, 7.0]])
    found, index, values = clustered(CodebookSpec(2, vector_size=2), weight)
    assert found.tolist() == [[1, 6, 9, 1], [9, 1, 1, 6]]
    assert len(values) == 4
    assert (index % 2).tolist() == [0, 1] * 4
    assert torch.equal(index[::2] + 1, index[1::2])


def test_vectors_run_along_output_channels_of_transposed_convolutions() -> None:
    weight = torch.tensor([[1.0, 9.0], [5.0, 1.0]])
    found, index, _ = clustered(CodebookSpec(2, vector_size=2), weight, input_dim=0)
    assert torch.equal(found, weight)
    assert (index.view(2, 2) % 2).tolist() == [[0, 0], [1, 1]]


def test_vectors_with_zeros() -> None:
    weight = torch.tensor([[1.0, 0.0, 1.0, 4.0, 9.0, 6.0, 0.0, 0.0]])
    found, index, values = clustered(CodebookSpec(3, vector_size=2), weight, zeros=weight == 0)
    assert torch.equal(found, weight)  # the pinned component of the first vector has no mass
    assert torch.equal(index == 0, weight.flatten() == 0)
    assert len(values) == 1 + 2 * 2


def test_no_more_clusters_than_vectors() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found, _, values = clustered(CodebookSpec(16, vector_size=2), weight)
    assert torch.equal(found, weight)
    assert len(values) == 4


@pytest.mark.parametrize(
    "spec", [CodebookSpec(4), CodebookSpec(4, "channel"), CodebookSpec(4, 3), CodebookSpec(4, vector_size=2)]
)
@pytest.mark.parametrize("input_dim", [0, 1])
@pytest.mark.parametrize("dead", [False, True])
def test_found_codebooks_are_a_fixed_point(spec: CodebookSpec, input_dim: int, dead: bool) -> None:
    weight = normal(4, 6, 2)
    zeros = weight.abs() < 0.4 if dead else None
    found, index, values = clustered(spec, weight, input_dim, zeros=zeros)
    again, others, _ = clustered(spec, weight, input_dim, zeros=zeros, initial_centers=values[int(dead) :])
    torch.testing.assert_close(again, found)
    assert torch.equal(others, index)


def test_a_start_may_have_lost_its_order() -> None:
    weight = torch.tensor([[1.0, 2.0, 9.0, 8.0, 5.0, 5.0]])
    initial = torch.tensor([9.0, 1.0, 5.0])
    assert clustered(CodebookSpec(3), weight, initial_centers=initial)[2].tolist() == [1.5, 5.0, 8.5]


@pytest.mark.parametrize(
    ("shape", "spec", "reason"),
    [
        ((64, 64), CodebookSpec(16), ""),
        ((4, 4), CodebookSpec(16), "its codebooks would be as large as its 16 weights"),
        ((4, 5), CodebookSpec(16), ""),  # 4 x 20 + 16 x 32 of 640 bits
        ((64, 9), CodebookSpec(16, "channel"), "its codebooks would be as large as its 576 weights"),
        ((64, 9), CodebookSpec(16, 8), ""),
        ((64, 9), CodebookSpec(16, vector_size=4), ""),
        ((3, 3), CodebookSpec(2, vector_size=2), "its 9 weights do not divide into vectors of 2"),
    ],
)
def test_skip_reasons(shape: tuple[int, ...], spec: CodebookSpec, reason: str) -> None:
    assert spec.skip_reason(layer_of(torch.zeros(shape))) == reason


def test_codebooks_of_output_channels_are_counted() -> None:
    weight = torch.zeros(2, 100)
    assert CodebookSpec(16, "channel").skip_reason(layer_of(weight)) == ""
    assert CodebookSpec(16, "channel").skip_reason(layer_of(weight, input_dim=0)) != ""


def test_masses() -> None:
    points, zeros = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert point_masses(points, None, None) is None
    assert point_masses(points, zeros, None).tolist() == [0.0, 1.0]
    importance = torch.tensor([3.0, 4.0])
    assert point_masses(points, zeros, importance).tolist() == [0.0, 4.0]
    assert importance.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("num_clusters", [1, 2**16 + 1, 2.0, "4"])
def test_unsupported_numbers_of_clusters(num_clusters: Any) -> None:
    with pytest.raises(ValueError, match=r"must be an int from 2 to 65536"):
        CodebookSpec(num_clusters)


@pytest.mark.parametrize("granularity", ["row", 0, -1, 2.0, True])
def test_unknown_granularities(granularity: Any) -> None:
    with pytest.raises(ValueError, match=r"must be 'tensor', 'channel', or a positive number of channels"):
        CodebookSpec(4, granularity)
