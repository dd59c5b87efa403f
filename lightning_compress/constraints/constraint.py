"""What all constraints on stored weights have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer


class Constraint(ABC):
    """A set of allowed weights, a linear subspace, and the projection onto it.

    Args:
        layers: The constrained weights.

    Attributes:
        layers: The same.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self._parameters = [layer.parameter for layer in self.layers]

    def project_weights_(self) -> None:
        """Projects the weights."""
        self._project_(dict(enumerate(self._parameters)))

    def project_gradients_(self) -> None:
        """Projects the gradients, where there are any."""
        self._project_({i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None})

    def project_state_(self, optimizer: torch.optim.Optimizer) -> None:
        """Projects what an optimizer keeps of weights: momenta, second moments."""
        for i, parameter in enumerate(self._parameters):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._project_({i: value})

    def project_copy_(self, model: nn.Module) -> None:
        """Projects the weights of a copy of the model, such as an average."""
        copies = dict(model.named_parameters(remove_duplicate=False))
        self._project_({i: copies[layer.name] for i, layer in enumerate(self.layers)})

    @abstractmethod
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        """Projects tensors of the weights' shapes, by the indices of their layers, in place."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """The constraint as whole tensors by the names of the weights; a collective if sharded."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes the constraint of :meth:`state_dict`.

        Raises:
            ValueError: If it is of other weights than these.
        """

    @abstractmethod
    def digest(self) -> bytes:
        """A hash of this rank's constraint, equal on all ranks that decided alike."""
