from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.layer_kinds import find_input_dim, find_norm_hook, is_conv1d


class Conv1D(nn.Module):
    """The form of GPT-2's layer in transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Stored(nn.Module):
    def __init__(self, rows: int, columns: int, *, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.T if self.transposed else self.weight) + 1


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T @ self.up.T


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(4, 8), 1),
        (nn.ConvTranspose2d(4, 8, 3), 0),
        (nn.Embedding(4, 8), 1),
        (Conv1D(8, 4), 0),
        (Stored(4, 8, transposed=False), 0),
        (Stored(4, 8, transposed=True), 1),
        (Stored(4, 4, transposed=False), 0),
        (Stored(4, 4, transposed=True), 1),
        (LowRank(), None),
    ],
)
def test_input_dim(layer: nn.Module, expected: int | None) -> None:
    before = layer.weight.clone()
    assert find_input_dim(layer, "weight") == expected
    assert torch.equal(layer.weight, before)


def test_conv1d_is_recognized_by_its_form() -> None:
    assert is_conv1d(Conv1D(8, 4))
    assert not is_conv1d(nn.Conv1d(4, 8, 1))
    assert not is_conv1d(Stored(4, 8, transposed=False))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_norms_in_hooks(norm: str) -> None:
    apply = getattr(torch.nn.utils, norm)
    for layer, name in ((nn.Linear(4, 8), "weight"), (nn.LSTM(4, 8), "weight_hh_l0")):
        apply(layer, name)
        changed = [n for n, _ in layer.named_parameters() if n.startswith(f"{name}_")]
        assert {find_norm_hook(layer, n) for n in changed} == {norm}
    assert find_norm_hook(layer, "weight_ih_l0") == ""
