"""Scores that are found in passes of their own over a copy of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import filled, gradient_flow
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup
from lightning_compress.pruning.scores import Score
from lightning_compress.targets import shorten


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
    probes_channels: ClassVar[bool] = True
    """Whether channels are scored by a probe as well."""

    def check(self, probe: Probe, names: Sequence[str]) -> None:
        """Refuses layers that cannot be scored, with a ``ValueError``, in the first batch of the fit."""

    @abstractmethod
    def accumulated_scores(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        """A score of every weight of the named parameters."""

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        assert accumulated_scores is not None, "a probe score is asked after its probe"
        return accumulated_scores.clone()


def probe_score(score: Score, *, channels: bool) -> ProbeScore | None:
    """The score if it needs passes of its own, to rank channels or weights."""
    return score if isinstance(score, ProbeScore) and (score.probes_channels or not channels) else None


@dataclass(frozen=True)
class SNIP(ProbeScore):
    """Sensitivity of the loss, ``|w g|``, on one batch before training. Lee et al. 2019 (arXiv:1810.02340)."""

    @override
    def accumulated_scores(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        weights = _weights(probe.model, names)
        gradients = filled(torch.autograd.grad(probe.loss(), weights, allow_unused=True), weights)
        return [(w * g).abs().float() for w, g in zip(weights, probe.reduce(gradients), strict=True)]


@dataclass(frozen=True)
class GraSP(ProbeScore):
    """Keeps the gradient flow, ``w H g``, on one batch before training. Wang et al. 2020 (arXiv:2002.07376).

    The loss is the training step's own; the paper's softmax temperature is not applied.
    """

    @override
    def accumulated_scores(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
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
    def accumulated_scores(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
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

    Which norm follows a layer is seen in one pass over a batch. Channels are scored by the norms of their group.
    """

    probes_channels: ClassVar[bool] = False

    @override
    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        """The mean of the scales.

        Raises:
            ValueError: If the group has no batch norm.
        """
        if not coupled.scales:
            raise ValueError(
                f"BNScale: no batch norm scales the channels of {coupled.name!r}; leave it out: "
                f"exclude=({coupled.name!r},)."
            )
        return coupled.sums(coupled.scales, lambda layer: layer.weight.abs()) / len(coupled.scales)

    @override
    def check(self, probe: Probe, names: Sequence[str]) -> None:
        norms = _following_norms(probe)
        alone = [name.rpartition(".")[0] for name in names if name.rpartition(".")[0] not in norms]
        if alone:
            advice = ", ".join(map(repr, alone))
            raise ValueError(f"BNScale: no batch norm follows {shorten(alone)}; leave it out: exclude=({advice},).")

    @override
    def accumulated_scores(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
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
    output_slices: dict[int, tuple[str, Tensor]] = {}  # holds the outputs, so that no id is used twice
    norms: dict[str, nn.modules.batchnorm._NormBase] = {}
    handles = []

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Containers and identities return what another module has made: the first to show it is its maker.
            output_slices.setdefault(id(output), (name, output))

        return hook

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in output_slices and isinstance(module, nn.modules.batchnorm._NormBase):
            norms[output_slices[id(args[0])][0]] = module

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
