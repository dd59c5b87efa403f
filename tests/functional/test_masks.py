from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.functional.masks import is_n_of_m, keep_n_of_m, pack_bits, unpack_bits
from tests.functional.unstable import Unstable


def test_pack_bits_puts_the_first_entry_lowest() -> None:
    mask = torch.tensor([True, False, True, True, False, False, False, True, True])
    assert pack_bits(mask).tolist() == [0b10001101, 1]
    assert pack_bits(mask).dtype == torch.uint8


@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_unpack_returns_what_was_packed(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert len(packed) == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(packed, mask.shape), mask)


def test_pack_bits_of_a_tensor_that_is_not_contiguous() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]]).T
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)


@pytest.mark.parametrize(
    "packed", [torch.zeros(1, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2)]
)
def test_unpack_refuses_what_does_not_fit(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        unpack_bits(packed, torch.Size([3, 3]))


def test_two_of_four() -> None:
    scores = torch.tensor([[0.1, 0.9, -0.2, 0.5, 4.0, 3.0, 2.0, 1.0]])
    assert keep_n_of_m(scores, n=2, m=4, dim=1).int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0]]


def test_of_equal_scores_the_later_stay() -> None:
    assert keep_n_of_m(torch.ones(1, 4), n=1, m=4, dim=1).int().tolist() == [[0, 0, 0, 1]]


def test_groups_run_along_the_dimension() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, 3.0]])
    assert keep_n_of_m(scores, n=1, m=2, dim=0).int().tolist() == [[0, 1], [1, 0]]
    assert keep_n_of_m(scores, n=1, m=2, dim=1).int().tolist() == [[0, 1], [0, 1]]


@given(seed=st.integers(0, 1000), n=st.integers(1, 3), m=st.integers(2, 5), dim=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_group_keeps_just_n_of_the_highest(seed: int, n: int, m: int, dim: int) -> None:
    n = min(n, m - 1)
    shape = [2, 3, 2, 2]
    shape[dim] = 2 * m
    scores = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
    keep = keep_n_of_m(scores, n=n, m=m, dim=dim)
    assert keep.shape == scores.shape
    groups = scores.movedim(dim, -1).unflatten(-1, (-1, m))
    kept = keep.movedim(dim, -1).unflatten(-1, (-1, m))
    assert (kept.sum(-1) == n).all()
    lowest_kept = groups.masked_fill(~kept, torch.inf).amin(-1)
    highest_gone = groups.masked_fill(kept, -torch.inf).amax(-1)
    assert (lowest_kept >= highest_gone).all()


def test_of_equal_scores_the_later_are_kept_on_any_device() -> None:
    scores = torch.ones(2, 4).as_subclass(Unstable)
    assert keep_n_of_m(scores, n=2, m=4, dim=1).tolist() == [[False, False, True, True]] * 2


@given(seed=st.integers(0, 1000), n=st.integers(1, 3), m=st.integers(2, 5), dim=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_pattern_is_recognized_along_its_dimension(seed: int, n: int, m: int, dim: int) -> None:
    n = min(n, m - 1)
    shape = [2, 3, 2]
    shape[dim] = 2 * m
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 1
    kept = weight.masked_fill(~keep_n_of_m(weight, n=n, m=m, dim=dim), 0.0)
    assert is_n_of_m(kept, n=n, m=m, dim=dim)
    assert not is_n_of_m(weight, n=n, m=m, dim=dim)
    one_more = kept.flatten()
    one_more[(one_more == 0).nonzero()[0]] = 1.0
    assert not is_n_of_m(one_more.view(shape), n=n, m=m, dim=dim)


def test_a_pattern_needs_whole_groups() -> None:
    assert not is_n_of_m(torch.zeros(4, 6), n=2, m=4, dim=1)
    assert is_n_of_m(torch.zeros(4, 6), n=2, m=4, dim=0)
