"""Every bit of every tensor comes back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.packed_file import PackedFile
from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.writer import save_packed
from tests.packing.samples import bits, state

Pack = Callable[..., PackedFile]


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """NaNs with payloads, infinities and subnormal numbers among them."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).reshape(shape)


@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.one_of(
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
        st.sampled_from([(40, 64), (16, 4, 3, 3), (300, 10), (1, 500), (64, 128), (1000,)]),
    ),
    zeros=st.sampled_from([0.0, 0.02, 0.3, 0.7, 0.95, 1.0]),
    num_values=st.sampled_from([1, 2, 3, 16, 100, 10**6]),
    width=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_any_tensor(dtype: str, shape: tuple[int, ...], zeros: float, num_values: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.Size(shape).numel()
    table = random_bits((min(num_values, size) + 1, width), DTYPES[dtype], generator).view(torch.uint8)
    index = torch.randint(len(table), (-(-size // width),), generator=generator)
    raw = table[index].reshape(-1)[: size * DTYPES[dtype].itemsize].reshape(size, DTYPES[dtype].itemsize)
    kept = torch.rand(size, 1, generator=generator) >= zeros
    tensor = (raw * kept).reshape(-1).view(DTYPES[dtype]).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        # By way of bytes: deterministic algorithms, which another test may have asked for, cannot clone every type.
        other = tensor.reshape(-1).view(torch.uint8).clone().view(DTYPES[dtype]).reshape(shape)
        file = save_packed({"t": tensor, "other": other}, Path(folder) / "file")
        assert file.num_bytes == file.path.stat().st_size == sum(item.num_bytes for item in file.items)
        loaded = load_packed(file.path)
    assert [bits(loaded["t"]), bits(loaded["other"])] == [bits(tensor)] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_of_any_type_with_deterministic_algorithms(dtype: str, tmp_path: Path) -> None:
    save_packed({"t": torch.zeros(0, dtype=torch.uint8).view(DTYPES[dtype])}, tmp_path / "file")
    torch.use_deterministic_algorithms(True)
    try:
        assert load_packed(tmp_path / "file")["t"].dtype == DTYPES[dtype]
    finally:
        torch.use_deterministic_algorithms(False)


@given(
    shape=st.sampled_from([(64, 64), (32, 16, 3, 3), (48, 256)]),
    group=st.sampled_from([1, 2, 8]),
    num_values=st.integers(1, 20),
    zeros=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_codebooks_of_channels(shape: tuple[int, ...], group: int, num_values: int, zeros: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(shape[0] // group, num_values, generator=generator)
    size = torch.Size(shape).numel() // len(table)
    index = torch.randint(num_values, (len(table), size), generator=generator)
    weight = table.gather(1, index).masked_fill(torch.rand(index.shape, generator=generator) < zeros, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = save_packed({"w": weight.reshape(shape)}, Path(folder) / "file").path
        assert bits(load_packed(path)["w"]) == bits(weight.reshape(shape))


def test_all_ways_of_packing(packed: Pack) -> None:
    packed(**state())


def test_special_numbers(packed: Pack) -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 3.4e38])
    payloads = torch.tensor([0x7FC00001, 0x7F800001, -0x3FFFFF], dtype=torch.int32).view(torch.float32)
    packed(special, payloads, special.repeat(100), special.double(), special.half(), special.bfloat16())


def test_only_negative_zeros(packed: Pack) -> None:
    packed(torch.full((100, 100), -0.0), torch.zeros(100, 100), torch.tensor([0.0, -0.0] * 500).reshape(10, 100))


def test_strides_conjugates_and_views(packed: Pack) -> None:
    base = torch.randn(8, 6, 4, dtype=torch.complex64)
    packed(base.conj(), base.imag.neg(), base[::2, :, 1], base.permute(2, 0, 1), base.real, torch.ones(1).expand(5, 3))
    packed(base.conj().imag)


def test_nothing_at_all(tmp_path: Path) -> None:
    assert load_packed(save_packed({}, tmp_path / "file").path) == {}


def test_names_of_all_kinds(packed: Pack) -> None:
    packed(**{"": torch.ones(1), 'a"\\b\n': torch.ones(1), "ü.weight": torch.ones(2), "x" * 5000: torch.ones(3)})


@pytest.mark.parametrize("num_values", [2, 255, 256, 257, 3000, 60_000])
def test_codebooks_of_many_sizes(packed: Pack, num_values: int) -> None:
    generator = torch.Generator().manual_seed(num_values)
    table = torch.randn(num_values, generator=generator)
    index = torch.randint(num_values, (400_000,), generator=generator)
    packed(table[index], table[index].masked_fill(index % 3 == 0, 0.0).reshape(400, 1000))


def test_values_that_no_sample_shows(packed: Pack) -> None:
    weight = torch.tensor([0.5, 0.25]).repeat(200_000)
    weight[12345:12349] = torch.tensor([1.0, 2.0, 3.0, torch.nan])
    file = packed(weight.reshape(400, 1000))
    assert "codebook" in file.tensors[0].encoding
