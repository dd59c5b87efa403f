from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.functional.importance import (
    fill_missing_gradients,
    hessian_gradient_product,
    lamp_normalize,
    lamp_scores,
    uniform_noise,
)
from tests.functional.unstable import Unstable


def test_noise_depends_on_the_seed_alone() -> None:
    shape = torch.Size([3, 5])
    torch.manual_seed(0)
    first = uniform_noise(shape, seed=(0, 7, "net.weight"))
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(uniform_noise(shape, seed=(0, 7, "net.weight")), first)
    assert first.min() >= 0
    assert first.max() < 1


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    uniform_noise(torch.Size([4]), seed=(0,))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_differs_with_every_part_of_the_seed() -> None:
    seeds = [(0, 7, "a"), (1, 7, "a"), (0, 8, "a"), (0, 7, "b"), (0, 7, "ab"), (7, 0, "a")]
    draws = {tuple(uniform_noise(torch.Size([4]), seed=seed).tolist()) for seed in seeds}
    assert len(draws) == len(seeds)


def test_noise_is_the_same_for_good() -> None:
    # Masks of a seed are reproduced by later versions: a change here changes users' results.
    noise = uniform_noise(torch.Size([3]), seed=(0, 0, "weight"))
    torch.testing.assert_close(noise, torch.tensor([0.3805, 0.1735, 0.8158]), rtol=0, atol=1e-4)


def test_hessian_gradient_product_of_a_quadratic() -> None:
    # loss = w A w / 2: g = A w, H = A, so H g = A A w.
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    (product,) = hessian_gradient_product(weight @ matrix @ weight / 2, [weight])
    torch.testing.assert_close(product, matrix @ matrix @ weight.detach())


def test_hessian_gradient_product_is_zero_of_a_weight_without_influence() -> None:
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    products = hessian_gradient_product((used**2).sum(), [used, unused])
    assert products[0].tolist() == [4.0, 4.0]
    assert products[1].tolist() == [0.0, 0.0]


def test_hessian_gradient_product_is_zero_where_the_loss_is_linear() -> None:
    curved, straight = (torch.ones(2, requires_grad=True) for _ in range(2))
    products = hessian_gradient_product((curved**2).sum() + 3 * straight.sum(), [curved, straight])
    assert products[1].tolist() == [0.0, 0.0]


def test_hessian_gradient_product_along_a_gradient_of_a_mean() -> None:
    # H g for the mean of two losses is the mean of each H_r g, with g the mean gradient, not of each H_r g_r.
    matrices = [torch.diag(torch.tensor([a, 3.0])) for a in (1.0, 5.0)]
    weight = torch.tensor([1.0, 2.0], requires_grad=True)

    def loss(matrix: torch.Tensor) -> torch.Tensor:
        return weight @ matrix @ weight / 2

    mean = sum(matrices) / 2 @ weight.detach()
    parts = [hessian_gradient_product(loss(matrix), [weight], lambda gradients: [mean])[0] for matrix in matrices]
    (whole,) = hessian_gradient_product((loss(matrices[0]) + loss(matrices[1])) / 2, [weight])
    torch.testing.assert_close(sum(parts) / 2, whole)


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12, unique_by=abs))
@settings(max_examples=60, deadline=None)
def test_lamp_scores_is_a_square_over_the_sum_of_those_no_smaller(values: list[float]) -> None:
    expected = [v * v / sum(u * u for u in values if abs(u) >= abs(v)) if v * v > 1e-300 else 0.0 for v in values]
    torch.testing.assert_close(lamp_scores(torch.tensor(values)), torch.tensor(expected))


def test_lamp_scores_of_zeros_and_of_equals() -> None:
    assert lamp_scores(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(lamp_scores(torch.tensor([2.0, -2.0])), torch.tensor([1.0, 0.5]))


def test_missing_gradients_are_zeros() -> None:
    weights = [torch.ones(2), torch.ones(3)]
    assert [g.tolist() for g in fill_missing_gradients([None, torch.full((3,), 2.0)], weights)] == [[0, 0], [2, 2, 2]]


def test_of_equal_values_the_later_counts_as_the_smaller_on_any_device() -> None:
    values = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64).as_subclass(Unstable)
    assert lamp_normalize(values).tolist() == [0.25, 1.0, 0.2]
