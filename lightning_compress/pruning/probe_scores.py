"""Scores that are computed in separate passes over a copy of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import fill_missing_gradients, hessian_gradient_product
from lightning_compress.pruning.scores import Score


class Probe(Protocol):
    """Disposable copy of the model in training, with one batch."""

    @property
    def model(self) -> nn.Module:
        """The copy."""

    @property
    def deployable(self) -> nn.Module:
        """Deployable submodule of the copy."""

    def loss(self) -> Tensor:
        """Return the loss of the batch, with a graph."""

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments of ``deployable``."""

    def reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Average tensors over ranks."""


class ProbeScore(Score):
    """Score that is computed on a probe instead of the weights or gradients of training."""

    rounds: int = 1
    """Number of rounds of scoring and pruning in each update of the masks."""
    for_channels: ClassVar[bool] = True
    """True if the scores of channels need a probe as well."""

    def check(self, probe: Probe, names: Sequence[str]) -> None:
        """Check in the first batch of the fit that the named weights can be scored.

        Raises:
            ValueError: If a weight cannot be scored.
        """

    @abstractmethod
    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        """Return the scores of all weights of the named parameters, each of the parameter's shape."""

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        assert accumulated_scores is not None, "a probe score needs score_weights first"
        return accumulated_scores.clone()


def probe_score(score: Score, *, channels: bool) -> ProbeScore | None:
    """Return the score if it needs a probe to rank channels or weights, else ``None``."""
    return score if isinstance(score, ProbeScore) and (score.for_channels or not channels) else None


@dataclass(frozen=True)
class SNIP(ProbeScore):
    """Connection sensitivity, ``|w g|``, on one batch before training. Lee et al. 2019 (arXiv:1810.02340).

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.9, score=lc.SNIP(), schedule=lc.Schedule(begin=0, curve="one_shot")).score
    SNIP()
    """

    @override
    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = named_weights(probe.model, names)
        gradients = fill_missing_gradients(torch.autograd.grad(probe.loss(), weights, allow_unused=True), weights)
        return [(w * g).abs().float() for w, g in zip(weights, probe.reduce(gradients), strict=True)]


@dataclass(frozen=True)
class GraSP(ProbeScore):
    """Preservation of gradient flow, ``w H g``, on one batch before training. Wang et al. 2020 (arXiv:2002.07376).

    The loss is that of the training step; the softmax temperature of the paper is not applied.

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.9, score=lc.GraSP(), schedule=lc.Schedule(begin=0, curve="one_shot")).score
    GraSP()
    """

    @override
    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = named_weights(probe.model, names)
        products = probe.reduce(hessian_gradient_product(probe.loss(), weights, probe.reduce))
        return [(w * hg).float() for w, hg in zip(weights, products, strict=True)]


@dataclass(frozen=True)
class SynFlow(ProbeScore):
    """Synaptic flow, without data and in many rounds to avoid layer collapse. Tanaka et al. 2020 (arXiv:2006.05467).

    Args:
        rounds: Number of rounds of scoring and pruning, with an exponentially decaying density.

    Raises:
        ValueError: If ``rounds`` is below one.

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.9, score=lc.SynFlow(), schedule=lc.Schedule(begin=0, curve="one_shot")).score
    SynFlow(rounds=100)
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"SynFlow(rounds={self.rounds}) must be at least 1.")

    @override
    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        args, kwargs = probe.inputs()
        model = probe.model.double().eval()  # products over many layers overflow in float32
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.abs_()
        args, kwargs = tree_map_only(Tensor, _ones, (args, kwargs))
        output = probe.deployable(*args, **kwargs)
        flow = torch.stack([t.sum() for t in tree_leaves(output) if isinstance(t, Tensor)]).sum()
        weights = named_weights(model, names)
        gradients = fill_missing_gradients(torch.autograd.grad(flow, weights, allow_unused=True), weights)
        return [(w * g).detach() for w, g in zip(weights, gradients, strict=True)]


def named_weights(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return the parameters with the given names."""
    return [model.get_parameter(name) for name in names]


def _ones(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.float64 if tensor.is_floating_point() else None)[:1]
