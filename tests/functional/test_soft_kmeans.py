"""Soft clusters against a plain computation that autograd differentiates, in value, gradient and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import soft_kmeans
from lightning_compress.functional.soft_kmeans import soft_assign


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(
    rows: Tensor, codebooks: Tensor, temperatures: Tensor, masses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As in the paper, one step of attention, all at once; values that nothing attends to stay."""
    squares = (rows.unsqueeze(2) - codebooks.unsqueeze(1)).square()
    attention = (-squares / temperatures.view(-1, 1, 1)).softmax(dim=2)
    counted = attention if masses is None else attention * masses.unsqueeze(2)
    mass = counted.sum(dim=1)
    moved = torch.where(mass > 1e-12, (counted * rows.unsqueeze(2)).sum(dim=1) / mass.clamp(min=1e-12), codebooks)
    return (attention * moved.unsqueeze(1)).sum(dim=2), moved


def case(num_rows: int, columns: int, num_clusters: int, massive: bool) -> tuple[Tensor, ...]:
    rows = normal(num_rows, columns)
    codebooks = normal(num_rows, num_clusters, seed=1).sort(dim=1).values
    temperatures = torch.linspace(0.05, 0.4, num_rows, dtype=torch.float64)
    masses = normal(num_rows, columns, seed=2).square() if massive else None
    return rows, codebooks, temperatures, masses


def assert_as_reference(*arguments: Tensor) -> None:
    rows = arguments[0].clone().requires_grad_()
    others = arguments[0].clone().requires_grad_()
    soft, moved = soft_assign(rows, *arguments[1:])
    expected, moved_expected = reference(others, *arguments[1:])
    torch.testing.assert_close(soft, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moved, moved_expected.detach(), rtol=1e-9, atol=1e-11)
    assert not moved.requires_grad
    into = normal(*rows.shape, seed=3)
    soft.backward(into)
    expected.backward(into)
    torch.testing.assert_close(rows.grad, others.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("massive", [False, True], ids=["plain", "masses"])
@pytest.mark.parametrize("shape", [(1, 50, 4), (3, 17, 2), (5, 8, 16), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("chunk_size", [2**16, 20, 1], ids=["kept", "in parts", "one by one"])
def test_value_and_gradient(
    shape: tuple[int, int, int], massive: bool, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_kmeans, "_CHUNK_SIZE", chunk_size)
    assert_as_reference(*case(*shape, massive))


@given(
    rows=st.lists(st.floats(-2, 2), min_size=1, max_size=8),
    codebook=st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    temperature=st.floats(0.05, 10),
)
@settings(max_examples=60, deadline=None)
def test_any_numbers(rows: list[float], codebook: list[float], temperature: float) -> None:
    arguments = [torch.tensor([values], dtype=torch.float64) for values in (rows, codebook)]
    assert_as_reference(*arguments, torch.tensor([temperature], dtype=torch.float64))


@pytest.mark.parametrize("chunk_size", [2**16, 7])
def test_finite_differences(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_kmeans, "_CHUNK_SIZE", chunk_size)
    rows, codebooks, temperatures, masses = case(2, 9, 3, massive=True)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: soft_assign(r, codebooks, temperatures, masses)[0], rows)


def test_one_cluster_is_the_mean() -> None:
    rows = torch.tensor([[1.0, 2.0, 6.0]], requires_grad=True)
    soft, moved = soft_assign(rows, torch.tensor([[40.0]]), torch.tensor([1.0]))
    assert soft.tolist() == [[3.0, 3.0, 3.0]]
    assert moved.tolist() == [[3.0]]
    soft.sum().backward()
    torch.testing.assert_close(rows.grad, torch.ones(1, 3))


def test_a_low_temperature_gives_the_mean_of_those_that_are_nearest() -> None:
    rows = torch.tensor([[-1.2, -0.8, 0.1, 0.3, 2.0]], requires_grad=True)
    soft, moved = soft_assign(rows, torch.tensor([[-1.0, 0.0, 2.5]]), torch.tensor([1e-4]))
    torch.testing.assert_close(soft, torch.tensor([[-1.0, -1.0, 0.2, 0.2, 2.0]]))
    torch.testing.assert_close(moved, torch.tensor([[-1.0, 0.2, 2.0]]))
    soft.backward(torch.tensor([[1.0, 3.0, 0.0, 4.0, 5.0]]))
    # Then it is the mean gradient of the members.
    torch.testing.assert_close(rows.grad, torch.tensor([[2.0, 2.0, 2.0, 2.0, 5.0]]))


def test_a_high_temperature_gives_one_value_for_all() -> None:
    soft, _ = soft_assign(normal(1, 100), torch.tensor([[-1.0, 1.0]]).double(), torch.tensor([1e8]).double())
    assert float(soft.std()) < 1e-6


def test_masses_count_where_values_move() -> None:
    rows, masses = torch.tensor([[-1.2, -0.8, 5.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    soft, moved = soft_assign(rows, torch.tensor([[-1.0, 4.0]]), torch.tensor([1e-3]), masses)
    torch.testing.assert_close(moved, torch.tensor([[-1.1, 4.0]]))  # to the second nothing counts
    torch.testing.assert_close(soft, torch.tensor([[-1.1, -1.1, 4.0]]))


def test_a_value_that_nothing_attends_to_stays() -> None:
    rows = torch.tensor([[0.1, 0.2]], requires_grad=True)
    soft, moved = soft_assign(rows, torch.tensor([[0.0, 900.0]]), torch.tensor([0.01]))
    torch.testing.assert_close(moved, torch.tensor([[0.15, 900.0]]))
    soft.sum().backward()
    assert rows.grad.isfinite().all()


def test_numbers_without_mass_do_not_pull_at_values_that_stay() -> None:
    rows = torch.tensor([[-1.2, -0.8, 5.0]], requires_grad=True)
    masses = torch.tensor([[1.0, 1.0, 0.0]])
    soft, _ = soft_assign(rows, torch.tensor([[-1.0, 4.0]]), torch.tensor([1e-3]), masses)
    soft.sum().backward()
    torch.testing.assert_close(rows.grad, torch.tensor([[1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e4])
def test_the_scale_of_the_numbers_does_not_matter(scale: float) -> None:
    rows, codebooks, temperatures, _ = case(2, 30, 4, massive=False)
    plain, moved = soft_assign(rows.float(), codebooks.float(), temperatures.float())
    scaled, moved_scaled = soft_assign(
        scale * rows.float(), scale * codebooks.float(), scale * scale * temperatures.float()
    )
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved_scaled / scale, moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk_size", [2**16, 20])
def test_autocast_changes_nothing(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_kmeans, "_CHUNK_SIZE", chunk_size)
    arguments = [t.float() for t in case(3, 40, 8, massive=True)]
    results = []
    for enabled in (False, True):
        rows = arguments[0].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            soft, moved = soft_assign(rows, *arguments[1:])
            soft.square().sum().backward()
        assert soft.dtype == torch.float32
        results.append((soft.detach(), moved, rows.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_codebooks_and_temperatures_get_no_gradient() -> None:
    rows, codebooks, temperatures, masses = (t.requires_grad_() for t in case(2, 9, 3, massive=True))
    soft_assign(rows, codebooks, temperatures, masses)[0].sum().backward()
    assert rows.grad is not None
    assert codebooks.grad is None
    assert temperatures.grad is None
    assert masses.grad is None


def test_without_gradients() -> None:
    rows, codebooks, temperatures, _ = case(2, 9, 3, massive=False)
    with torch.no_grad():
        soft, _ = soft_assign(rows.requires_grad_(), codebooks, temperatures)
    assert not soft.requires_grad


def test_arguments_are_not_modified() -> None:
    arguments = case(3, 40, 8, massive=True)
    copies = [t.clone() for t in arguments]
    rows = arguments[0].requires_grad_()
    soft_assign(*arguments)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))
    assert torch.equal(rows, copies[0])


PEAK = """
import re, sys
from pathlib import Path
import torch
from lightning_compress.functional.soft_kmeans import soft_assign

torch.set_num_threads(1)

def megabytes():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def step(columns, massive):
    rows = torch.randn(1, columns, requires_grad=True)
    gradient = torch.ones(1, columns)
    masses = torch.ones(1, columns) if massive else None
    codebooks = torch.linspace(-2, 2, 16)[None]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present set
    before = megabytes()
    soft, _ = soft_assign(rows, codebooks, torch.tensor([0.01]), masses)
    soft.backward(gradient)
    return megabytes() - before

step(200_000, False)  # loads what a first step loads
print(step(5_000_000, sys.argv[1] == "masses"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("massive", ["plain", "masses"])
def test_long_rows_need_little_memory(massive: str) -> None:
    result = subprocess.run([sys.executable, "-c", PEAK, massive], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    row = 5_000_000 * 4 / 2**20
    # The output and the gradient of the row take 2 rows; all that is beyond them stays below 2 rows.
    assert float(result.stdout) < (2 + 2) * row
    assert float(result.stdout) > 1.5 * row, "the measurement sees nothing"


def gradient_in(dtype: torch.dtype, rows: Tensor, codebooks: Tensor, temperature: float) -> Tensor:
    given = rows.to(dtype, copy=True).requires_grad_()
    soft, _ = soft_assign(given, codebooks.to(dtype), torch.full((len(rows),), temperature, dtype=dtype))
    soft.backward(normal(*rows.shape, seed=3).to(dtype))
    return given.grad.double()


@pytest.mark.parametrize("temperature", [1e-3, 1e-7, 1e-13])
def test_sharp_attention_keeps_the_digits_of_float32(temperature: float) -> None:
    # Far from zero, and representable in float32, so that both dtypes compute with the same numbers.
    rows, codebooks = (5 + normal(1, 400).float() / 10).double(), torch.linspace(4.7, 5.3, 64).double().view(1, -1)
    expected = gradient_in(torch.float64, rows, codebooks, temperature)
    error = gradient_in(torch.float32, rows, codebooks, temperature) - expected
    assert float(error.norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1e-9, 2e-23])
@pytest.mark.parametrize("num_clusters", [1, 4, 15])
def test_values_and_centers_that_are_equal(num_clusters: int, temperature: float) -> None:
    rows = torch.tensor([[0.3, 0.3, 0.3, 0.3, 0.3], [-0.7, 0.3, 0.3, -0.7, 0.3]])
    codebooks = torch.tensor([[0.3], [-0.7]]).repeat(1, num_clusters)
    codebooks[1, num_clusters // 2 :] = 0.3
    gradient = gradient_in(torch.float32, rows, codebooks, temperature)
    assert gradient.isfinite().all()
    assert gradient.norm() < 10  # as large as that of the soft values
    torch.testing.assert_close(gradient[0], gradient[0, :1].expand(5))
