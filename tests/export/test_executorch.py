"""ExecuTorch files: one part for XNNPACK, its kernels right place by place; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, plain
from tests.quantization.nets import Classified

pytest.importorskip("executorch")

from lightning_compress.export import executorch

SOME = ("residual", "four_bits", "dense", "shuffled", "depthwise", "conv1d", "tokens", "named")


@pytest.mark.parametrize("name", SOME)
def test_xnnpack_computes_all_of_it_and_rightly(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    model = subject.quantized()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = lc.export_executorch(model, tmp_path / "model.pte", subject.batch(2))
    assert_same({**model.state_dict()}, before)
    # XNNPACK takes no splits.
    expected = (2, ("split_with_sizes_copy",)) if name == "shuffled" else (1, ())
    assert (file.num_delegates, file.undelegated) == expected
    assert file.steps is not None
    assert max(file.steps.values()) <= 1
    assert file.difference < (0.3 if subject.numbers else 0.03)
    assert file.num_bytes == file.path.stat().st_size
    assert file.latency > 0
    assert 0 <= file.top1_agreement <= 1


def test_layouts_of_activations_and_inputs_do_not_matter(tmp_path: Path) -> None:
    """Attention returns transposed values, which a program would take in that layout alone."""
    torch.manual_seed(0)
    tokens = torch.randn(2, 8, 4).transpose(1, 2)
    file = lc.export_executorch(lc.calibrate(Classified(), [tokens]), tmp_path / "model.pte", tokens)
    assert file.steps is not None
    assert max(file.steps.values()) <= 1
    assert file.difference < 0.03


def test_floats(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_executorch(lc.float_copy(subject.quantized()), tmp_path / "model.pte", subject.batch(2))
    assert (file.steps, file.num_delegates, file.top1_agreement) == (None, 1, 1.0)
    assert file.difference < 1e-5


def test_garbage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What XNNPACK makes of a flattening that is on no grid."""
    monkeypatch.setattr(executorch.ExecutorchOperators, "not_propagated", frozenset())
    model = plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))()
    quantized = lc.calibrate(model, [torch.randn(4, 3, 8, 8)])
    with pytest.raises(
        ValueError, match=r"differs from the model in 1 of 4 activations, most in '4\.linear' by \d+ LSB: exclude"
    ):
        lc.export_executorch(quantized, tmp_path / "model.pte", torch.randn(2, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_layer_that_stays_outside_is_named(tmp_path: Path) -> None:
    images = torch.randn(4, 2, 4, 4)
    quantized = lc.calibrate(nn.Sequential(nn.ConvTranspose2d(2, 4, 3, groups=2), nn.ReLU()), [images])
    with pytest.raises(ValueError, match=r"XNNPACK does not support '0' \(.*computed in FP32"):
        lc.export_executorch(quantized, tmp_path / "model.pte", images[:2])


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    quantized = lc.calibrate(nn.Sequential(nn.Linear(4, 4)), [torch.randn(4, 4)], activations=None)
    with pytest.raises(ValueError, match="'0' has quantized weights and an FP32 input"):
        lc.export_executorch(quantized, tmp_path / "model.pte", torch.randn(2, 4))


def test_what_there_is_no_kernel_for_is_one_sentence(tmp_path: Path) -> None:
    class Values(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svdvals(x[..., None].expand(-1, -1, 2))

    with pytest.raises(
        ValueError, match=r"no kernel for one of .*'1\._linalg_svd'.*: replace it by supported operators"
    ):
        lc.export_executorch(nn.Sequential(nn.Linear(4, 4), Values()), tmp_path / "model.pte", torch.rand(2, 4))


class Soft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.fc(x))


def test_convolutions_of_three_dimensions_are_refused(tmp_path: Path) -> None:
    volumes, model = (
        torch.randn(4, 3, 5, 5, 5),
        nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.ConvTranspose3d(4, 2, 1)),
    )
    for each in (model.eval(), lc.calibrate(model, [volumes])):
        with pytest.raises(
            ValueError, match=r"ExecuTorch has no kernel for '0.conv3d', '2.conv_transpose3d': use export"
        ):
            lc.export_executorch(each, tmp_path / "model.pte", volumes)


def test_what_stays_outside_is_listed(tmp_path: Path) -> None:
    file = lc.export_executorch(lc.calibrate(Soft(), [torch.randn(4, 4)]), tmp_path / "model.pte", torch.randn(2, 4))
    assert file.undelegated
    assert file.unquantized_ops == ("softplus",)
