"""Base class of constraints on stored weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer


class Constraint(ABC):
    """Linear subspace of allowed weights, and the projection onto it.

    A projection that is linear commutes with averaging and with optimizer updates, so weights, gradients, momenta and
    averages are all projected in the same way.

    Args:
        layers: The constrained weights.

    Attributes:
        layers: The constrained weights.
        frozen: Indices of layers that stay as they are; their weights and gradients are not projected.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.frozen: frozenset[int] = frozenset()
        self._parameters = [layer.parameter for layer in self.layers]

    def project_weights_(self) -> None:
        """Project the weights in place."""
        self._project_({i: p for i, p in enumerate(self._parameters) if i not in self.frozen})

    def project_gradients_(self) -> None:
        """Project the gradients in place, as far as there are any."""
        self._project_(
            {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None and i not in self.frozen}
        )

    def project_state_(self, optimizer: torch.optim.Optimizer) -> None:
        """Project the optimizer state of the weights' shapes (momenta, second moments) in place."""
        for i, parameter in enumerate(self._parameters):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._project_({i: value})

    def project_copy_(self, model: nn.Module) -> None:
        """Project the weights of a copy of the model, such as an average, in place."""
        copies = dict(model.named_parameters(remove_duplicate=False))
        self._project_({i: copies[layer.name] for i, layer in enumerate(self.layers)})

    @abstractmethod
    def is_satisfied(self) -> bool:
        """Return True if this rank's weights are in the subspace."""

    @abstractmethod
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        """Project tensors of the weights' shapes in place, given by the indices of their layers."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the constraint by parameter name: packed masks or assignments; a collective if sharded."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the constraint that :meth:`state_dict` returned.

        Raises:
            ValueError: If it belongs to other weights.
        """

    @abstractmethod
    def digest(self) -> bytes:
        """Return a hash of this rank's constraint, which is equal on all ranks with the same constraint."""
