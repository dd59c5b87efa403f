"""Layers that are processed together give what each of them gives by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.clustering.clusterer import Clusterer
from lightning_compress.clustering.codebook_spec import CodebookSpec
from lightning_compress.constraints import layer_batches
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import Buffers, make_batches
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.growth import SET, RigL
from lightning_compress.pruning.patterns import NM, Block, Unstructured
from lightning_compress.pruning.pruner import WeightPruner
from lightning_compress.pruning.ranking_groups import make_ranking_groups
from lightning_compress.pruning.scores import LAMP, Magnitude, Random, Taylor

SHAPES = [(4, 8), (8, 4), (4, 8), (4, 8, 1), (4, 8), (8, 4), (2, 8), (4, 8)]


def make_layers() -> list[Layer]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    # Values on a grid, so that ties are common.
    return [Layer(f"{i}.weight", nn.Parameter((3 * w).round() / 3), int(i != 4)) for i, w in enumerate(weights)]


@pytest.fixture(params=[0, 2**10], ids=["alone", "together"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(layer_batches, "_MAX_SMALL", request.param)
    return request.param


def test_layers_of_equal_shape_and_kind_are_together() -> None:
    assert make_batches(make_layers()) == [[0, 2, 7], [1, 5], [3], [4], [6]]


def test_dtypes_and_large_layers_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.ones(32, 32), torch.ones(32, 33), torch.ones(32, 33), torch.ones(32, 32)]
    layers = [Layer(f"{i}.weight", nn.Parameter(weight)) for i, weight in enumerate(weights)]
    assert make_batches(layers) == [[0, 3], [1], [2]]
    assert make_batches([*layers[:1], Layer("half", nn.Parameter(weights[3].half()))]) == [[0], [1]]
    monkeypatch.setattr(layer_batches, "_MAX_BATCH", 2 * 1024)
    assert make_batches([layers[0]] * 5) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("number", [1, 3])
def test_a_stack_is_written_back(number: int) -> None:
    buffers = Buffers()
    tensors = [torch.full((2, 3), float(i)).t().contiguous().t() for i in range(number)]
    for _ in range(2):
        stacked = buffers.stack(tensors)
        stacked += 1
        buffers.unstack_(tensors, stacked)
    assert [tensor.unique().tolist() for tensor in tensors] == [[i + 2.0] for i in range(number)]


def test_buffers_are_dropped_where_there_are_too_many() -> None:
    buffers = Buffers()
    for size in range(1, layer_batches._MAX_KEPT + 1):
        buffers.stack([torch.zeros(size), torch.ones(size)])
    assert len(buffers._kept) == layer_batches._MAX_KEPT
    buffers.stack([torch.zeros(100), torch.ones(100)])
    assert len(buffers._kept) == 1


def test_no_dtype_loses_precision_in_a_stack() -> None:
    buffers = Buffers()
    half, full = torch.ones(2, dtype=torch.bfloat16), torch.tensor([1.0, 1.0 + 2**-20])
    for tensors in ([half, full], [full, half]):
        stacked = buffers.stack(tensors)
        assert stacked.dtype == torch.float32
        buffers.unstack_(tensors, stacked)
    assert full.tolist() == [1.0, 1.0 + 2**-20]


def test_a_batch_has_a_layer_however_small_its_limit_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_batches, "_MAX_BATCH", 10)
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(4, 4))) for i in range(2)]
    assert make_batches(layers) == [[0], [1]]
    monkeypatch.setattr(layer_batches, "_MAX_BATCH", 16)
    assert make_batches([Layer(f"{i}.weight", nn.Parameter(torch.ones(1, 1))) for i in range(17)])[1] == [16]


def test_memory_of_a_stack_is_used_again() -> None:
    tensors, others, buffers = [torch.ones(2), torch.zeros(2)], [torch.ones(3)] * 2, Buffers()
    first = buffers.stack(tensors)
    assert buffers.stack(others).data_ptr() != first.data_ptr()
    assert buffers.stack(tensors).data_ptr() == first.data_ptr()


def test_buffers_are_bounded() -> None:
    buffers = Buffers()
    for size in range(1, 100):
        assert torch.equal(buffers.stack([torch.ones(size), torch.zeros(size)]).sum(dim=1), torch.tensor([size, 0.0]))
    assert len(buffers._kept) <= layer_batches._MAX_KEPT


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def prune(options: dict) -> list[list[Tensor]]:
    layers = make_layers()
    pattern, score = options.get("pattern", Unstructured()), options.get("score", Magnitude())
    constraint = MaskConstraint(layers)
    sparsity = options.get("sparsity", 0.5)
    groups = make_ranking_groups(layers, sparsity, unit_size=pattern.unit_size)
    pruner = WeightPruner(constraint, groups, score, pattern=pattern, growth=options.get("growth"))
    generator = torch.Generator().manual_seed(1)
    gradients = {layer.name: torch.randn(layer.shape, generator=generator) for layer in layers if layer.name[0] != "2"}
    if pruner.accumulator is not None:
        pruner.accumulator.sums = {layer.name: layer.weight.square() for layer in layers}
    constraint.frozen = options.get("frozen", frozenset())
    found = []
    for step, factor in enumerate([0.4, 1.0, 0.8] if isinstance(pattern, Unstructured) else [1.0]):
        if pruner.accumulator is not None:
            pruner.accumulator.sums = {layer.name: layer.weight.square() + step for layer in layers}
        pruner.update(
            lambda target, factor=factor: target * factor,
            step=step,
            drop_and_grow=0.3 if step and options.get("growth") else None,
            gradients=gradients,
        )
        found.append([mask.clone() for mask in constraint.masks])
    return [*found, [layer.weight.clone() for layer in layers]]


OPTIONS = [
    {},
    {"score": Magnitude(p=2), "sparsity": {"[0-3]": 0.3, "*": 0.8}},
    {"score": LAMP()},
    {"score": Random()},
    {"score": Taylor()},
    {"pattern": Block((2, 2))},
    {"pattern": NM(2, 4)},
    {"frozen": frozenset([2, 3])},
    {"growth": RigL()},
    {"growth": SET(), "frozen": frozenset([0])},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masks_do_not_depend_on_batches(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    together = prune(options)
    monkeypatch.setattr(layer_batches, "_MAX_SMALL", 0)
    alone = prune(options)
    assert all(same(ours, theirs) for ours, theirs in zip(together, alone, strict=True))


def cluster(options: dict) -> tuple[list[Tensor], list[Tensor], list[Tensor], bytes]:
    layers = make_layers()
    with torch.no_grad():
        layers[2].parameter[0, 0] = 0.0  # pins zero, other than the layers of its shape
    constraint = CodebookConstraint(layers)
    spec = CodebookSpec(**options.get("spec", {"num_clusters": 3}))
    clusterer = Clusterer(constraint, [spec] * len(layers), weighted=options.get("weighted", False))
    if clusterer.accumulator is not None:
        clusterer.accumulator.sums = {layer.name: layer.weight.abs() for layer in layers[:5]}
    constraint.frozen = options.get("frozen", frozenset())
    zeros: list[Tensor | None] = [None] * len(layers)
    zeros[0] = torch.arange(32).view(4, 8) % 3 == 0
    steps = []
    for fraction in (0.0, 0.4, 0.7, 1.0):
        clusterer.update(zeros, fraction=fraction)
        for layer in layers:
            layer.parameter.grad = layer.weight.cos()
        constraint.project_gradients_()
        constraint.sum_gradients_()
        with torch.no_grad():
            for layer in layers:
                layer.parameter.sub_(0.1 * layer.gradient)
        constraint.project_weights_()
        assert constraint.is_satisfied()
        steps += [layer.weight.clone() for layer in layers]
    soft = clusterer.soft_clusters(zeros)
    tensors = [t for name in sorted(soft) for t in soft[name].state_dict().values() if t is not None]
    index = [a.index for a in constraint.assignments if a is not None]
    return steps, tensors, index, constraint.digest()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spec": {"num_clusters": 2, "granularity": "channel"}},
        {"spec": {"num_clusters": 3, "granularity": 3}},
        {"spec": {"num_clusters": 3, "vector_size": 2}},
        {"spec": {"num_clusters": 3, "granularity": 2, "init": "kmeans++"}},
        {"weighted": True},
        {"frozen": frozenset([7])},
    ],
    ids=str,
)
def test_clusters_do_not_depend_on_batches(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    together = cluster(options)
    monkeypatch.setattr(layer_batches, "_MAX_SMALL", 0)
    alone = cluster(options)
    assert all(same(ours, theirs) for ours, theirs in zip(together[:3], alone[:3], strict=True))
    assert all(len(t) for t in together[:3])


def test_optimizer_state_and_copies_do_not_depend_on_batches(size: int) -> None:
    layers = make_layers()
    constraint = MaskConstraint(layers)
    optimizer = torch.optim.Adam([layer.parameter for layer in layers])
    for layer in layers[1:]:  # the first has no state
        layer.parameter.grad = torch.ones(layer.shape)
    optimizer.step()
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(layer.shape, generator=generator) < 0.5 for layer in layers]
    constraint.replace(masks)
    constraint.project_state_(optimizer)
    for layer, mask in zip(layers[1:], masks[1:], strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[layer.parameter][key] != 0, mask)
    assert constraint.is_satisfied()
    with torch.no_grad():
        layers[5].parameter.add_(1)
    assert not constraint.is_satisfied()
    constraint.frozen = frozenset([5])
    assert constraint.is_satisfied()
    constraint.narrow([~mask for mask in masks])
    assert not any(mask.any() for mask in constraint.masks)
