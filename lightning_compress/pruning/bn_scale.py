"""Scores from the scales of batch norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from typing_extensions import override

from lightning_compress.pruning.probe_scores import Probe, ProbeScore, named_weights
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup
from lightning_compress.targets import shorten


@dataclass(frozen=True)
class BNScale(ProbeScore):
    """Absolute scale of the batch norm that follows a layer, the same for all weights of an output channel.

    The norm is found in a forward pass on one batch. Channels score by the mean over the batch norms of their group.
    Network slimming, Liu et al. 2017 (arXiv:1708.06519).

    Raises:
        ValueError: In the first batch of the fit, if no affine batch norm follows a layer or scales a channel group.

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.5, pattern=lc.Channels(), score=lc.BNScale()).score
    BNScale()
    """

    for_channels: ClassVar[bool] = False

    @override
    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        if not ranked.norm_scales:
            raise ValueError(
                f"BNScale: no batch norm scales the channels of {ranked.name!r}; exclude them: "
                f"Targets(exclude=({ranked.name!r},))."
            )
        return ranked.sum_per_channel(ranked.norm_scales, lambda layer: layer.weight.abs()) / len(ranked.norm_scales)

    @override
    def check(self, probe: Probe, names: Sequence[str]) -> None:
        norms = _following_norms(probe)
        without = [name.rpartition(".")[0] for name in names if name.rpartition(".")[0] not in norms]
        if without:
            globs = ", ".join(map(repr, without))
            raise ValueError(
                f"BNScale: no batch norm follows {shorten(without)}; exclude such layers: Targets(exclude=({globs},))."
            )

    @override
    def score_weights(self, probe: Probe, names: Sequence[str]) -> list[Tensor]:
        norms = _following_norms(probe)
        scores = []
        for name, weight in zip(names, named_weights(probe.model, names), strict=True):
            layer = name.rpartition(".")[0]
            output_dim = 1 if isinstance(probe.model.get_submodule(layer), _ConvTransposeNd) else 0
            shape = [-1 if dim == output_dim else 1 for dim in range(weight.ndim)]
            scores.append(norms[layer].weight.detach().abs().float().view(shape).expand_as(weight))
        return scores


def _following_norms(probe: Probe) -> dict[str, _NormBase]:
    """Return the affine batch norm that takes each module's output, by the module's name, as seen in one pass."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # keeps the outputs alive, so that no id is used twice
    norms: dict[str, _NormBase] = {}
    handles = []

    def record_output(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Containers and identities return the output of another module, whose hook has run before.
            outputs.setdefault(id(output), (name, output))

        return hook

    def find_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in outputs and isinstance(module, _NormBase):
            norms[outputs[id(args[0])][0]] = module

    for name, module in probe.model.named_modules():
        if isinstance(module, _NormBase):
            if module.affine:
                handles.append(module.register_forward_pre_hook(find_norm))
        else:
            handles.append(module.register_forward_hook(record_output(name)))
    with torch.no_grad():
        probe.loss()
    for handle in handles:
        handle.remove()
    return norms
