"""Comparing a lowered model with its simulation place by place, each computed from the simulation's own numbers.

End to end, one step in an early layer may turn into anything; on identical inputs a step is all that rounding explains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import Arguments
from lightning_compress.quantization.backend import Backend, Bias, QParams, Weight
from lightning_compress.quantization.lowering import lower
from lightning_compress.quantization.recording import record


class SplitModel(nn.Module):
    """A lowered model in pieces: each quantized activation is given out, and what is read in its place is fed in.

    Args:
        model: A model with quantizers, which stays as it is.
        inputs: What it is called with.
        dialect: How integers are written.
        unsigned: Activations are uint8, else int8.

    Attributes:
        feeds: The simulation's activations, in the order of the run, as floats on their grids.
    """

    def __init__(self, model: nn.Module, inputs: Arguments, dialect: Backend, *, unsigned: bool) -> None:
        super().__init__()
        self._pieces = _Pieces(dialect)
        lowered = lower(model, inputs, self._pieces, unsigned=unsigned)
        self.model = lowered.model
        self._grids = [grid for grid in lowered.grids if not grid.is_again]
        _, simulated = record(model, inputs)
        assert [name for name, _ in simulated] == [grid.name for grid in self._grids], "one run is like the other"
        self._expected = [integers + grid.offset for (_, integers), grid in zip(simulated, self._grids, strict=True)]
        self.feeds = [
            (integers - grid.zero_point) * grid.scale
            for integers, grid in zip(self._expected, self._grids, strict=True)
        ]

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any], feeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What each piece makes, as floats on its grid."""
        self._pieces.feeds, self._pieces.made = iter(feeds), []
        self.model(*args, **kwargs)
        return tuple(self._pieces.made)

    def steps(self, made: Sequence[Tensor]) -> dict[str, int]:
        """How far each place is from the simulation.

        Raises:
            ValueError: If one differs by more than a step.
        """
        integers = [
            torch.round(tensor / grid.scale) + grid.zero_point for tensor, grid in zip(made, self._grids, strict=True)
        ]
        return checked(steps_apart([grid.name for grid in self._grids], self._expected, integers))


class _Pieces:
    """A dialect that begins anew behind each activation."""

    def __init__(self, dialect: Backend) -> None:
        self.dialect = dialect
        self.opaque = dialect.opaque
        self.feeds: Iterator[Tensor] = iter(())
        self.made: list[Tensor] = []

    def activation(self, x: Tensor, grid: QParams) -> Tensor:
        if grid.is_again:
            return self.dialect.activation(x, grid)
        self.made.append(self.dialect.activation(x, grid))
        return self.dialect.activation(next(self.feeds), grid)

    def weight(self, weight: Weight) -> Tensor:
        return self.dialect.weight(weight)

    def bias(self, bias: Bias) -> Tensor:
        return self.dialect.bias(bias)


def steps_apart(names: Sequence[str], expected: Sequence[Tensor], integers: Sequence[Tensor]) -> dict[str, int]:
    """Largest difference of integers by place; a place that is passed more than once counts with its worst."""
    worst: dict[str, int] = {}
    for name, ours, theirs in zip(names, expected, integers, strict=True):
        apart = int((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0
        worst[name] = max(apart, worst.get(name, 0))
    return worst


def checked(steps: dict[str, int]) -> dict[str, int]:
    """The same.

    Raises:
        ValueError: If a place differs by more than a step.
    """
    if wrong := {name: number for name, number in steps.items() if number > 1}:
        worst = max(wrong, key=lambda name: wrong[name])
        raise ValueError(
            f"The file differs from the model at {len(wrong)} of {len(steps)} places, at {worst!r} by {wrong[worst]} "
            "steps of its scale."
        )
    return steps
