from __future__ import annotations

import pytest
import torch
from torch import Tensor

import lightning_compress as lc
from lightning_compress.quantization.observers import Observer

OBSERVERS: list[Observer] = [
    lc.MinMax(), lc.MovingAverage(), lc.Percentile(), lc.MSE(), lc.Histogram(), lc.Learned(),
]  # fmt: skip
every_observer = pytest.mark.parametrize("observer", OBSERVERS, ids=lambda observer: type(observer).__name__)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compute_range(
    observer: Observer, *batches: Tensor, levels: int = 256, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the range after several batches."""
    statistics = None
    for rows in batches:
        statistics = observer.accumulate(statistics, observer.observe(rows))
    assert statistics is not None
    return observer.compute_range(statistics, num_levels=levels, symmetric=symmetric)


def test_minimum_and_maximum_of_all_batches() -> None:
    quant_min, quant_max = compute_range(
        lc.MinMax(), torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.5, 3.0]]), torch.tensor([[-0.5, 0.0]])
    )
    assert (quant_min.item(), quant_max.item()) == (-1.0, 3.0)


def test_a_moving_average_of_ranges() -> None:
    first, wide, narrow = (torch.tensor([[-x, x]]) for x in (1.0, 3.0, 0.5))
    observer = lc.MovingAverage(momentum=0.25)
    assert [end.item() for end in compute_range(observer, first)] == [-1, 1]
    assert [end.item() for end in compute_range(observer, first, wide)] == [-1.5, 1.5]
    assert [end.item() for end in compute_range(observer, first, wide, narrow)] == [-1.25, 1.25]


@pytest.mark.parametrize("momentum", [0, -0.1, 1.1, float("nan")])
def test_invalid_momenta(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        lc.MovingAverage(momentum)


@pytest.mark.parametrize("percentile", [50, 0, 101, float("nan")])
def test_invalid_percentiles(percentile: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(50, 100\]"):
        lc.Percentile(percentile)


@pytest.mark.parametrize(
    "observer", [lc.MinMax(), lc.Percentile(), lc.MSE(), lc.Histogram()], ids=lambda o: type(o).__name__
)
def test_ranges_do_not_depend_on_order_and_division_of_batches(observer: Observer) -> None:
    rows = normal(2, 600) * torch.tensor([[1.0], [0.01]])
    whole = compute_range(observer, rows)
    parts = list(rows.split([100, 300, 200], dim=1))
    for batches in (parts, parts[::-1]):
        for mine, reference in zip(compute_range(observer, *batches), whole, strict=True):
            assert torch.equal(mine, reference)


@every_observer
@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_lie_within_minimum_and_maximum(observer: Observer, symmetric: bool) -> None:
    rows = normal(3, 2000) * torch.tensor([[1.0], [5.0], [0.001]])
    quant_min, quant_max = compute_range(observer, rows, levels=15, symmetric=symmetric)
    largest = rows.abs().amax(dim=1) * 1.001
    assert (quant_min < 0).all()
    assert (quant_max > 0).all()
    assert (-quant_min <= largest).all()
    assert (quant_max <= largest).all()


@every_observer
@pytest.mark.parametrize("value", [0.0, 2.0, -1e-20])
def test_constants(observer: Observer, value: float) -> None:
    for end in compute_range(observer, torch.full((2, 9), value)):
        assert torch.isfinite(end).all()


@pytest.mark.parametrize(
    ("observer", "clips"), [(lc.MinMax(), False), (lc.Percentile(99.0), True), (lc.MSE(), True), (lc.Histogram(), True)]
)
def test_an_outlier_is_clipped_or_not(observer: Observer, clips: bool) -> None:
    rows = normal(1, 20_000)
    rows[0, 0] = 100.0
    _, quant_max = compute_range(observer, rows, levels=16)
    assert (quant_max < 40) == clips
    assert quant_max > 2


def test_fewer_bits_clip_more() -> None:
    rows = normal(1, 20_000)
    ends = [compute_range(lc.MSE(), rows, levels=2**bits - 1, symmetric=True)[1].item() for bits in (2, 4, 8)]
    assert ends == sorted(ends)
    # Steps of the best uniform quantizers of a normal distribution with 3 and 15 levels, Max 1960: 1.224 and 0.3499.
    assert ends[0] == pytest.approx(1.224, abs=0.05)
    assert ends[1] == pytest.approx(7 * 0.3499, abs=0.1)
