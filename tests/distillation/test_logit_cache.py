from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.distillation import cached_rows as module
from lightning_compress.distillation.cached_rows import CachedRows
from lightning_compress.distillation.logit_cache import LogitCache

CLASSES = 5
ROW = 4 * (16 + CLASSES) + 5  # bytes: signature, logits, checksum, and the mark that the row is complete


def sample_of(key: int) -> Tensor:
    return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(key % 2**32))


def batch(*keys: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(keys), torch.stack([sample_of(key) for key in keys])


def first_values(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)[:, :CLASSES] * 3


class Counting:
    """A teacher that knows how many samples it has seen, and in which order."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        self.seen.extend(inputs)
        return first_values(inputs)


def never(inputs: Tensor) -> Tensor:
    raise AssertionError(f"computes {len(inputs)} samples again")


def ask(cache: LogitCache, *keys: int, compute: Callable[[Tensor], Tensor] = first_values) -> None:
    numbers, inputs = batch(*keys)
    found = cache.logits(numbers, inputs, compute)
    assert torch.equal(found, first_values(inputs))
    assert found.dtype == torch.float32


def test_goes_round_exactly_and_across_objects(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path / "a" / "b"), 3, 0, 2)
    cache = LogitCache(tmp_path / "a" / "b")
    for keys in ((0,), (2, 3), (3, 2, 0)):
        ask(cache, *keys, compute=never)


def test_only_what_is_missing_is_computed_in_order(tmp_path: Path) -> None:
    cache, teacher = LogitCache(tmp_path), Counting()
    ask(cache, 3, 0, 2)
    ask(cache, 1, 3, 5, 0, 4, compute=teacher)
    assert [int(torch.equal(a, sample_of(k))) for a, k in zip(teacher.seen, (1, 5, 4), strict=True)] == [1, 1, 1]


def test_keys_in_several_blocks(tmp_path: Path) -> None:
    keys = (2**16, 0, 3 * 2**16 + 1, 2**16 - 1, 1, 2**33 + 5, 2**48)
    ask(LogitCache(tmp_path), *keys)
    ask(LogitCache(tmp_path), *reversed(keys), compute=never)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"logits-v2-{block}-{CLASSES}.bin" for block in (0, 1, 3, 2**17, 2**32))
    with pytest.raises(AssertionError, match="computes 1 samples again"):
        ask(LogitCache(tmp_path), 5, compute=never)  # 2**33 + 5 is another


def test_blocks_do_not_answer_for_each_other(tmp_path: Path) -> None:
    cache = LogitCache(tmp_path)
    ask(cache, *range(9, 13))
    with pytest.raises(AssertionError, match="computes 2 samples again"):
        ask(cache, 12 * 2**16 + 9, 13, 10, compute=never)


@given(st.lists(st.lists(st.integers(0, 3 * 2**16), min_size=1, max_size=6), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_any_batches(tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("cache")
    for keys in batches:
        ask(LogitCache(folder), *keys)
    ask(LogitCache(folder), *(key for keys in batches for key in keys), compute=never)


def test_files_take_no_room_before_they_are_written(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0, 60_000)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 2**16 * ROW
    assert file.stat().st_blocks * 512 < file.stat().st_size / 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_answers_in_single_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    keys, inputs = batch(1, 2)
    first = LogitCache(tmp_path).logits(keys, inputs, lambda missing: first_values(missing).to(dtype))
    assert torch.equal(first, first_values(inputs).to(dtype).float())
    assert torch.equal(LogitCache(tmp_path).logits(keys, inputs, never), first)


def test_integers_and_numbers_that_are_none(tmp_path: Path) -> None:
    for inputs in (torch.arange(12).view(2, 6), torch.full((2, 6), float("nan"))):
        cache = LogitCache(tmp_path / str(inputs.dtype))
        found = cache.logits(torch.tensor([0, 1]), inputs, lambda x: x.nan_to_num(1.0).float())
        assert torch.equal(cache.logits(torch.tensor([0, 1]), inputs, never), found)


def test_another_sample_under_a_key(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0, 1, 2)
    keys, inputs = batch(2, 1)
    inputs[1, -1, -1, -1] += 0.5
    words = r"holds other samples under these keys: .*\(no mixup\), and another dataset or Keyed\(seed=...\) needs"
    with pytest.raises(ValueError, match=words) as error:
        LogitCache(tmp_path).logits(keys, inputs, never)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_another_number_of_classes(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0, 1)
    keys, inputs = batch(1, 2)
    with pytest.raises(ValueError, match="has 5 classes, the teacher has 4: give another directory"):
        LogitCache(tmp_path).logits(keys, inputs, lambda x: first_values(x)[:, :4])


def test_one_key_twice_in_a_batch(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path / "same"), 4, 4, 1, 4)
    ask(LogitCache(tmp_path / "same"), 1, 1, compute=never)
    keys, inputs = batch(4, 5)
    with pytest.raises(ValueError, match="holds other samples under these keys"):
        LogitCache(tmp_path / "other").logits(keys * 0, inputs, first_values)


def test_negative_keys(tmp_path: Path) -> None:
    _, inputs = batch(4, 5)
    with pytest.raises(ValueError, match="The key -3 is negative: keys of a cache must count from 0"):
        LogitCache(tmp_path).logits(torch.tensor([1, -3]), inputs, first_values)
    assert not list(tmp_path.iterdir())


def table(folder: Path, mode: str = "r+") -> Any:
    (file,) = folder.iterdir()
    return np.memmap(file, module._row(CLASSES, has_checksum=True), mode=mode, shape=(2**16,))


def test_an_incomplete_row_is_computed_again(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0, 1, 2)
    rows = table(tmp_path)
    rows["complete"][1] = 0
    rows["logits"][1], rows["signature"][1] = 7.0, 8.0
    rows.flush()
    teacher = Counting()
    ask(LogitCache(tmp_path), 0, 1, 2, compute=teacher)
    assert len(teacher.seen) == 1
    ask(LogitCache(tmp_path), 0, 1, 2, compute=never)


@pytest.mark.parametrize(
    "left", [0, 1, ROW - 2, ROW - 1, ROW, ROW + 1, 2 * ROW + 64, 3 * ROW - 1, 3 * ROW, 3 * ROW + 1]
)
def test_a_file_that_was_cut_has_lost_no_more_than_that(tmp_path: Path, left: int) -> None:
    ask(LogitCache(tmp_path), 0, 1, 2, 3)
    (file,) = tmp_path.iterdir()
    os.truncate(file, left)
    teacher = Counting()
    ask(LogitCache(tmp_path), 0, 1, 2, 3, compute=teacher)
    assert len(teacher.seen) == 4 - left // ROW
    assert file.stat().st_size == 2**16 * ROW
    ask(LogitCache(tmp_path), 0, 1, 2, 3, compute=never)


def test_a_file_that_another_process_has_made_meanwhile_stays(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0, 1)
    (_,) = tmp_path.iterdir()
    CachedRows.create(tmp_path, 0, CLASSES)
    ask(LogitCache(tmp_path), 0, 1, compute=never)


def test_what_fails_while_it_is_computed_leaves_no_row(tmp_path: Path) -> None:
    cache = LogitCache(tmp_path)
    ask(cache, 0)
    with pytest.raises(AssertionError):
        ask(cache, 0, 1, compute=never)
    ask(cache, 0, 1)


def test_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = "The cache in '.*file/cache' cannot be written .Not a directory.: give another directory"
    with pytest.raises(ValueError, match=words):
        ask(LogitCache(tmp_path / "file" / "cache"), 0)


def test_files_that_may_not_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(LogitCache(tmp_path), 0, 1)
    before, real = table(tmp_path, "r").tobytes(), np.memmap

    def refusing(*args: Any, mode: str, **kwargs: Any) -> Any:
        if mode == "r+":
            raise PermissionError(13, "Permission denied")
        return real(*args, mode=mode, **kwargs)

    monkeypatch.setattr(module.np, "memmap", refusing)
    cache = LogitCache(tmp_path)
    ask(cache, 1, 0, compute=never)
    with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\): give another directory"):
        ask(cache, 0, 2)
    monkeypatch.undo()
    assert table(tmp_path, "r").tobytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\)"):
        ask(LogitCache(folder), 0)


def test_copies_open_the_files_again(tmp_path: Path) -> None:
    cache = LogitCache(tmp_path)
    ask(cache, 0, 1)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert not other._blocks
        ask(other, 1, 0, compute=never)


def big(keys: Tensor) -> Tensor:
    return torch.arange(20.0) + 100 * keys[:, None]


def write(folder: Path, rank: int, meet: Any, computed: Any) -> None:
    def compute(inputs: Tensor) -> Tensor:
        computed[rank] += len(inputs)
        return inputs[:, :CLASSES] * 3

    cache = LogitCache(folder)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(rank)) * 997
    meet.wait()
    for keys in order.split(10):
        assert torch.equal(cache.logits(keys, big(keys), compute), big(keys)[:, :CLASSES] * 3)


def test_two_processes_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    meet, computed = context.Barrier(2), context.Array("i", 2)
    arguments = [(tmp_path / "cache", rank, meet, computed) for rank in (0, 1)]
    writers = [context.Process(target=write, args=each) for each in arguments]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=600)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert 600 <= sum(computed) <= 1200
    keys = torch.arange(600) * 997
    found = LogitCache(tmp_path / "cache").logits(keys, big(keys), never)
    assert torch.equal(found, big(keys)[:, :CLASSES] * 3)
