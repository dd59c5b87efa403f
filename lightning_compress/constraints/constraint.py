"""Base class of constraints on stored weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import Buffers, make_batches


class Constraint(ABC):
    """Linear subspace of allowed weights, and the projection onto it.

    A projection that is linear commutes with averaging and with optimizer updates, so weights, gradients, momenta and
    averages are all projected in the same way.

    Args:
        layers: The constrained weights.

    Attributes:
        layers: The constrained weights.
        frozen: Indices of layers that stay as they are; their weights and gradients are not projected.
        batches: Indices of the layers that are processed together.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.frozen: frozenset[int] = frozenset()
        self.batches = make_batches(self.layers)
        self._buffers = Buffers()
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
        by_key: dict[str, dict[int, Tensor]] = {}
        for i, parameter in enumerate(self._parameters):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    by_key.setdefault(key, {})[i] = value
        for tensors in by_key.values():
            self._project_(tensors)

    def project_copy_(self, model: nn.Module) -> None:
        """Project the weights of a copy of the model, such as an average, in place."""
        copies = dict(model.named_parameters(remove_duplicate=False))
        self._project_({i: copies[layer.name] for i, layer in enumerate(self.layers)})

    def trained_batches(self) -> Iterator[list[int]]:
        """Yield the batches without the layers that stay as they are."""
        yield from self._batches_of({i: p for i, p in enumerate(self._parameters) if i not in self.frozen})

    def _batches_of(self, tensors: Mapping[int, Tensor]) -> Iterator[list[int]]:
        """Yield the batches of the layers for which there is a tensor."""
        for batch in self.batches:
            members = batch if len(tensors) == len(self.layers) else [i for i in batch if i in tensors]
            if members:
                yield members

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
