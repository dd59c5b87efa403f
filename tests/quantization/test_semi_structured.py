"""Linear layers on sparse tensor cores: which can be, what is measured, and what is said; on a GPU, all of it."""

from __future__ import annotations

import re
import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

import lightning_compress as lc
from lightning_compress.functional.masks import keep_n_of_m
from lightning_compress.quantization.semi_structured import (
    LayerInput,
    convert_linear_,
    explain_difference,
    explain_slower,
    find_obstacle,
    record_inputs,
    use_semi_structured_,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def sparse_linear(outputs: int = 64, inputs: int = 128, dtype: torch.dtype = torch.float16) -> nn.Linear:
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    layer.weight.masked_fill_(~keep_n_of_m(layer.weight.abs(), n=2, m=4, dim=1), 0.0)
    return layer.to(dtype)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "obstacle"),
    [
        (nn.Linear(128, 64).half(), r"not 2:4 sparse: prune it with lc.NM\(2, 4\)"),
        (sparse_linear(dtype=torch.float32), r"torch.float32: convert the model with model.half\(\)"),
        (sparse_linear(outputs=10), "10 outputs and 128 inputs: the kernel takes multiples of 16 and 16"),
        (sparse_linear(inputs=120), "64 outputs and 120 inputs"),
        (sparse_linear(dtype=torch.bfloat16), r"on the device cpu: move the model with model.cuda\(\)"),
        (nn.utils.parametrizations.weight_norm(sparse_linear()), "a weight of its own"),
        (Scaled(128, 64), "does not compute as nn.Linear"),
    ],
    ids=["dense", "float32", "outputs", "inputs", "device", "weight norm", "subclass"],
)
def test_the_obstacle_is_named(layer: nn.Linear, obstacle: str) -> None:
    assert re.search(obstacle, find_obstacle(layer))


def test_limits_are_those_of_the_backend_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CUTLASS where users switched to it, with larger tiles; torch's own check agrees with ours."""
    layer = sparse_linear(inputs=80)
    assert "on the device cpu" in find_obstacle(layer)
    monkeypatch.setattr(SparseSemiStructuredTensor, "_FORCE_CUTLASS", True)
    assert "multiples of 32 and 64" in find_obstacle(layer)


class Twice(nn.Module):
    """Calls one layer with inputs of two shapes, one of them transposed, and another not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.first(input=x)).sum() + self.first(x[0].T).sum()


def test_inputs_of_layers_are_recorded_with_their_strides() -> None:
    model = Twice()
    found = record_inputs(model, {"first": model.first, "unused": model.unused}, torch.zeros(3, 4, 4))
    batch, transposed = LayerInput((3, 4, 4), (16, 4, 1), torch.float32), LayerInput((4, 4), (1, 4), torch.float32)
    assert found == {"first": Counter({batch: 2, transposed: 1}), "unused": Counter()}
    assert not model.first._forward_pre_hooks
    for form in (batch, transposed, LayerInput((2, 3), (0, 1), torch.float16)):
        x = form.random(torch.device("cpu"))
        assert LayerInput(tuple(x.shape), x.stride(), x.dtype) == form


def test_hooks_are_removed_when_the_model_fails() -> None:
    model = Twice()
    with pytest.raises(RuntimeError):
        record_inputs(model, {"first": model.first}, torch.zeros(3, 4, 5))
    assert not model.first._forward_pre_hooks


def test_the_faster_kernel_is_chosen() -> None:
    assert explain_slower({"dense": 2e-5, "sparse": 1.9e-5}) == ""
    assert explain_slower({"dense": 2e-5, "sparse": 2e-5}) == "is not faster: 20.0 microseconds sparse, 20.0 dense"


def test_rounding_is_no_difference_and_another_output_is() -> None:
    torch.manual_seed(0)
    layer, x = sparse_linear(dtype=torch.bfloat16), torch.randn(256, 128)
    exact = nn.functional.linear(x, layer.weight.float(), layer.bias.float())
    assert explain_difference(layer(x.bfloat16()), exact) == ""
    assert "has another output" in explain_difference(layer(x.flip(0).bfloat16()), exact)
    assert "nan" in explain_difference(torch.full((2,), torch.nan), torch.ones(2))


@needs_no_gpu
def test_without_a_gpu_finalize_says_so() -> None:
    with pytest.raises(ValueError, match="there is no CUDA device; finalize on one"):
        lc.finalize(sparse_linear(), semi_structured=True, example_inputs=torch.zeros(1, 128))


def test_without_any_2_4_layer_there_is_nothing_to_convert() -> None:
    with pytest.raises(ValueError, match=r"no linear layer has a 2:4 sparse weight: train with lc.Pruning\(0.5"):
        use_semi_structured_(nn.Linear(128, 64), torch.zeros(1, 128))


def test_layers_that_stay_dense_are_listed_and_unchanged() -> None:
    model = nn.Sequential(sparse_linear(128), sparse_linear(), nn.Linear(64, 10).half())
    before = [layer.weight for layer in model]
    dense = use_semi_structured_(model, torch.zeros(2, 128).half())
    assert list(dense) == ["0", "1", "2"]
    assert "on the device cpu" in dense["0"]
    assert "not 2:4 sparse" in dense["2"]
    assert all(layer.weight is weight for layer, weight in zip(model, before, strict=True))


@needs_no_gpu
def test_what_torch_does_not_support_leaves_the_layer_dense() -> None:
    layer = sparse_linear()
    form = LayerInput((2, 128), (128, 1), torch.float16)
    assert "is not supported by the kernel (Error original_tensor.device" in convert_linear_(layer, Counter([form]))
    assert not isinstance(layer.weight, SparseSemiStructuredTensor)


@needs_gpu
def test_on_a_gpu_without_example_inputs() -> None:
    with pytest.raises(ValueError, match="example_inputs are needed"):
        lc.finalize(sparse_linear().cuda(), semi_structured=True)


@needs_gpu
def test_on_a_gpu_quantized_models_are_refused() -> None:
    model = lc.calibrate(nn.Sequential(nn.Linear(4, 4)), [torch.ones(1, 4)])
    with pytest.raises(ValueError, match="does not support quantized models"):
        lc.finalize(model, semi_structured=True, example_inputs=torch.ones(1, 4))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_every_layer_is_faster_or_listed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    large, small = sparse_linear(8192, 8192, dtype), sparse_linear(8192, 8192, dtype)
    model = nn.Sequential(large, nn.GELU(), small, nn.Linear(8192, 10).to(dtype)).cuda()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(4096, 8192, dtype=dtype, device="cuda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = lc.finalize(model, semi_structured=True, example_inputs=x)
    said = " ".join(str(each.message) for each in caught)
    assert "'3' has a weight that is not 2:4 sparse" in said
    converted = [name for name, p in fast.named_parameters() if isinstance(p, SparseSemiStructuredTensor)]
    for name in ("0", "2"):
        assert (f"{name}.weight" in converted) != (f"'{name}' " in said), said
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert explain_difference(fast(x), model(x)) == ""
