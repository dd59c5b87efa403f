"""Layers that compute with softly clustered weights, while the weights themselves stay free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.clustering.layout import Layout
from lightning_compress.functional.soft_kmeans import soft_assign

_KEY = "_soft_clusters"
_SHARPEST = 1e-3  # of the temperature there is at the beginning


class SoftClusters:
    """What a module computes with in place of one of its weights.

    Args:
        layout: Which weights have a codebook of their own.
        codebooks: Values of the clusters, that of zeros aside, shape (codebooks, clusters).
        variances: Of the weights about their values, shape (codebooks,).
        masses: What each weight counts, of its shape; 0 where it stays zero.

    Attributes:
        sharpness: From 0, where weights blend as in a mixture of Gaussians, to 1, where they hardly do.
    """

    def __init__(self, layout: Layout, codebooks: Tensor, variances: Tensor, masses: Tensor | None = None) -> None:
        self.layout = layout
        self.codebooks = codebooks
        self.variances = variances
        self.masses = masses
        self.sharpness = 0.0
        self._moved: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """The softly clustered weight; gradients flow to the free one."""
        rows = self.layout.rows(weight if weight.dtype == torch.float64 else weight.float())
        masses = self.masses
        if masses is None and self.layout.is_padded:
            masses = torch.ones_like(weight)
        temperatures = 2 * self.variances * max((1 - self.sharpness) ** 2, _SHARPEST)
        soft, moved = soft_assign(
            rows, self.codebooks, temperatures, None if masses is None else self.layout.rows(masses)
        )
        if torch.is_grad_enabled():
            self._moved = moved
        soft = self.layout.weight(soft).to(weight.dtype)
        return soft if self.masses is None else soft.masked_fill(self.masses == 0, 0.0)

    def advance(self) -> None:
        """Takes over the codebooks that the last training batch has moved; until then each pass sees the same."""
        if self._moved is not None:
            self.codebooks, self._moved = self._moved, None

    def state_dict(self) -> dict[str, Tensor | None]:
        """All that it knows."""
        tensors = {"codebooks": self.codebooks, "variances": self.variances, "masses": self.masses}
        return {name: None if tensor is None else tensor.cpu() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, layout: Layout, state: Mapping[str, Any], device: torch.device) -> SoftClusters:
        """What has given a state."""
        tensors: Any = {name: None if tensor is None else tensor.to(device) for name, tensor in state.items()}
        return cls(layout, **tensors)


def soften(module: nn.Module, attribute: str, clusters: SoftClusters) -> None:
    """Lets a module compute with softly clustered weights; class, parameters and state dict stay as they are."""
    if _KEY not in vars(module):
        vars(module)[_KEY] = {}
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)
    vars(module)[_KEY][attribute] = clusters


def harden(model: nn.Module) -> None:
    """Lets all modules of a model compute with their own weights again."""
    for module in model.modules():
        if vars(module).pop(_KEY, None) is None:
            continue
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


def soft_clusters_of(model: nn.Module) -> Iterable[tuple[str, SoftClusters]]:
    """The names of softly clustered weights, and what stands for them."""
    for name, module in model.named_modules():
        for attribute, clusters in vars(module).get(_KEY, {}).items():
            yield f"{name}.{attribute}".lstrip("."), clusters


# An attribute of the instance hides the parameter of that name, which the optimizer and the state dict see.
def _enter(module: nn.Module, args: Any) -> None:
    for attribute, clusters in vars(module)[_KEY].items():
        vars(module)[attribute] = clusters(module._parameters[attribute])


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    for attribute in vars(module)[_KEY]:
        vars(module).pop(attribute, None)
