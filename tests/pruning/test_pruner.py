from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.distributions import ERK, Distribution, Uniform
from lightning_compress.pruning.growth import SET, Growth, RigL
from lightning_compress.pruning.patterns import Block, Unstructured, WeightPattern
from lightning_compress.pruning.probe_scores import Probe, ProbeScore
from lightning_compress.pruning.pruner import WeightPruner
from lightning_compress.pruning.ranking_groups import make_ranking_groups
from lightning_compress.pruning.scores import Magnitude, Movement, Random, Score, Taylor

SHAPES = [(8, 6), (4, 8), (12, 4)]


def make(
    sparsity: float = 0.75,
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    pattern: WeightPattern = Unstructured(),
    score: Score = Magnitude(),
    growth: Growth | None = None,
    distribution: Distribution | None = None,
    seed: int = 0,
) -> tuple[MaskConstraint, WeightPruner]:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        Layer(f"{i}.weight", nn.Parameter(torch.randn(shape, generator=generator))) for i, shape in enumerate(shapes)
    ]
    constraint = MaskConstraint(layers)
    ranking_groups = make_ranking_groups(layers, sparsity, distribution)
    return constraint, WeightPruner(constraint, ranking_groups, score, pattern=pattern, growth=growth)


def num_pruned(constraint: MaskConstraint) -> int:
    return sum(int(zeros.sum()) for zeros in constraint.zeros)


def num_zeros(constraint: MaskConstraint) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in constraint.layers)


def test_the_smallest_weights_of_all_layers_go() -> None:
    constraint, pruner = make(0.5)
    before = torch.cat([layer.weight.flatten() for layer in constraint.layers])
    pruner.update(lambda target: target, step=0)
    after = torch.cat([layer.weight.flatten() for layer in constraint.layers])
    assert num_zeros(constraint) == num_pruned(constraint) == 64
    assert torch.equal(after != 0, before.abs() > before.abs().sort().values[63])
    assert torch.equal(after[after != 0], before[after != 0])


@given(
    steps=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    sparsity=st.floats(0, 0.95),
    distribution=st.sampled_from([None, Uniform(), ERK()]),
    score=st.sampled_from([Magnitude(), Random()]),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_masks_only_grow_and_every_sparsity_is_exact(
    steps: list[float], sparsity: float, distribution: Distribution | None, score: Score, seed: int
) -> None:
    constraint, pruner = make(sparsity, distribution=distribution, score=score, seed=seed)
    old = constraint.masks
    for step, part in enumerate(sorted(steps)):
        pruner.update(lambda target, part=part: target * part, step=step)
        assert all((new & ~was).sum() == 0 for new, was in zip(constraint.masks, old, strict=True))
        expected = [round(group.num_weights * group.sparsity * part) for group in pruner.ranking_groups]
        pruned = [sum(int((~constraint.masks[i]).sum()) for i in group.layers) for group in pruner.ranking_groups]
        assert pruned == expected
        old = constraint.masks
        for layer in constraint.layers:
            layer.weight.add_(1.0)
        constraint.project_weights_()


def test_a_lower_sparsity_revives_nothing() -> None:
    constraint, pruner = make(0.75)
    pruner.update(lambda target: target, step=0)
    masks = constraint.masks
    pruner.update(lambda target: 0.1, step=1)
    assert all(torch.equal(a, b) for a, b in zip(constraint.masks, masks, strict=True))


@pytest.mark.parametrize("pattern", [Block((2, 2)), Block((1, 2))])
def test_units_stay_whole_over_several_updates(pattern: Block) -> None:
    constraint, pruner = make(0.5, pattern=pattern)
    for step, part in enumerate((0.3, 0.6, 1.0)):
        pruner.update(lambda target, part=part: target * part, step=step)
    assert abs(num_pruned(constraint) - 64) <= 4
    for mask in constraint.masks:
        rows, columns = pattern.shape
        units = mask.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).float().mean(dim=(1, 3))
        assert set(units.flatten().tolist()) <= {0.0, 1.0}


# Gradient scores.


def set_gradients(constraint: MaskConstraint, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    gradients = [torch.randn(layer.shape, generator=generator) for layer in constraint.layers]
    for layer, gradient in zip(constraint.layers, gradients, strict=True):
        layer.parameter.grad = gradient * scale
    return gradients


def test_gradients_count_only_once_their_step_is_made() -> None:
    constraint, pruner = make(score=Taylor())
    set_gradients(constraint)
    pruner.accumulator.read(constraint.layers)
    assert not pruner.is_ready
    pruner.accumulator.read(constraint.layers)  # the first step was skipped
    pruner.accumulator.step_completed(constraint.layers)
    pruner.accumulator.step_completed(constraint.layers)
    weight, gradient = constraint.layers[0].weight, constraint.layers[0].gradient
    assert torch.equal(pruner.accumulated_scores["0.weight"], (weight * gradient) ** 2)


def test_a_loss_scale_is_taken_out() -> None:
    (_, plain), (_, scaled) = make(score=Movement()), make(score=Movement())
    set_gradients(plain.constraint)
    set_gradients(scaled.constraint, scale=1024.0)
    plain.accumulator.read(plain.constraint.layers)
    scaled.accumulator.read(scaled.constraint.layers, 1024.0)
    for pruner in (plain, scaled):
        pruner.accumulator.step_completed(pruner.constraint.layers)
    assert all(
        torch.equal(plain.accumulated_scores[name], scaled.accumulated_scores[name])
        for name in plain.accumulated_scores
    )


@pytest.mark.parametrize(("score", "kept"), [(Taylor(), False), (Movement(), True)])
def test_accumulated_scores_after_an_update(score: Score, kept: bool) -> None:
    constraint, pruner = make(score=score)
    set_gradients(constraint)
    for _ in range(2):
        pruner.accumulator.read(constraint.layers)
        pruner.accumulator.step_completed(constraint.layers)
    accumulated_scores = {name: value.clone() for name, value in pruner.accumulated_scores.items()}
    ranked = torch.cat([value.flatten() for value in accumulated_scores.values()])
    pruner.update(lambda target: target, step=2)
    masks = torch.cat([mask.flatten() for mask in constraint.masks])
    assert ranked[masks].min() >= ranked[~masks].max()
    assert bool(pruner.accumulated_scores) is kept
    assert all(
        torch.equal(pruner.accumulated_scores[name], accumulated_scores[name]) for name in pruner.accumulated_scores
    )


def test_layers_without_a_gradient_contribute_nothing() -> None:
    constraint, pruner = make(score=Taylor())
    pruner.accumulator.read(constraint.layers)
    pruner.accumulator.step_completed(constraint.layers)
    assert all((accumulated_scores == 0).all() for accumulated_scores in pruner.accumulated_scores.values())


# Probe scores.


@dataclass(frozen=True)
class Recorded(ProbeScore):
    """Magnitude, by way of a probe."""

    rounds: int = 1

    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = [probe.model.get_parameter(name).detach() for name in names]
        probe.seen.append(sum(int((w == 0).sum()) for w in weights))
        return [w.abs() for w in weights]


class FakeProbe:
    def __init__(self, constraint: MaskConstraint) -> None:
        modules = [nn.Linear(*reversed(layer.shape), bias=False) for layer in constraint.layers]
        for module, layer in zip(modules, constraint.layers, strict=True):
            module.weight.data.copy_(layer.weight)
        self.model = nn.Sequential(*modules)
        self.seen: list[int] = []


def test_rounds_go_along_an_exponential_curve_on_pruned_copies() -> None:
    constraint, pruner = make(0.75, score=Recorded(rounds=4))
    probe = FakeProbe(constraint)
    pruner.update(lambda target: target, step=0, probe=lambda: probe)
    # A quarter of 128 stays; each round keeps the same part of what the last one left.
    assert probe.seen == [0, *(128 - round(128 * 0.25 ** (done / 4)) for done in (1, 2, 3))]
    assert num_zeros(constraint) == 96
    assert pruner.accumulated_scores == {}


def test_later_rounds_go_on_from_the_masks_there_are() -> None:
    constraint, pruner = make(0.75, score=Recorded(rounds=2))
    probe = FakeProbe(constraint)
    pruner.update(lambda target: 0.5, step=0, probe=lambda: probe)
    pruner.update(lambda target: target, step=1, probe=lambda: probe)
    assert probe.seen == [0, 128 - round(128 * 0.5**0.5), 64, 128 - round(64 * 0.5**0.5)]


# Growth.


@pytest.mark.parametrize("distribution", [None, ERK(), Uniform()])
@pytest.mark.parametrize("growth", [RigL(fraction=0.4), SET(fraction=0.4)])
def test_growth_keeps_the_sparsity_and_begins_at_zero(growth: Growth, distribution: Distribution | None) -> None:
    constraint, pruner = make(0.75, growth=growth, distribution=distribution)
    pruner.update(lambda target: target, step=0)
    sizes = [sum(constraint.layers[i].shape.numel() for i in group.layers) for group in pruner.ranking_groups]
    for step, done in enumerate((0.0, 0.3, 0.6, 0.9)):
        before, weights = constraint.masks, [layer.weight.clone() for layer in constraint.layers]
        gradients = {layer.name: torch.randn(layer.shape) for layer in constraint.layers}
        pruner.update(lambda target: target, step=step, drop_and_grow=done, gradients=gradients)
        after = constraint.masks
        for group, size in zip(pruner.ranking_groups, sizes, strict=True):
            live = sum(int(after[i].sum()) for i in group.layers)
            assert live == size - group.num_pruned
        assert num_zeros(constraint) >= num_pruned(constraint) == 96
        for was, now, old, layer in zip(before, after, weights, constraint.layers, strict=True):
            grown, stayed = now & ~was, now & was
            assert (layer.weight[grown] == 0).all()
            # What stayed and was not num_dropped_and_grown for itself is as it was.
            kept = stayed & (layer.weight != 0)
            assert torch.equal(layer.weight[kept], old[kept])
        for layer, mask in zip(constraint.layers, after, strict=True):
            layer.weight.copy_(torch.where(mask, torch.randn(layer.shape), 0.0))


def test_rigl_drops_the_smallest_and_grows_the_steepest() -> None:
    layer = Layer("0.weight", nn.Parameter(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2]])))
    constraint = MaskConstraint([layer])
    ranking_groups = make_ranking_groups([layer], 0.5)
    pruner = WeightPruner(constraint, ranking_groups, Magnitude(), pattern=Unstructured(), growth=RigL(0.5))
    pruner.update(lambda target: target, step=0)
    assert layer.weight.tolist() == [[4.0, 3.0, 2.0, 1.0, 0, 0, 0, 0]]
    steep = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.2, -9.0, 8.0, 0.3]])
    pruner.update(lambda target: target, step=1, drop_and_grow=0.0, gradients={"0.weight": steep})
    assert constraint.masks[0].int().tolist() == [[1, 1, 0, 0, 0, 1, 1, 0]]
    assert layer.weight.tolist() == [[4.0, 3.0, 0, 0, 0, 0, 0, 0]]


def test_a_dropped_weight_that_grows_again_begins_at_zero() -> None:
    layer = Layer("0.weight", nn.Parameter(torch.tensor([[4.0, 3.0, 0.2, 0.1]])))
    constraint = MaskConstraint([layer])
    ranking_groups = make_ranking_groups([layer], 0.5)
    pruner = WeightPruner(constraint, ranking_groups, Magnitude(), pattern=Unstructured(), growth=RigL(0.5))
    pruner.update(lambda target: target, step=0)
    steep = torch.tensor([[0.0, 9.0, 0.1, 0.2]])
    pruner.update(lambda target: target, step=1, drop_and_grow=0.0, gradients={"0.weight": steep})
    assert constraint.masks[0].int().tolist() == [[1, 1, 0, 0]]
    assert layer.weight.tolist() == [[4.0, 0.0, 0.0, 0.0]]


def test_growth_leaves_no_layer_empty_and_its_gradients_alone() -> None:
    constraint, pruner = make(0.9, growth=RigL(0.9), shapes=[(2, 2), (40, 10)])
    constraint.layers[0].weight.mul_(1e-3)
    pruner.update(lambda target: target, step=0)
    gradients = {"0.weight": torch.full((2, 2), 1e-6), "1.weight": torch.full((40, 10), -5.0)}
    for step in range(3):
        pruner.update(lambda target: target, step=step, drop_and_grow=0.0, gradients=gradients)
        assert all(mask.any() for mask in constraint.masks)
        assert num_pruned(constraint) == round(404 * 0.9)
    assert (gradients["0.weight"] == 1e-6).all()
    assert (gradients["1.weight"] == -5.0).all()


def test_growth_follows_a_sparsity_that_still_rises() -> None:
    constraint, pruner = make(0.75, growth=SET(fraction=0.3))
    for step, part in enumerate((0.2, 0.5, 0.8, 1.0)):
        pruner.update(lambda target, part=part: target * part, step=step, drop_and_grow=None if step == 0 else part)
        assert num_pruned(constraint) == round(128 * 0.75 * part)
        assert not math.isnan(sum(float(layer.weight.sum()) for layer in constraint.layers))


@pytest.mark.parametrize("distribution", [None, ERK()])
def test_rigl_leaves_a_layer_without_gradient_as_it_is(distribution: Distribution | None) -> None:
    constraint, pruner = make(0.75, growth=RigL(0.4), distribution=distribution)
    pruner.update(lambda target: target, step=0)
    before, weight = constraint.masks, constraint.layers[1].weight.clone()
    gradients = {layer.name: torch.randn(layer.shape) for layer in constraint.layers if layer.name != "1.weight"}
    pruner.update(lambda target: target, step=1, drop_and_grow=0.0, gradients=gradients)
    assert num_pruned(constraint) == 96
    assert torch.equal(constraint.masks[1], before[1])
    assert torch.equal(constraint.layers[1].weight, weight)
    assert not torch.equal(constraint.masks[0], before[0])


def test_rigl_without_any_gradient_follows_the_sparsity() -> None:
    constraint, pruner = make(0.75, growth=RigL(0.4))
    pruner.update(lambda target: 0.5, step=0)
    before, weights = constraint.masks, torch.cat([layer.weight.flatten() for layer in constraint.layers])
    pruner.update(lambda target: target, step=1, drop_and_grow=0.5, gradients={})
    after = torch.cat([layer.weight.flatten() for layer in constraint.layers])
    assert num_pruned(constraint) == 96
    assert all(not (now & ~was).any() for now, was in zip(constraint.masks, before, strict=True))
    assert torch.equal(after != 0, weights.abs() > weights.abs().sort().values[95])


def test_scores_that_are_not_finite_are_not_ranked() -> None:
    constraint, pruner = make(0.5, score=Taylor())
    assert pruner.accumulator is not None
    pruner.accumulator.sums = {layer.name: torch.ones(layer.shape) for layer in constraint.layers}
    pruner.accumulator.sums["1.weight"][0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^'1\.weight' has Taylor scores that are NaN or infinite"):
        pruner.update(lambda target: target, step=0)
    assert num_pruned(constraint) == 0
