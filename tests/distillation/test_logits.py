"""Losses of logits compute what their functions do."""

from __future__ import annotations

import pytest
import torch

import lightning_compress as lc
from lightning_compress.functional.logit_losses import dist, dkd, kd

LABELS = torch.tensor([0, 2, 1, 0])


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))


def z_scores(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True, correction=0)


@pytest.mark.parametrize("standardize", [False, True])
def test_fields_go_where_they_belong(standardize: bool) -> None:
    student, teacher = logits(0), logits(1)
    a, b = (z_scores(x) if standardize else x for x in (student, teacher))
    torch.testing.assert_close(lc.KD(3.0, standardize)(student, teacher, None), kd(a, b, 3.0))
    torch.testing.assert_close(
        lc.DKD(0.5, 2.0, 3.0, standardize)(student, teacher, LABELS), dkd(a, b, LABELS, 0.5, 2.0, 3.0)
    )
    torch.testing.assert_close(lc.DIST(0.5, 2.0, 3.0, standardize)(student, teacher, None), dist(a, b, 0.5, 2.0, 3.0))


def test_what_either_leaves_out_does_not_count_where_logits_are_standardized() -> None:
    student, teacher = logits(0), logits(1)
    student[:, 3] = teacher[:, 4] = -torch.inf
    loss = lc.KD(standardize=True)
    torch.testing.assert_close(loss(student, teacher, None), loss(student[:, :3], teacher[:, :3], None))


def test_a_weight_is_not_applied() -> None:
    assert torch.equal(lc.KD(weight=7.0)(logits(0), logits(1), None), lc.KD()(logits(0), logits(1), None))


def test_dkd_needs_labels() -> None:
    with pytest.raises(ValueError, match="use KD or DIST"):
        lc.DKD()(logits(0), logits(1), None)
