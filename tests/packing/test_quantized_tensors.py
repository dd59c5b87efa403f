"""Weights of quantization-aware training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.packed_file import PackedFile
from lightning_compress.packing.quantized_tensors import scale_name
from lightning_compress.packing.streams import Stream
from lightning_compress.packing.tensor_decoder import decode_tensor
from lightning_compress.quantization.quantizer import Quantizer

Pack = Callable[..., PackedFile]


def quantized(layer: nn.Module, integers: lc.Int, *, axis: int = 0) -> dict[str, Tensor]:
    """A layer's tensors with its weight as a quantizer rounds it."""
    quantizer = Quantizer("weight", integers.for_weights(), axis=axis, is_weight=True)
    quantizer.attach(layer, quantizer.scale_shape(layer.weight.shape))
    quantizer.observing = 1
    rounded = quantizer(layer, layer.weight.detach())
    assert scale_name("weight") == quantizer.tensor_names[0]
    return {**layer.state_dict(), "weight": rounded.detach()}


def packed_as_integers(file: PackedFile) -> bool:
    return "quantized" in next(t for t in file.tensors if t.name == "weight").encoding


@pytest.mark.parametrize("granularity", ["tensor", "channel", 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_linear(packed: Pack, granularity: object, bits: int, symmetric: bool) -> None:
    torch.manual_seed(0)
    integers = lc.Int(bits, symmetric=symmetric, granularity=granularity)
    file = packed(**quantized(nn.Linear(256, 64), integers))
    weight = next(tensor for tensor in file.tensors if tensor.name == "weight")
    assert weight.bits < bits + 0.5
    assert packed_as_integers(file) or granularity == "tensor"


@pytest.mark.parametrize("observer", [lc.MinMax(), lc.Learned()])
def test_convolution(packed: Pack, observer: object) -> None:
    torch.manual_seed(0)
    assert packed_as_integers(packed(**quantized(nn.Conv2d(16, 64, 3), lc.Int(8, observer=observer))))


def test_transposed_convolution(packed: Pack) -> None:
    torch.manual_seed(0)
    assert packed_as_integers(packed(**quantized(nn.ConvTranspose2d(16, 64, 3), lc.Int(8), axis=1)))


def test_zeros_of_both_signs(packed: Pack) -> None:
    torch.manual_seed(0)
    state = quantized(nn.Linear(256, 64), lc.Int(4))
    assert ((state["weight"] == 0) & state["weight"].signbit()).any()
    assert packed_as_integers(packed(**state))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_nothing_but_zeros(packed: Pack, zero: float) -> None:
    file = packed(weight=torch.full((8, 16), zero), quant_weight_scale=torch.tensor(0.5))
    assert packed_as_integers(file)
    assert file.tensors[0].num_bytes <= 2


def test_pruned_and_quantized(packed: Pack) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 64)
    layer.weight.data[torch.rand(64, 256) < 0.9] = 0.0
    state = quantized(layer, lc.Int(8))
    file = packed(**state)
    assert packed_as_integers(file)
    assert file.tensors[0].bits < 0.47 + 0.1 * 8.2


def test_a_bf16_weight(packed: Pack) -> None:
    torch.manual_seed(0)
    packed(**quantized(nn.Linear(256, 64).bfloat16(), lc.Int(4)))


@pytest.mark.parametrize("scale", [0.0, torch.nan, torch.inf, -0.1])
def test_a_weight_that_is_no_multiple(packed: Pack, scale: float) -> None:
    torch.manual_seed(0)
    file = packed(weight=torch.randn(64, 64), quant_weight_scale=torch.tensor(scale))
    assert not packed_as_integers(file)


def test_a_scale_of_a_learned_quantizer_may_be_negative(packed: Pack) -> None:
    steps = torch.rand(64) + 0.5
    weight = torch.randint(-7, 8, (64, 64)).float() * steps[:, None]
    assert packed_as_integers(packed(weight=weight, quant_weight_scale=-steps))


@pytest.mark.parametrize("dtype", sorted({"int32", "complex64", "float4_e2m1fn_x2"} & {*DTYPES}))
def test_types_that_have_no_scale(packed: Pack, dtype: str) -> None:
    weight = torch.ones(64, dtype=torch.uint8).view(DTYPES[dtype])
    assert not packed_as_integers(packed(weight=weight, quant_weight_scale=torch.tensor(0.5)))
    entry = Entry("weight", dtype, (4,), scale="scale", axis=-1)
    with pytest.raises(ValueError, match=f"a tensor of dtype torch.{dtype} has no scale"):
        decode_tensor(entry, [Stream("raw", bytes(8))], lambda name: torch.tensor(0.5))


def test_one_weight_off_the_grid(packed: Pack) -> None:
    torch.manual_seed(0)
    state = quantized(nn.Linear(64, 64), lc.Int(8))
    state["weight"][3, 5] += 1e-3
    assert not packed_as_integers(packed(**state))
