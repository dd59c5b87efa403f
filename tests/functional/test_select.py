"""Selection against a plain sort, ties and all, and sharded against whole."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional.select import keep_highest

# Few values, so that ties are common; both zeros; negative numbers, which a float's bits sort in reverse.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-40, -1e-40, 3e38, math.inf, -math.inf])
SCORES = st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=1, max_size=4)


def keep(scores: list[Tensor], num_pruned: int, unit_sizes: list[int] | None = None) -> list[list[bool]]:
    masks = keep_highest([s.clone for s in scores], num_pruned=num_pruned, unit_sizes=unit_sizes or [1] * len(scores))
    return [mask.tolist() for mask in masks]


def brute_force(scores: list[list[float]], num_pruned: int) -> list[list[bool]]:
    """Sorts by score, then tensor, then index; a tensor that loses all has its first highest unit saved."""
    saved: set[tuple[int, int]] = set()
    while True:
        order = sorted(
            ((t, i) for t, tensor in enumerate(scores) for i in range(len(tensor))),
            key=lambda at: (at in saved, scores[at[0]][at[1]], math.copysign(1, scores[at[0]][at[1]]), at),
        )
        pruned = set(order[:num_pruned])
        masks = [[(t, i) not in pruned for i in range(len(tensor))] for t, tensor in enumerate(scores)]
        empty = [t for t, mask in enumerate(masks) if not any(mask)]
        if not empty:
            return masks
        saved |= {(t, scores[t].index(max(scores[t]))) for t in empty}  # 0.0 == -0.0: the first of the highest


def test_lowest_go_over_all_tensors() -> None:
    scores = [torch.tensor([0.1, 0.9, 0.2, 0.5]), torch.tensor([0.3, 0.05])]
    assert keep(scores, 3) == [[False, True, False, True], [True, False]]


def test_nothing_to_prune_keeps_all() -> None:
    assert keep([torch.tensor([0.0, -1.0])], 0) == [[True, True]]


def test_ties_go_in_the_order_of_tensors_then_indices() -> None:
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 2.0])]
    assert keep(scores, 3) == [[False, True, False], [False, True, True]]


def test_no_tensors() -> None:
    assert keep([], 0) == []


def keep_in_table(table: Tensor, num_pruned: int) -> list[list[bool]]:
    positions = [list(range(len(table)))]
    (mask,) = keep_highest([table.clone], num_pruned=num_pruned, unit_sizes=[1], positions=positions)
    return mask.tolist()


def test_rows_of_a_table_are_tensors() -> None:
    table = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert keep_in_table(table, 3) == [[False, True, False], [False, True, True]]
    assert keep_in_table(table, 4) == [[False, True, False], [False, False, True]]


def test_rows_that_would_be_emptied_keep_their_first_highest() -> None:
    table = torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 3.0], [9.0, 8.0, 7.0]])
    assert keep_in_table(table, 6) == [[False, True, False], [True, False, False], [True, False, False]]


def test_negative_zeros_go_just_before_zeros() -> None:
    assert keep([torch.tensor([0.0, -0.0, 0.0, -1e-45, -0.0])], 3) == [[True, False, True, False, False]]


def test_nan_stays() -> None:
    scores = torch.tensor([math.nan, math.inf, -math.inf, 2.0]).abs()
    assert keep([scores], 3) == [[True, False, False, False]]


def test_float64_is_told_apart_where_float32_is_not() -> None:
    scores = torch.tensor([1 + 2e-16 * 2, 1.0, 1 + 1e-12, -1e300, 1e300], dtype=torch.float64)
    assert scores[:3].float().unique().numel() == 1
    assert keep([scores], 2) == [[True, False, True, False, True]]
    assert keep([scores], 3) == [[False, False, True, False, True]]


def test_no_tensor_loses_its_last_unit() -> None:
    scores = [torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 3.0, 3.0])]
    assert keep(scores, 4) == [[False, False, True], [False, True, False]]


def test_the_saved_unit_stands_above_infinite_scores_elsewhere() -> None:
    assert keep([torch.tensor([math.inf, math.inf]), torch.tensor([math.inf, math.inf])], 2) == [
        [True, False],
        [False, True],
    ]


@given(scores=SCORES, dtype=st.sampled_from([torch.float32, torch.float64]), data=st.data())
@settings(max_examples=80, deadline=None)
def test_equals_a_sort(scores: list[list[float]], dtype: torch.dtype, data: st.DataObject) -> None:
    total = sum(map(len, scores))
    num_pruned = data.draw(st.integers(0, total - len(scores)))
    tensors = [torch.tensor(s, dtype=dtype) for s in scores]
    kept = keep(tensors, num_pruned)
    assert total - sum(map(sum, kept)) == num_pruned
    assert kept == brute_force([t.tolist() for t in tensors], num_pruned)


@given(seed=st.integers(0, 10_000), sparsity=st.floats(0, 0.999))
@settings(max_examples=30, deadline=None)
def test_count_is_exact_and_nothing_pruned_scores_above_what_stays(seed: int, sparsity: float) -> None:
    scores = torch.randn(4097, generator=torch.Generator().manual_seed(seed))
    num_pruned = round(len(scores) * sparsity)
    mask = torch.tensor(keep([scores], num_pruned)[0])
    assert int((~mask).sum()) == num_pruned
    if num_pruned:
        assert scores[~mask].max() <= scores[mask].min()


@given(
    tensors=st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.sampled_from([1, 2, 4, 9])),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_units_of_several_sizes_hit_the_number_within_half_a_unit(
    tensors: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    scores, sizes = [torch.tensor(s, dtype=torch.float32) for s, _ in tensors], [size for _, size in tensors]
    removable = sum((len(s) - 1) * size for s, size in tensors)
    wanted = data.draw(st.integers(0, removable))
    masks = keep(scores, wanted, sizes)
    assert all(any(mask) for mask in masks)
    pruned = sum((len(mask) - sum(mask)) * size for mask, size in zip(masks, sizes, strict=True))
    # A saved last unit stands in for others, which may leave one more largest unit's rounding.
    assert abs(pruned - wanted) <= max(sizes) / 2


def test_overshoot_of_a_large_unit_does_not_reach_tied_small_units() -> None:
    # 5 of 9: the large unit goes and 4 too many are gone, so no unit of the second tensor may.
    assert keep([torch.ones(2), torch.ones(3)], 5, [9, 4]) == [[False, True], [True, True, True]]


# Real processes, since shards meet only in collectives.


def _cases() -> list[tuple[list[Tensor], int, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    rough = [torch.randint(-3, 4, (n,), generator=generator).float() for n in (11, 6, 1, 24)]
    smooth = [torch.randn(n, generator=generator) for n in (50, 3, 17)]
    negative = [torch.randn(8, generator=generator) - 100, torch.randn(30, generator=generator)]
    cases = [(rough, num, [1, 1, 1, 1]) for num in (0, 1, 7, 20, 30, 38)]
    cases += [(smooth, num, [1, 1, 1]) for num in (1, 35, 67)]
    cases += [(negative, 8, [1, 1]), (negative, 36, [1, 1])]
    cases += [([torch.ones(4), torch.ones(6)], num, [9, 4]) for num in (5, 9, 20, 40)]
    cases += [([t.double() for t in smooth], 35, [1, 1, 1])]
    return cases


def _share(tensor: Tensor, rank: int, is_whole: bool) -> Tensor:
    """As DTensor shards: `chunk`, where the second rank may get nothing."""
    return tensor if is_whole else (*tensor.chunk(2), tensor[:0])[rank]


def _shard(rank: int, file: str, failures: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for index, (scores, num_pruned, sizes) in enumerate(_cases()):
        expected = keep(scores, num_pruned, sizes)
        # All sharded, then those of even and of odd number only: the others are whole on both ranks.
        for whole in ([False] * 4, [True, False] * 2, [False, True] * 2):
            own = [_share(s, rank, is_whole) for s, is_whole in zip(scores, whole, strict=False)]
            chosen = keep_highest(
                [part.clone for part in own],
                num_pruned=num_pruned,
                unit_sizes=sizes,
                group=dist.group.WORLD,
                whole=whole[: len(own)],
            )
            for tensor, (part, mask) in enumerate(zip(chosen, expected, strict=True)):
                mine = _share(torch.tensor(mask), rank, whole[tensor])
                if not torch.equal(part, mine):
                    with open(failures, "a") as file_:
                        file_.write(f"case {index}, {whole}, {tensor}, {rank}: {part.tolist()} != {mine.tolist()}\n")
    dist.destroy_process_group()


def test_two_processes_choose_as_one(tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    failures.touch()
    mp.spawn(_shard, args=(str(tmp_path / "store"), str(failures)), nprocs=2)
    assert failures.read_text() == ""
