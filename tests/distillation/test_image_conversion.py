from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from lightning_compress.distillation.image_conversion import Conversion, Normalization

IMAGES = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = Normalization((0.5, 0.5, 0.5), (0.5, 0.25, 0.5))


@pytest.mark.parametrize("size", [None, (10, 12), (20, 24), (5, 7), (3, 30)])
@pytest.mark.parametrize("have", [IMAGENET, HALVES, None])
@pytest.mark.parametrize("want", [IMAGENET, HALVES, None])
def test_as_torchvision_would_have_made_them(
    have: Normalization | None, want: Normalization | None, size: tuple[int, int] | None
) -> None:
    wanted = v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True)(IMAGES) if size else IMAGES
    given_images = v2.Normalize(have.mean, have.std)(IMAGES) if have else IMAGES
    if have and want:
        wanted = v2.Normalize(want.mean, want.std)(wanted)
    elif have:
        wanted = v2.Normalize(have.mean, have.std)(wanted)
    before = given_images.clone()
    found = Conversion(have, want, size)(given_images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(given_images, before)


numbers = st.lists(st.floats(-2, 2), min_size=3, max_size=3)
stds = st.lists(st.floats(0.05, 3), min_size=3, max_size=3)


@given(numbers, stds, numbers, stds)
@settings(max_examples=30, deadline=None)
def test_there_and_back(mean: list[float], std: list[float], other_mean: list[float], other_std: list[float]) -> None:
    a, b = Normalization(mean, std), Normalization(other_mean, other_std)
    images = IMAGES.double()
    torch.testing.assert_close(Conversion(b, a)(Conversion(a, b)(images)), images, rtol=1e-8, atol=1e-8)


def test_nothing_to_do() -> None:
    for conversion in (Conversion(None, IMAGENET), Conversion(IMAGENET, None, (10, 12)), Conversion(HALVES, HALVES)):
        assert conversion(IMAGES) is IMAGES


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    found = Conversion(HALVES, IMAGENET, (7, 9))(IMAGES.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), Conversion(HALVES, IMAGENET, (7, 9))(IMAGES), rtol=0.05, atol=0.05)


def test_one_channel_stands_for_all() -> None:
    gray = Conversion(Normalization((0.5,), (0.5,)), Normalization((0.0,), (1.0,)))
    torch.testing.assert_close(gray(IMAGES), IMAGES * 0.5 + 0.5)
    torch.testing.assert_close(gray(IMAGES[:, :1]), IMAGES[:, :1] * 0.5 + 0.5)


def test_lists_become_tuples_of_numbers() -> None:
    found = Normalization([1, 0], torch.tensor([0.5, 2.0]))
    assert (found.mean, found.std) == ((1.0, 0.0), (0.5, 2.0))
    assert all(type(number) is float for number in (*found.mean, *found.std))
    assert found == Normalization((1.0, 0.0), (0.5, 2.0))


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5, 0.5), (0.5,), r"mean=\(0.5, 0.5\) and std=\(0.5,\) must have one number for each channel"),
        ((0.5, 0.5), (0.5, 0.0), r"std=\(0.5, 0.0\) must be above zero in every channel"),
        ((0.5,), (-1.0,), "above zero"),
        ((0.5,), (float("nan"),), "above zero"),
        ((), (), "above zero"),
    ],
)
def test_what_is_no_normalization(mean: tuple[float, ...], std: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Normalization(mean, std)


def test_channels_must_fit() -> None:
    with pytest.raises(ValueError, match="in 1 channels and the teacher's in 3: give both a Normalization with"):
        Conversion(Normalization((0.5,), (0.5,)), IMAGENET)
    with pytest.raises(ValueError, match=r"Images of 1 channels cannot be normalized with .*0.485.*: give the"):
        Conversion(HALVES, IMAGENET)(IMAGES[:, :1])
