"""Every score against an independent calculation on a small net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.bn_scale import BNScale
from lightning_compress.pruning.probe_scores import SNIP, GraSP, ProbeScore, SynFlow
from lightning_compress.pruning.scores import LAMP, Magnitude, Movement, Random, Score, Taylor


class Probe:
    """A probe without a Trainer: one batch of one process."""

    def __init__(self, model: nn.Module, inputs: Tensor, target: Tensor | None = None) -> None:
        self.model = self.deployable = copy.deepcopy(model)
        self._inputs = inputs
        self._target = target

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(self._inputs), self._target)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self._inputs,), {}

    def reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)


def small_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(7, 3, generator=generator, dtype=dtype), torch.randint(0, 3, (7,), generator=generator)


NAMES = ["0.weight", "2.weight"]


def one_loss(net: nn.Module, names: Sequence[str]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a function of the named weights laid end to end, and those weights."""
    inputs, target = batch()
    weights = [net.get_parameter(name).detach() for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([w.numel() for w in weights])
        named = {name: part.view_as(w) for name, part, w in zip(names, parts, weights, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, named, (inputs,)), target)

    return loss, torch.cat([w.flatten() for w in weights])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


@pytest.mark.parametrize(("p", "expected"), [(1, [0.5, 2.0, 0.0]), (2, [0.25, 4.0, 0.0])])
def test_magnitude(p: int, expected: list[float]) -> None:
    layer = Layer("weight", nn.Parameter(torch.tensor([[0.5, -2.0, 0.0]])))
    assert Magnitude(p).importance(layer, None, 0).tolist() == [expected]
    assert layer.weight.tolist() == [[0.5, -2.0, 0.0]]


def test_magnitude_of_what_norm() -> None:
    with pytest.raises(ValueError, match="p=3"):
        Magnitude(3)


def test_magnitude_of_half_precision_is_squared_in_single() -> None:
    layer = Layer("weight", nn.Parameter(torch.tensor([[1e-4, 3e-4]], dtype=torch.float16)))
    scores = Magnitude(2).importance(layer, None, 0)
    assert scores.dtype == torch.float32
    assert (scores > 0).all()


def test_lamp_compares_layers_by_what_they_would_lose() -> None:
    # Lee et al. 2021, eq. 6, on weights sorted by size: 1/14, 4/13, 9/9.
    layer = Layer("weight", nn.Parameter(torch.tensor([[2.0, -3.0, 1.0]])))
    torch.testing.assert_close(LAMP().importance(layer, None, 0), torch.tensor([[4 / 13, 1.0, 1 / 14]]))
    large = Layer("weight", nn.Parameter(torch.tensor([[2.0, -3.0, 1.0]]) * 1e6))
    torch.testing.assert_close(LAMP().importance(large, None, 0), LAMP().importance(layer, None, 0))


def test_random_depends_on_seed_step_and_name() -> None:
    layer, other = (Layer(name, nn.Parameter(torch.ones(4, 4))) for name in ("a.weight", "b.weight"))
    first = Random(seed=1).importance(layer, None, 10)
    assert torch.equal(Random(seed=1).importance(layer, None, 10), first)
    for scores in (
        Random(seed=2).importance(layer, None, 10),
        Random(seed=1).importance(layer, None, 11),
        Random(seed=1).importance(other, None, 10),
    ):
        assert not torch.equal(scores, first)


def test_taylor_and_movement_of_one_step() -> None:
    weight, gradient = torch.tensor([[2.0, -3.0, 1.0]]), torch.tensor([[0.5, 1.0, -2.0]])
    assert Taylor().contribution(weight, gradient).tolist() == [[1.0, 9.0, 4.0]]
    # Descent moves the first weight towards zero, the others away from it.
    assert Movement().contribution(weight, gradient).tolist() == [[-1.0, 3.0, 2.0]]
    assert weight.tolist() == [[2.0, -3.0, 1.0]]
    assert gradient.tolist() == [[0.5, 1.0, -2.0]]


def test_movement_is_high_where_descent_leads_away_from_zero() -> None:
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    loss = ((weight - torch.tensor([2.0, -2.0, 0.0, 0.0])) ** 2).sum()
    loss.backward()
    score = Movement().contribution(weight.detach(), weight.grad)
    moved = (weight - 0.1 * weight.grad).abs() - weight.abs()
    assert torch.equal(score > 0, moved > 0)


def test_taylor_restarts_and_movement_goes_on() -> None:
    assert Taylor.restarts
    assert not Movement.restarts


def test_scores_do_not_hand_out_what_they_were_given() -> None:
    scores = torch.tensor([[1.0, 2.0]])
    layer = Layer("weight", nn.Parameter(torch.ones(1, 2)))
    for score in (Taylor(), Movement(), SNIP(), SynFlow(), Magnitude(), Magnitude(2), LAMP()):
        score.importance(layer, scores, 1).fill_(-torch.inf)
    assert scores.tolist() == [[1.0, 2.0]]
    assert layer.weight.tolist() == [[1.0, 1.0]]


def test_snip_is_weight_times_gradient() -> None:
    net = small_net()
    scores = SNIP().score_weights(Probe(net, *batch()), NAMES)
    loss, weights = one_loss(net, NAMES)
    gradient = torch.autograd.functional.jacobian(loss, weights)
    torch.testing.assert_close(flat(scores), (weights * gradient).abs(), rtol=1e-6, atol=1e-9)


def test_snip_is_the_derivative_with_respect_to_connections() -> None:
    # Lee et al. 2019, eq. 6: |dL(c w) / dc| at c = 1.
    net = small_net()
    loss, weights = one_loss(net, NAMES)
    derivative = torch.autograd.functional.jacobian(lambda c: loss(c * weights), torch.ones_like(weights))
    scores = SNIP().score_weights(Probe(net, *batch()), NAMES)
    torch.testing.assert_close(flat(scores), derivative.abs(), rtol=1e-6, atol=1e-9)


def test_grasp_is_weight_times_hessian_gradient() -> None:
    net = small_net()
    scores = GraSP().score_weights(Probe(net, *batch()), NAMES)
    loss, weights = one_loss(net, NAMES)
    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    torch.testing.assert_close(flat(scores), weights * (hessian @ gradient), rtol=1e-5, atol=1e-8)


def test_grasp_prunes_first_what_lets_the_gradient_grow() -> None:
    # Wang et al. 2020: weights whose removal raises the squared gradient norm the most are removed.
    net = small_net()
    scores = flat(GraSP().score_weights(Probe(net, *batch()), NAMES))
    loss, weights = one_loss(net, NAMES)

    def norm(at: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(loss, at).square().sum()

    epsilon = 1e-6
    lowest, highest = int(scores.argmin()), int(scores.argmax())
    slopes = []
    for index in (lowest, highest):
        smaller = weights.clone()
        smaller[index] *= 1 - epsilon
        slopes.append(float(norm(smaller) - norm(weights)))
    assert slopes[0] > 0 > slopes[1]


def synflow(net: nn.Module, shape: Sequence[int], names: Sequence[str]) -> list[Tensor]:
    """Algorithm 1 of Tanaka et al. 2020, one round: |w| * dR/d|w| with R the output's sum for an input of ones."""
    linear = copy.deepcopy(net).double().eval()
    for tensor in linear.state_dict().values():
        tensor.abs_()
    linear.zero_grad()
    linear(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    parameters = dict(linear.named_parameters())
    return [parameters[name].detach() * parameters[name].grad for name in names]


def test_synflow() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    net(torch.randn(4, 2, 6, 6))  # running statistics of both signs
    names = ["0.weight", "4.weight"]
    scores = SynFlow(1).score_weights(Probe(net, torch.randn(4, 2, 6, 6)), names)
    for mine, theirs in zip(scores, synflow(net, (2, 6, 6), names), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs)


def test_synflow_by_hand_and_its_conservation() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    net[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]], dtype=torch.float64)
    net[1].weight.data = torch.tensor([[-5.0, 6.0]], dtype=torch.float64)
    first, second = SynFlow(1).score_weights(Probe(net, torch.randn(3, 2)), ["0.weight", "1.weight"])
    assert first.tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert second.tolist() == [[15.0, 42.0]]
    assert first.sum() == second.sum() == 57


def test_synflow_stays_in_range_over_many_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(40)])
    for layer in net:
        layer.weight.data.mul_(20)
    assert not torch.isfinite(synflow_in_single(net)).all()
    (scores,) = SynFlow(1).score_weights(Probe(net, torch.randn(1, 64)), ["0.weight"])
    assert torch.isfinite(scores).all()
    assert (scores > 0).all()


def synflow_in_single(net: nn.Module) -> Tensor:
    x = torch.ones(64)
    for layer in net:
        x = layer.weight.abs() @ x
    return x


def test_synflow_keeps_token_inputs_as_they_are() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    (scores,) = SynFlow(1).score_weights(Probe(net, torch.randint(0, 5, (2, 6))), ["1.weight"])
    assert scores.shape == (3, 4)
    assert torch.isfinite(scores).all()


def test_synflow_in_a_model_with_a_bool_buffer() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False)
            self.register_buffer("mask", torch.tensor([True, False, True]))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).masked_fill(~self.mask, 0.0)

    net = Masked()
    (scores,) = SynFlow(1).score_weights(Probe(net, torch.randn(2, 3)), ["fc.weight"])
    expected = net.fc.weight.detach().double().abs()
    expected[1] = 0.0
    torch.testing.assert_close(scores, expected)


def test_rounds_of_synflow() -> None:
    assert SynFlow().rounds == 100
    with pytest.raises(ValueError, match="rounds=0"):
        SynFlow(0)


class Pairs(nn.Module):
    """Norms that stand elsewhere in the module tree than the layers before them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(3), nn.BatchNorm1d(2)])
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(3, 2)
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.conv(x)))
        x = torch.relu(self.norms[1](self.up(x))).mean((2, 3))
        return self.last(self.norms[2](self.head(x)))


def pairs() -> tuple[Pairs, Probe]:
    torch.manual_seed(0)
    net = Pairs()
    for i, norm in enumerate(net.norms):
        norm.weight.data = torch.tensor([0.5, -2.0, 1.0, 0.0])[: len(norm.weight)] + 10 * i
    return net, Probe(net, torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 0, 1]))


def test_bn_scale_finds_the_norm_that_follows() -> None:
    _, probe = pairs()
    conv, up, head = BNScale().score_weights(probe, ["conv.weight", "up.weight", "head.weight"])
    assert conv.shape == (4, 2, 3, 3)
    assert [channel.unique().tolist() for channel in conv] == [[0.5], [2.0], [1.0], [0.0]]
    # Output channels of a transposed convolution are its second dimension.
    assert [channel.unique().tolist() for channel in up.movedim(1, 0)] == [[10.5], [8.0], [11.0]]
    assert [row.unique().tolist() for row in head] == [[20.5], [18.0]]


def test_bn_scale_names_a_layer_that_no_norm_follows() -> None:
    _, probe = pairs()
    BNScale().check(probe, ["conv.weight", "up.weight", "head.weight"])
    with pytest.raises(
        ValueError, match=r"no batch norm follows 'last'; exclude such layers: Targets\(exclude=\('last',\)\)"
    ):
        BNScale().check(probe, ["conv.weight", "last.weight"])


def test_bn_scale_takes_the_layer_and_not_the_container_or_identity_that_hands_its_output_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Identity()), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net[1].weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    probe = Probe(net, torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    BNScale().check(probe, ["0.0.weight"])
    (scores,) = BNScale().score_weights(probe, ["0.0.weight"])
    assert scores[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_bn_scale_leaves_no_hooks() -> None:
    _, probe = pairs()
    BNScale().score_weights(probe, ["conv.weight"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in probe.model.modules())


@pytest.mark.parametrize("score", [SNIP(), GraSP(), SynFlow(1)])
def test_weights_that_take_no_part_score_zero(score: ProbeScore) -> None:
    net = small_net()
    net.unused = nn.Linear(2, 2).double()
    net.forward = lambda x: net[2](net[1](net[0](x)))
    probe = Probe(net, *batch())
    probe.model.forward = lambda x: probe.model[2](probe.model[1](probe.model[0](x)))
    scores = score.score_weights(probe, [*NAMES, "unused.weight"])
    assert scores[2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert scores[0].abs().sum() > 0


@pytest.mark.parametrize(
    "score", [Magnitude(2), LAMP(), Random(3), Taylor(), Movement(), SNIP(), GraSP(), SynFlow(5), BNScale()]
)
def test_specifications_are_frozen_equal_and_hashable(score: Score) -> None:
    assert score == eval(repr(score))
    assert hash(score) == hash(eval(repr(score)))
    with pytest.raises(AttributeError):
        score.anything = 1
