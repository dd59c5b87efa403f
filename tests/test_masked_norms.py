from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.layers import RmsNorm as TimmRmsNorm
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.masked_norms import (
    MaskedNorm,
    attach_norms_,
    check_no_masked_norms,
    detach_complete_,
    find_norms,
    masked_norms,
    set_normalized_shape_,
)

SIZE = 12
KEPT = torch.tensor([0, 1, 4, 5, 8, 10, 11])


class HandwrittenRMSNorm(nn.Module):
    """As in Llama: in float32, whatever the input."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(hidden_states.dtype)


class ChannelsFirst(nn.Module):
    """As in ConvNeXt's first code: the mean and the variance of the channels of each pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(1, keepdim=True)
        x = centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


NORMS: dict[str, tuple[Callable[[int], nn.Module], MaskedNorm]] = {
    "layer_norm": (nn.LayerNorm, MaskedNorm(-1, is_centered=True)),
    "layer_norm_2d": (LayerNorm2d, MaskedNorm(1, is_centered=True)),
    "rms_norm": (nn.RMSNorm, MaskedNorm(-1, is_centered=False)),
    "timm_rms_norm": (TimmRmsNorm, MaskedNorm(-1, is_centered=False)),
    "llama": (HandwrittenRMSNorm, MaskedNorm(-1, is_centered=False)),
    "channels_first": (ChannelsFirst, MaskedNorm(1, is_centered=True)),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def masked_and_narrow(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A norm with masked channels and hooks, one over the other channels, and an input of the first."""
    torch.manual_seed(0)
    make, norm = NORMS[name]
    masked, narrow = make(SIZE), make(len(KEPT))
    x = torch.zeros(2, 3, SIZE)
    x[..., KEPT] = 0.02 * torch.randn(2, 3, len(KEPT)) + 0.01  # small values, for which the epsilon matters
    with torch.no_grad():
        for (_, wide), small in zip(masked.named_parameters(), narrow.parameters(), strict=True):
            small.uniform_(0.5, 1.5)
            wide.zero_()[KEPT] = small
    norm.attach_(masked)
    return masked, narrow, x if norm.dim == -1 else x.movedim(-1, 1).unsqueeze(-1).contiguous()


@every_norm
def test_norms_are_recognized_by_what_they_compute(name: str) -> None:
    make, norm = NORMS[name]
    assert find_norms(nn.Sequential(make(SIZE), nn.ReLU())) == {"0": norm}


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm((8, 8)), nn.GroupNorm(1, 8), nn.BatchNorm1d(8),
        nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Linear(8, 8), nn.Identity(), nn.LayerNorm(1),
    ],
    ids=lambda module: str(module),
)  # fmt: skip
def test_other_modules_are_not(module: nn.Module) -> None:
    assert find_norms(module) == {}


@every_norm
def test_masked_channels_count_for_nothing(name: str) -> None:
    masked, narrow, x = masked_and_narrow(name)
    dim = NORMS[name][1].dim
    output, expected = masked(x), narrow(x.index_select(dim, KEPT))
    torch.testing.assert_close(output.index_select(dim, KEPT), expected, rtol=1e-5, atol=1e-6)
    rest = [i for i in range(SIZE) if i not in KEPT]
    assert not output.index_select(dim, torch.tensor(rest)).any()


@every_norm
def test_gradients_are_those_of_the_narrow_norm(name: str) -> None:
    masked, narrow, x = masked_and_narrow(name)
    dim = NORMS[name][1].dim
    small = x.index_select(dim, KEPT).requires_grad_()
    x.requires_grad_()
    masked(x).index_select(dim, KEPT).sin().sum().backward()
    narrow(small).sin().sum().backward()
    torch.testing.assert_close(x.grad.index_select(dim, KEPT), small.grad, rtol=1e-4, atol=1e-4)
    for wide, one in zip(masked.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(wide.grad[KEPT], one.grad, rtol=1e-4, atol=1e-5)


@every_norm
def test_nothing_changes_where_nothing_is_masked(name: str) -> None:
    make, norm = NORMS[name]
    plain, x = make(SIZE), torch.randn(2, 3, SIZE)
    x = x if norm.dim == -1 else x.movedim(-1, 1).unsqueeze(-1)
    hooked = copy.deepcopy(plain)
    norm.attach_(hooked)
    assert torch.equal(hooked(x), plain(x))
    assert list(hooked.state_dict()) == list(plain.state_dict())
    detach_complete_(hooked)
    assert not hooked._forward_hooks
    assert not hooked._forward_pre_hooks


@every_norm
def test_copies_and_pickles(name: str) -> None:
    masked, _, x = masked_and_narrow(name)
    for copied in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked)), lc.finalize(masked)):
        assert masked_norms(copied) == {"": NORMS[name][1]}
        assert torch.equal(copied(x), masked(x))
        with torch.no_grad():
            copied.weight.fill_(1.0)  # of the copy, not of the original
        assert (masked.weight == 0).any()


@every_norm
def test_all_channels_masked_are_finite(name: str) -> None:
    masked, _, x = masked_and_narrow(name)
    for parameter in masked.parameters():
        nn.init.zeros_(parameter)
    assert not masked(torch.zeros_like(x)).any()


def test_twice_is_once_and_hooks_of_the_user_see_the_output() -> None:
    masked, narrow, x = masked_and_narrow("layer_norm")
    seen: list[Tensor] = []
    masked.register_forward_hook(lambda module, args, output: seen.append(output))
    attach_norms_(masked, {"": NORMS["layer_norm"][1]})
    assert len(masked._forward_hooks) == 2
    masked(x)
    torch.testing.assert_close(seen[0][..., KEPT], narrow(x[..., KEPT]))


def test_an_input_by_name() -> None:
    masked, _, x = masked_and_narrow("llama")
    assert torch.equal(masked(hidden_states=x), masked(x))


def test_compiled_without_a_break() -> None:
    masked, _, x = masked_and_narrow("layer_norm")
    compiled = torch.compile(masked, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), masked(x))


def test_the_precision_is_that_of_the_norm() -> None:
    masked, narrow, x = masked_and_narrow("layer_norm")
    x = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = masked(x)[..., KEPT], narrow(x[..., KEPT])
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=2e-2)


def test_bfloat16_weights() -> None:
    masked, narrow, x = masked_and_narrow("layer_norm")
    output, expected = masked.bfloat16()(x.bfloat16()), narrow.bfloat16()(x[..., KEPT].bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output[..., KEPT], expected, rtol=0.05, atol=0.05)


def test_shapes_of_one_dimension_follow_the_scale() -> None:
    norm, two = nn.LayerNorm(SIZE), nn.LayerNorm((3, SIZE))
    norm.weight = nn.Parameter(torch.ones(5))
    set_normalized_shape_(norm)
    set_normalized_shape_(two)
    assert (norm.normalized_shape, two.normalized_shape) == ((5,), (3, SIZE))


def test_what_reads_weights_alone_says_so(tmp_path: object) -> None:
    model = nn.Sequential(masked_and_narrow("layer_norm")[0], nn.Linear(SIZE, 2))
    check_no_masked_norms(nn.LayerNorm(3), "nobody")
    words = r"1 norms, such as '0', skip masked channels, .*: remove the channels first, with shrink\.$"
    with pytest.raises(ValueError, match=f"save_packed: {words}"):
        lc.save_packed(model, f"{tmp_path}/model.packed")
    with pytest.raises(ValueError, match=f"calibrate: {words}"):
        lc.calibrate(model, [torch.ones(2, 3, SIZE)])


def test_an_exported_program_computes_the_same(tmp_path: object) -> None:
    masked, _, x = masked_and_narrow("layer_norm")
    file = lc.export_program(masked, f"{tmp_path}/model.pt2", x)
    assert file.difference < 1e-5
    torch.testing.assert_close(torch.export.load(file.path).module()(x), masked(x))
