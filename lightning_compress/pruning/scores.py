"""How much each weight matters; the lowest scores are pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.scores import filled, gradient_flow, layer_adaptive, uniform_noise
from lightning_compress.targets import shorten


class Score(ABC):
    """Importance of weights, higher stays."""

    @abstractmethod
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        """Scores of the shape of the layer's part on this rank, float32 or float64, in memory of their own.

        Args:
            layer: The layer.
            evidence: What a gradient or probe score has gathered for the layer.
            step: Completed optimizer steps.
        """


@dataclass(frozen=True)
class Magnitude(Score):
    """The absolute weight; units of several weights count by the mean of its ``p``-th power. Han et al. 2015.

    Args:
        p: 1 for L1, 2 for L2.

    Raises:
        ValueError: If ``p`` is not 1 or 2.
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Magnitude(p={self.p}) must be 1 (L1) or 2 (L2).")

    @override
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        magnitude = layer.weight.abs().float()
        return magnitude if self.p == 1 else magnitude.square_()


@dataclass(frozen=True)
class LAMP(Score):
    """Magnitudes that can be compared between layers: ``w^2`` over the sum of the layer's no smaller squares.

    Ranked over all layers it finds each layer's sparsity by itself. Lee et al. 2021 (arXiv:2010.07611).
    """

    @override
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        return layer.part(layer_adaptive(layer.whole(layer.weight)))


@dataclass(frozen=True)
class Random(Score):
    """Noise: the control that every other score has to beat.

    Args:
        seed: Seed of the noise, which also depends on the step and the layer, and on nothing else.
    """

    seed: int = 0

    @override
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        return layer.part(uniform_noise(layer.shape, seed=(self.seed, step, layer.name)))


class GradientScore(Score):
    """Scores summed up over the gradients of completed training steps, as they are after reduction over ranks."""

    restarts: ClassVar[bool]
    """Whether the sum starts anew after each update of the masks."""

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one step adds; dense gradient, unscaled and before clipping, both float32."""

    @override
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        assert evidence is not None, "a gradient score is asked after at least one step"
        return evidence.clone()


@dataclass(frozen=True)
class Taylor(GradientScore):
    """First-order change of the loss, ``(w g)^2``, over the steps since the last update. Molchanov et al. 2019."""

    restarts: ClassVar[bool] = True

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).square_()


@dataclass(frozen=True)
class Movement(GradientScore):
    """Weights that move away from zero stay: ``-w g`` over the whole run. Sanh et al. 2020 (arXiv:2005.07683)."""

    restarts: ClassVar[bool] = False

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).neg_()


class Probe(Protocol):
    """A disposable copy of the model in training, on one batch."""

    @property
    def model(self) -> nn.Module:
        """The copy."""

    @property
    def deployable(self) -> nn.Module:
        """Its part that is deployed."""

    def loss(self) -> Tensor:
        """The loss of the batch, with a graph."""

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with which ``deployable`` is called."""

    def reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over ranks."""


class ProbeScore(Score):
    """Scores that need passes of their own over the model."""

    rounds: int = 1
    """Number of times to score and prune on the way to each new sparsity."""

    def check(self, probe: Probe, names: Sequence[str]) -> None:
        """Refuses layers that cannot be scored, with a ``ValueError``, in the first batch of the fit."""

    @abstractmethod
    def evidence(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        """A score of every weight of the named parameters."""

    @override
    def importance(self, layer: Layer, evidence: Tensor | None, step: int) -> Tensor:
        assert evidence is not None, "a probe score is asked after its probe"
        return evidence.clone()


@dataclass(frozen=True)
class SNIP(ProbeScore):
    """Sensitivity of the loss, ``|w g|``, on one batch before training. Lee et al. 2019 (arXiv:1810.02340)."""

    @override
    def evidence(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = _weights(probe.model, names)
        gradients = filled(torch.autograd.grad(probe.loss(), weights, allow_unused=True), weights)
        return [(w * g).abs().float() for w, g in zip(weights, probe.reduce(gradients), strict=True)]


@dataclass(frozen=True)
class GraSP(ProbeScore):
    """Keeps the gradient flow, ``w H g``, on one batch before training. Wang et al. 2020 (arXiv:2002.07376).

    The loss is the training step's own; the paper's softmax temperature is not applied.
    """

    @override
    def evidence(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = _weights(probe.model, names)
        products = probe.reduce(gradient_flow(probe.loss(), weights, probe.reduce))
        return [(w * hg).float() for w, hg in zip(weights, products, strict=True)]


@dataclass(frozen=True)
class SynFlow(ProbeScore):
    """Synaptic flow, without data, in many rounds so that no layer collapses. Tanaka et al. 2020 (arXiv:2006.05467).

    Args:
        rounds: Rounds of scoring and pruning, along an exponential curve.

    Raises:
        ValueError: If ``rounds`` is below one.
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"SynFlow(rounds={self.rounds}) must be at least 1.")

    @override
    def evidence(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        args, kwargs = probe.inputs()
        model = probe.model.double().eval()  # products over many layers leave float32's range
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.abs_()
        ones = tree_map_only(Tensor, _ones, (args, kwargs))
        output = probe.deployable(*ones[0], **ones[1])
        flow = torch.stack([t.sum() for t in tree_leaves(output) if isinstance(t, Tensor)]).sum()
        weights = _weights(model, names)
        gradients = filled(torch.autograd.grad(flow, weights, allow_unused=True), weights)
        return [(w * g).detach() for w, g in zip(weights, gradients, strict=True)]


@dataclass(frozen=True)
class BNScale(ProbeScore):
    """The scale of the batch norm that follows, the same for all weights of an output channel. Liu et al. 2017.

    Which norm follows a layer is seen in one pass over a batch.
    """

    @override
    def check(self, probe: Probe, names: Sequence[str]) -> None:
        norms = _following_norms(probe)
        alone = [name.rpartition(".")[0] for name in names if name.rpartition(".")[0] not in norms]
        if alone:
            advice = ", ".join(map(repr, alone))
            raise ValueError(f"BNScale: no batch norm follows {shorten(alone)}; leave it out: exclude=({advice},).")

    @override
    def evidence(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        norms = _following_norms(probe)
        scores = []
        for name, weight in zip(names, _weights(probe.model, names), strict=True):
            layer = name.rpartition(".")[0]
            transposed = isinstance(probe.model.get_submodule(layer), _TRANSPOSED)
            sides = [-1 if d == int(transposed) else 1 for d in range(weight.ndim)]
            scores.append(norms[layer].weight.detach().abs().float().view(sides).expand_as(weight))
        return scores


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _weights(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    return [model.get_parameter(name) for name in names]


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.float64 if tensor.is_floating_point() else None)[:1]


def _following_norms(probe: Probe) -> dict[str, nn.modules.batchnorm._NormBase]:
    """The affine batch norm that reads each module's output, by the module's name, as one pass shows it."""
    makers: dict[int, tuple[str, Tensor]] = {}  # holds the outputs, so that no id is used twice
    norms: dict[str, nn.modules.batchnorm._NormBase] = {}
    handles = []

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Containers and identities return what another module has made: the first to show it is its maker.
            makers.setdefault(id(output), (name, output))

        return hook

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in makers and isinstance(module, nn.modules.batchnorm._NormBase):
            norms[makers[id(args[0])][0]] = module

    for name, module in probe.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            if module.affine:
                handles.append(module.register_forward_pre_hook(look))
        else:
            handles.append(module.register_forward_hook(remember(name)))
    with torch.no_grad():
        probe.loss()
    for handle in handles:
        handle.remove()
    return norms
