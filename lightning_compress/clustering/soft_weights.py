"""Modules that compute with softly clustered weights, for differentiable k-means (DKM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.clustering.layout import Layout
from lightning_compress.functional.soft_kmeans import soft_assign

_KEY = "_soft_clusters"
_MIN_TEMPERATURE = 1e-3  # as a fraction of the initial temperature


class SoftClusters:
    """Soft assignment of one weight to its codebooks.

    Args:
        layout: Layout of the weight in rows with a codebook each.
        codebooks: Centers without the pinned zero, shape (codebooks, clusters).
        variances: Variance of the weights about their centers, shape (codebooks,).
        masses: Mass of each weight, of the weight's shape, 0 where the weight stays zero; ``None`` if all are equal.

    Attributes:
        sharpness: From 0, the soft assignment of a Gaussian mixture, to 1, a nearly hard assignment.
    """

    def __init__(self, layout: Layout, codebooks: Tensor, variances: Tensor, masses: Tensor | None = None) -> None:
        self.layout = layout
        self.codebooks = codebooks
        self.variances = variances
        self.masses = masses
        self.sharpness = 0.0
        self._moved: Tensor | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the softly clustered weight; gradients flow to ``weight``."""
        rows = self.layout.to_rows(weight if weight.dtype == torch.float64 else weight.float())
        masses = self.masses
        # Zeros that pad the last row must not attract centers.
        if masses is None and self.layout.is_padded:
            masses = torch.ones_like(weight)
        # exp(-d^2 / (2 variance)) is the density of a Gaussian: at sharpness 0 attention is its posterior.
        temperatures = 2 * self.variances * max((1 - self.sharpness) ** 2, _MIN_TEMPERATURE)
        soft, moved = soft_assign(
            rows, self.codebooks, temperatures, None if masses is None else self.layout.to_rows(masses)
        )
        # Not replaced here: activation checkpointing and shared modules run the forward pass of a batch repeatedly, and
        # each must see the same codebooks. Validation, without gradients, moves nothing.
        if torch.is_grad_enabled():
            self._moved = moved
        soft = self.layout.from_rows(soft).to(weight.dtype)
        return soft if self.masses is None else soft.masked_fill(self.masses == 0, 0.0)

    def update_codebooks(self) -> None:
        """Replace the codebooks by those that the last forward pass with gradients has moved, if any."""
        if self._moved is not None:
            self.codebooks, self._moved = self._moved, None

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return codebooks, variances and masses, on the CPU."""
        tensors = {"codebooks": self.codebooks, "variances": self.variances, "masses": self.masses}
        return {name: None if tensor is None else tensor.cpu() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, layout: Layout, state: Mapping[str, Any], device: torch.device) -> SoftClusters:
        """Create soft clusters from :meth:`state_dict`."""
        tensors: Any = {name: None if tensor is None else tensor.to(device) for name, tensor in state.items()}
        return cls(layout, **tensors)


def soften(module: nn.Module, attribute: str, clusters: SoftClusters) -> None:
    """Make a module compute with a softly clustered weight; its class, parameters and state dict do not change.

    Args:
        module: Module that owns the weight.
        attribute: Name of the weight in the module.
        clusters: Its soft clusters; they replace earlier ones.
    """
    if _KEY not in vars(module):
        vars(module)[_KEY] = {}
        module.register_forward_pre_hook(_replace_weights)
        # Also after an exception, which would otherwise leave the soft weight in place of the parameter.
        module.register_forward_hook(_restore_weights, always_call=True)
    vars(module)[_KEY][attribute] = clusters


def harden(model: nn.Module) -> None:
    """Make all modules of a model compute with their own weights again."""
    for module in model.modules():
        if vars(module).pop(_KEY, None) is None:
            continue
        # Found by function, not by handle: copies and unpickled modules have hooks without a handle.
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_replace_weights, _restore_weights)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


# Plain functions that read the module, as closures over a module would refer to the original in its copies. An
# attribute in the instance's dict hides the parameter of that name, while optimizer and state dict still see it.
def _replace_weights(module: nn.Module, args: Any) -> None:
    for attribute, clusters in vars(module)[_KEY].items():
        _set(module, attribute, clusters(module._parameters[attribute]))


def _restore_weights(module: nn.Module, args: Any, output: Any) -> None:
    for attribute in vars(module)[_KEY]:
        _set(module, attribute, None)


def _set(module: nn.Module, attribute: str, weight: Tensor | None) -> None:
    """Let a module compute with a weight in place of its parameter, or with its parameter again."""
    if weight is None:
        vars(module).pop(attribute, None)
    else:
        vars(module)[attribute] = weight
    # LSTM and GRU pass a list of their weights to the kernel instead of reading their attributes.
    if isinstance(module, nn.RNNBase):
        position = module._flat_weights_names.index(attribute)
        module._flat_weights[position] = module._parameters[attribute] if weight is None else weight
