"""Files that hold only the differences to another file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_compress as lc
from lightning_compress.packing.base_differences import DIFFERENCE, UNCHANGED
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.encodings import DELTAS
from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.streams import Stream
from tests.packing.hostile import as_version_2, index_of, kinds_in
from tests.packing.samples import FEW, Random, bits, state

STORED_BASE, STORED_DELTA = (Path(__file__).with_name(f"format_version_3{end}.bin") for end in ("", "_delta"))


def network(num_clusters: int | None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (32, 32, 3, 3), "b": (64, 32, 3, 3), "c": (64, 64, 3, 3), "d": (10, 64)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if num_clusters is not None:
        tensors = {name: (weight / 4 * num_clusters).round() * 0.037 for name, weight in tensors.items()}
    return tensors | {"d.bias": torch.randn(10, generator=generator), "count": torch.tensor(3)}


def saved(tensors: dict[str, Tensor], path: Path, **more: Any) -> Path:
    return lc.save_packed(tensors, path, **more).path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return {n: bits(t) for n, t in found.items()} == {n: bits(t) for n, t in expected.items()}


def fine_tuned(weight: Tensor) -> Tensor:
    """Weights after some small steps."""
    return weight + 1e-3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


def reassigned(weight: Tensor) -> Tensor:
    """Clusters with other centroids, and a twentieth of the weights in the next cluster."""
    moved = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    return (weight + 0.037 * moved) * 1.01


@pytest.mark.parametrize(
    ("num_clusters", "name", "change"),
    [(None, "d.weight", fine_tuned), (16, "d.weight", reassigned), (16, "b.weight", reassigned)],
)
def test_one_changed_layer_takes_a_tenth(
    num_clusters: int | None, name: str, change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    before = network(num_clusters)
    after = before | {name: change(before[name])}
    base = saved(before, tmp_path / "base")
    delta = saved(after, tmp_path / "delta", base=base)
    assert delta.stat().st_size < 0.1 * base.stat().st_size
    assert same(lc.load_packed(delta, base=base), after)


def test_small_differences_take_half_of_the_bytes(tmp_path: Path) -> None:
    before = network(None)
    after = {name: fine_tuned(t) if t.is_floating_point() else t for name, t in before.items()}
    base = saved(before, tmp_path / "base")
    delta = saved(after, tmp_path / "delta", base=base)
    assert delta.stat().st_size < 0.75 * base.stat().st_size
    assert same(lc.load_packed(delta, base=base), after)


def before_and_after() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors that changed in such ways that every encoding is used of what changed."""
    after = state() | {"fine-tuned": fine_tuned(torch.ones(50, 50)), "rebased": torch.ones(64, 64)}
    before = {n: t.roll(1) if t.ndim else t for n, t in state().items()}
    before |= {"sparse": after["sparse"], "fine-tuned": torch.ones(50, 50), "rebased": torch.zeros(64, 64)}
    after["rebased"][:5] = before["rebased"][:5] = 2.0
    before["moved"] = FEW[Random().index(4, 64, 64)]
    after["moved"] = torch.where(torch.arange(64) % 16 == 0, before["moved"].roll(1), 1.01 * before["moved"])
    return before, after


def test_every_encoding_comes_back_against_a_base(tmp_path: Path) -> None:
    before, after = before_and_after()
    base = saved(before, tmp_path / "base")
    delta = saved(after, tmp_path / "delta", base=base)
    assert same(lc.load_packed(delta, base=base), after)
    assert {encoding.kind for encoding in DELTAS} <= kinds_in(delta.read_bytes())


def test_stored_files_can_be_read() -> None:
    """Those of ``before_and_after``; the reader verifies every bit, and what it understands must stay the same."""
    assert set(load_packed(STORED_BASE)) == set(before_and_after()[0])
    delta = load_packed(STORED_DELTA, base=STORED_BASE)
    assert set(delta) == set(before_and_after()[1])
    assert {encoding.kind for encoding in DELTAS} <= kinds_in(STORED_DELTA.read_bytes())


def test_values_of_sixteen_bytes_have_no_differences(tmp_path: Path) -> None:
    wide = torch.complex(Random().normal(40), Random().normal(40)).to(torch.complex128)
    before = {"wide": wide, "same": torch.ones(40) * 1j}
    after = before | {"wide": before["wide"] * (1 + 1e-12)}
    base = saved(before, tmp_path / "base")
    assert same(lc.load_packed(saved(after, tmp_path / "delta", base=base), base=base), after)


@pytest.mark.parametrize(
    ("encoding", "stream", "context", "message"),
    [
        (UNCHANGED, Stream("unchanged", b"1"), {}, "must be empty"),
        (UNCHANGED, Stream("unchanged", b"", (1,)), {}, "parameters"),
        (DIFFERENCE, Stream("difference", b"", (1,)), {}, "parameters"),
        (DIFFERENCE, Stream("difference", b""), {"base": np.zeros((4, 2), np.int64)}, "have no differences"),
        (UNCHANGED, Stream("unchanged", b""), {"base": None}, "a tensor that the base does not have"),
        (UNCHANGED, Stream("unchanged", b""), {"count": 3}, "a tensor that the base does not have"),
        (UNCHANGED, Stream("unchanged", b""), {"nonzero": np.ones(4, bool)}, "a tensor that the base does not have"),
    ],
)
def test_streams_that_do_not_fit_the_base(
    encoding: ValueEncoding, stream: Stream, context: dict[str, Any], message: str
) -> None:
    like = np.zeros(4, np.int32)
    sound = ReadContext(like[:1], 4, None, (4,), like)
    assert np.array_equal(UNCHANGED.read(Stream("unchanged", b""), iter(()), sound), like)
    with pytest.raises(ValueError, match=message):
        encoding.read(stream, iter(()), replace(sound, **context))


def test_tensors_that_the_base_lacks_or_has_in_another_shape(tmp_path: Path) -> None:
    base = saved({"a": torch.ones(5), "b": torch.ones(5), "e": torch.zeros(0)}, tmp_path / "base")
    after = {"a": torch.ones(6), "b": torch.ones(5, dtype=torch.int32), "c": torch.ones(5), "e": torch.zeros(0)}
    delta = saved(after, tmp_path / "delta", base=base)
    assert same(lc.load_packed(delta, base=base), after)


def test_an_unchanged_model_is_an_index(tmp_path: Path) -> None:
    base = saved(state(), tmp_path / "base")
    file = lc.save_packed(state(), tmp_path / "delta", base=base, half=("codebooks",))
    assert file.num_bytes == index_of(file.path.read_bytes()).begin
    assert {tensor.encoding for tensor in file.tensors} == {"as in the base"}
    loaded = lc.load_packed(file.path, base=base)
    assert same(loaded, state())


def test_the_base_may_be_of_an_older_version(tmp_path: Path) -> None:
    base = saved(network(16), tmp_path / "base")
    delta = saved(network(16) | {"count": torch.tensor(4)}, tmp_path / "delta", base=base)
    base.write_bytes(as_version_2(base.read_bytes()))
    assert int(lc.load_packed(delta, base=base)["count"]) == 4


def test_a_base_that_is_missing_or_another_one(tmp_path: Path) -> None:
    base, other = saved(network(16), tmp_path / "base"), saved(network(8), tmp_path / "other")
    delta = saved(network(16), tmp_path / "delta", base=base)
    with pytest.raises(ValueError, match=r"delta: it holds only the differences to another file; pass that file as ba"):
        lc.load_packed(delta)
    with pytest.raises(ValueError, match=r"differences to another file than .*other; pass the one that it was"):
        lc.load_packed(delta, base=other)
    with pytest.raises(ValueError, match=r"base: it was saved without a base; load it without base=\."):
        lc.load_packed(base, base=other)
    with pytest.raises(ValueError, match=r"delta: it holds only the differences to another file, which is the base"):
        saved(network(16), tmp_path / "second", base=delta)
    assert not (tmp_path / "second").exists()
    with pytest.raises(ValueError, match="base would replace its own base"):
        saved(network(8), base, base=tmp_path / "." / "base")
    assert same(lc.load_packed(base), network(16))


def test_a_flipped_bit_of_a_delta_is_seen(tmp_path: Path) -> None:
    before = network(16)
    base = saved(before, tmp_path / "base")
    after = before | {"d.weight": reassigned(before["d.weight"]), "d.bias": fine_tuned(before["d.bias"])}
    sound = saved(after, tmp_path / "delta", base=base).read_bytes()
    for place in range(0, 8 * len(sound), 7):
        changed = bytearray(sound)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = lc.load_packed(tmp_path / "changed", base=base)
        except ValueError:
            continue
        assert same(found, after), place
