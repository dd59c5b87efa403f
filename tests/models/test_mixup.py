"""Mixup and CutMix of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_compress.models.mixup import Mixup

MIXUP = Mixup(mixup_alpha=0.5, cutmix_alpha=0.0)
CUTMIX = Mixup(mixup_alpha=0.0)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    """Images whose pixels all have the image's number, and a class for each image."""
    return torch.arange(size).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous(), torch.arange(size) % 4


@pytest.mark.parametrize("spec", [MIXUP, CUTMIX])
def test_targets_say_how_much_of_each_image_there_is(spec: Mixup) -> None:
    images, labels = batch()
    before = images.clone(), labels.clone()
    for seed in range(8):
        mixed, targets = spec.mix(images, labels, 4, seed=[seed])
        assert mixed.shape == images.shape
        first, last = mixed[0, 0], mixed[-1, 0]  # of 0s and 5s
        share = last.mean() / 5
        assert torch.allclose(
            targets[0],
            (1 - first.mean() / 5) * one_hot(labels[0], 4) + first.mean() / 5 * one_hot(labels[-1], 4),
            atol=1e-5,
        )
        assert targets[-1, labels[-1]] == pytest.approx(share.item(), abs=1e-5)
        assert targets.shape == (6, 4)
        assert targets.dtype == torch.float32
        assert torch.allclose(targets.sum(1), torch.ones(6))
        # CutMix moves whole pixels.
        assert (len(first.unique()) == 1) == (spec is MIXUP) or share in (0, 1)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_the_seed_alone_decides() -> None:
    images, labels = batch()
    spec = MIXUP  # whose weight is no small fraction of pixels
    torch.manual_seed(0)
    np.random.seed(0)
    first = spec.mix(images, labels, 4, seed=[1, 2])
    state, rng = np.random.get_state()[1].copy(), torch.get_rng_state()
    again = spec.mix(images, labels, 4, seed=[1, 2])
    assert all(map(torch.equal, first, again))
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), rng)
    for other in ([1, 3], [2, 1], [1, 2, 0]):
        assert not torch.equal(spec.mix(images, labels, 4, seed=other)[1], first[1])
    with pytest.raises(IndexError):
        CUTMIX.mix(images[:, 0], labels, 4, seed=[0])
    assert (np.random.get_state()[1] == state).all()


def test_both_kinds_take_turns() -> None:
    images, labels = batch()

    def num_boxes(spec: Mixup) -> int:
        return sum(len(spec.mix(images, labels, 4, seed=[s])[0][0].unique()) == 2 for s in range(60))

    assert num_boxes(Mixup(switch_prob=0.0)) == 0
    assert 8 < num_boxes(Mixup()) < num_boxes(Mixup(switch_prob=1.0))


def test_some_batches_stay() -> None:
    images, labels = batch()
    mixed = [not torch.equal(Mixup(0.5, 0.0, prob=0.5).mix(images, labels, 4, seed=[s])[0], images) for s in range(40)]
    assert 10 < sum(mixed) < 30
    same, targets = Mixup(prob=0.0).mix(images, labels, 4, seed=[0])
    assert torch.equal(same, images)
    assert torch.equal(targets, one_hot(labels, 4).float())


@pytest.mark.parametrize("size", [1, 5])
def test_the_odd_one_stays_as_it_is(size: int) -> None:
    images, labels = batch(size)
    mixed, targets = MIXUP.mix(images, labels, 4, label_smoothing=0.2, seed=[0])
    assert torch.equal(mixed[-1], images[-1])
    assert torch.allclose(targets[-1], 0.8 * one_hot(labels[-1], 4) + 0.05)
    assert torch.equal(mixed[0], images[0]) == (size == 1)


def test_smoothing_is_that_of_cross_entropy() -> None:
    images, labels = batch()
    logits = torch.randn(6, 4)
    _, targets = Mixup(prob=0.0).mix(images, labels, 4, label_smoothing=0.1, seed=[0])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.nn.functional.cross_entropy(logits, targets).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mixup_alpha": -1.0}, "mixup_alpha=-1.0"),
        ({"cutmix_alpha": -0.1}, "cutmix_alpha=-0.1"),
        ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, "at least one"),
        ({"prob": 1.5}, r"prob=1.5\) must lie in \[0, 1\]"),
        ({"switch_prob": -0.5}, "switch_prob=-0.5"),
    ],
)
def test_wrong_arguments(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mixup(**arguments)
