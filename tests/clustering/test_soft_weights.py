from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.clustering.layout import Granularity, Layout
from lightning_compress.clustering.soft_weights import _KEY, SoftClusters, harden, soften
from lightning_compress.functional.soft_kmeans import soft_assign

WEIGHT = torch.tensor([[-1.1, 0.0, 0.9], [1.0, -0.8, 2.1]])
CODEBOOK = torch.tensor([[-1.0, 1.0, 2.0]])


def make(
    weight: Tensor = WEIGHT,
    *,
    granularity: Granularity = "tensor",
    masses: Tensor | None = None,
    codebooks: Tensor = CODEBOOK,
) -> SoftClusters:
    layout = Layout(weight.shape, 1, granularity)
    return SoftClusters(
        layout, codebooks.expand(layout.num_codebooks, -1).clone(), torch.full((layout.num_codebooks,), 0.1), masses
    )


def soft_clusters_of(model: nn.Module) -> list[tuple[str, SoftClusters]]:
    """The names of softly clustered weights in a model with their soft clusters."""
    return [
        (f"{name}.{attribute}".lstrip("."), clusters)
        for name, module in model.named_modules()
        for attribute, clusters in vars(module).get(_KEY, {}).items()
    ]


def net(masses: Tensor | None = None) -> tuple[nn.Sequential, SoftClusters]:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    model[0].weight.data.copy_(WEIGHT)
    clusters = make(masses=masses)
    soften(model[0], "weight", clusters)
    return model, clusters


INPUTS = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])


# Clusters.


def test_computes_with_the_temperature_of_a_mixture_of_gaussians() -> None:
    clusters = make()
    expected, _ = soft_assign(WEIGHT.view(1, 6), CODEBOOK, torch.tensor([0.2]))
    assert torch.equal(clusters(WEIGHT), expected.view(2, 3))
    clusters.sharpness = 0.5
    expected, _ = soft_assign(WEIGHT.view(1, 6), CODEBOOK, torch.tensor([0.05]))
    assert torch.equal(clusters(WEIGHT), expected.view(2, 3))


def test_at_the_end_weights_hardly_blend() -> None:
    clusters = make(masses=(WEIGHT != 0).float())
    clusters.sharpness = 1.0
    found = clusters(WEIGHT)
    torch.testing.assert_close(found.flatten()[[0, 4]], torch.full((2,), -0.95))
    assert float(found[1, 2]) == pytest.approx(2.1)
    assert found.isfinite().all()


def test_codebooks_move_only_by_update_codebooks() -> None:
    clusters = make()
    before = clusters.codebooks.clone()
    first, again = clusters(WEIGHT.requires_grad_(False)), clusters(WEIGHT)
    assert torch.equal(first, again)
    assert torch.equal(clusters.codebooks, before)
    clusters.update_codebooks()
    moved = clusters.codebooks
    assert not torch.equal(moved, before)
    clusters.update_codebooks()
    assert clusters.codebooks is moved
    with torch.no_grad():  # validation moves nothing
        clusters(WEIGHT)
    clusters.update_codebooks()
    assert clusters.codebooks is moved


def test_zeros_stay_zeros_and_get_no_gradient() -> None:
    masses = (WEIGHT != 0).float()
    weight = WEIGHT.clone().requires_grad_()
    found = make(masses=masses)(weight)
    assert torch.equal(found == 0, WEIGHT == 0)
    found.sum().backward()
    assert float(weight.grad[0, 1]) == 0
    assert (weight.grad[WEIGHT != 0] != 0).all()
    others = make(masses=masses)(torch.where(WEIGHT == 0, 50.0, WEIGHT))
    torch.testing.assert_close(others, found)


def test_padding_of_the_last_group_has_no_mass() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    grouped = make(weight, granularity=2)
    alone, _ = soft_assign(weight[2:], CODEBOOK, torch.tensor([0.2]))
    torch.testing.assert_close(grouped(weight)[2:], alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    weight = WEIGHT.to(dtype).requires_grad_()
    found = make(masses=torch.ones(2, 3))(weight)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), make()(WEIGHT.to(dtype).float()), rtol=1e-2, atol=1e-2)
    found.sum().backward()
    assert weight.grad.dtype == dtype


@pytest.mark.parametrize("masses", [None, (WEIGHT != 0).float()])
def test_state_round_trip(masses: Tensor | None) -> None:
    clusters = make(masses=masses)
    clusters(WEIGHT)
    clusters.update_codebooks()
    other = SoftClusters.from_state(clusters.layout, clusters.state_dict(), torch.device("cpu"))
    assert torch.equal(other(WEIGHT), clusters(WEIGHT))


# Modules.


def test_a_module_computes_with_soft_weights() -> None:
    model, clusters = net()
    expected = torch.relu(nn.functional.linear(INPUTS, clusters(WEIGHT), model[0].bias))
    assert torch.equal(model(INPUTS), expected)
    assert torch.equal(model[0].weight, WEIGHT)


def test_keys_and_parameters_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    parameter, keys, names = model[0].weight, list(model.state_dict()), dir(model[0])
    soften(model[0], "weight", make())
    for _ in range(2):
        assert model[0].weight is parameter
        assert list(model.state_dict()) == keys
        assert [name for name, _ in model.named_parameters()] == keys
        assert type(model[0]) is nn.Linear
        model(INPUTS)
    harden(model)
    assert dir(model[0]) == names


def test_gradients_reach_the_weight() -> None:
    model, clusters = net()
    model(INPUTS).square().sum().backward()
    weight = WEIGHT.clone().requires_grad_()
    torch.relu(nn.functional.linear(INPUTS, clusters(weight), model[0].bias)).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, weight.grad)
    assert bool((weight.grad != 0).any())


def test_harden_restores() -> None:
    model, _ = net()
    plain = torch.relu(nn.functional.linear(INPUTS, WEIGHT, model[0].bias))
    assert not torch.equal(model(INPUTS), plain)
    harden(model)
    assert torch.equal(model(INPUTS), plain)
    assert not model[0]._forward_pre_hooks
    assert not model[0]._forward_hooks
    assert not model[0]._forward_hooks_always_called
    assert soft_clusters_of(model) == []
    harden(model)


def test_harden_leaves_other_hooks() -> None:
    model, _ = net()
    calls: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("pre"))
    model[0].register_forward_hook(lambda *_: calls.append("post"), always_call=True)
    harden(model)
    model(INPUTS)
    assert calls == ["pre", "post"]
    assert len(model[0]._forward_hooks_always_called) == 1


def test_softened_again_computes_with_the_new_clusters() -> None:
    model, _ = net()
    clusters = make(codebooks=torch.tensor([[-3.0, 3.0]]))
    soften(model[0], "weight", clusters)
    assert len(model[0]._forward_pre_hooks) == 1
    expected = torch.relu(nn.functional.linear(INPUTS, clusters(WEIGHT), model[0].bias))
    assert torch.equal(model(INPUTS), expected)


def test_several_weights_of_one_module() -> None:
    module = nn.GRUCell(3, 2)
    clusters = {name: make(getattr(module, name).detach()) for name in ("weight_ih", "weight_hh")}
    expected = copy.deepcopy(module)
    for name, soft in clusters.items():
        soften(module, name, soft)
        getattr(expected, name).data = soft(getattr(module, name)).detach()
    torch.testing.assert_close(module(INPUTS), expected(INPUTS))
    assert [name for name, _ in soft_clusters_of(module)] == ["weight_ih", "weight_hh"]


def test_names_are_those_of_the_state_dict() -> None:
    model, clusters = net()
    assert soft_clusters_of(model) == [("0.weight", clusters)]
    assert soft_clusters_of(model[0]) == [("weight", clusters)]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_compute_with_clusters_of_their_own(duplicate) -> None:
    model, clusters = net(masses=(WEIGHT != 0).float())
    other = duplicate(model)
    assert torch.equal(other(INPUTS), model(INPUTS))
    ((_, theirs),) = soft_clusters_of(other)
    assert theirs is not clusters
    theirs.codebooks.fill_(7.0)
    assert not torch.equal(other(INPUTS), model(INPUTS))
    harden(other)
    assert torch.equal(other(INPUTS), torch.relu(nn.functional.linear(INPUTS, WEIGHT, model[0].bias)))
    assert soft_clusters_of(model) == [("0.weight", clusters)]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_while_a_batch_waits_for_its_end(duplicate) -> None:
    model, _ = net()
    model(INPUTS).sum().backward()  # the moved codebooks are there and not yet taken over
    other = duplicate(model)
    assert torch.equal(other(INPUTS), model(INPUTS))


def test_an_exception_leaves_no_attribute_behind() -> None:
    model, _ = net()
    parameter = model[0].weight
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(2, 7))
    assert "weight" not in vars(model[0])
    assert model[0].weight is parameter
    model(INPUTS)
    assert "weight" not in vars(model[0])


def test_an_exception_of_another_hook_leaves_no_attribute_behind() -> None:
    model, _ = net()

    def stop(*_: object) -> None:
        raise KeyError("stop")

    model[0].register_forward_pre_hook(stop)
    with pytest.raises(KeyError, match="stop"):
        model(INPUTS)
    assert "weight" not in vars(model[0])
