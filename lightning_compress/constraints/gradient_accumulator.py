"""Sums over completed optimizer steps of a quantity computed from dense gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_compress.constraints.layer import Layer


class GradientAccumulator:
    """Accumulate one contribution per layer and completed optimizer step.

    Gradients are read before the optimizer steps, while they are still dense, and counted only once the step has been
    made: a step that a ``GradScaler`` skips leaves the sums as they are.

    Args:
        contribution: Maps a weight and its gradient, both float32 and of the same shape, to the tensor to add.

    Attributes:
        sums: Accumulated contributions by parameter name, each of the shape of this rank's shard of the weight.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.ones(1, 2)))
    >>> layer.parameter.grad = torch.tensor([[1.0, -3.0]])
    >>> squares = GradientAccumulator(lambda weight, gradient: gradient.square())
    >>> squares.read([layer])
    >>> squares.step_completed([layer])
    >>> squares.sums["fc.weight"]
    tensor([[1., 9.]])
    """

    def __init__(self, contribution: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.contribution = contribution
        self.sums: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    @torch.no_grad()
    def read(self, layers: Sequence[Layer], scale: float = 1.0) -> None:
        """Read the gradients of a step that is about to be made.

        Args:
            layers: Layers held by the optimizer that steps. A missing gradient counts as zeros.
            scale: Loss scale that the gradients still carry.
        """
        for layer in layers:
            gradient = torch.zeros_like(layer.weight) if layer.parameter.grad is None else layer.gradient
            self._pending[layer.name] = self.contribution(layer.weight.float(), gradient.float() / scale)

    def step_completed(self, layers: Sequence[Layer]) -> None:
        """Add the contributions of the last :meth:`read`, now that the step has been made."""
        for layer in layers:
            if layer.name in self._pending:
                new, old = self._pending.pop(layer.name), self.sums.get(layer.name)
                self.sums[layer.name] = new if old is None else old.add_(new)

    def clear(self) -> None:
        """Forget all sums."""
        self.sums = {}

    def state_dict(self, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Return the sums by parameter name, full tensors on the CPU; a collective for sharded layers."""
        return {layer.name: layer.full(self.sums[layer.name]).cpu() for layer in layers if layer.name in self.sums}

    def load_state_dict(self, layers: Sequence[Layer], state: Mapping[str, Tensor]) -> None:
        """Restore the sums that :meth:`state_dict` returned, as copies on each weight's device."""
        self.sums = {layer.name: layer.local(state[layer.name]).clone() for layer in layers if layer.name in state}
