"""Comparison of a lowered model with its fake-quantized simulation, tensor by tensor on identical inputs.

Differences are in LSB, the unit of the quantized integers. End to end, a difference of 1 LSB in an early layer can
change any output. With the inputs of every segment taken from the simulation, 1 LSB is the largest difference that
rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import Arguments
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, Weight
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import lower
from lightning_compress.quantization.simulation import Simulation


class SplitModel(nn.Module):
    """A lowered model that is split at each quantized activation.

    The activation computed by a segment is an output of the model; the next segment reads the simulation's activation,
    which is an input of the model.

    Args:
        simulation: Run of a model with quantizers.
        operators: Operators of the target.

    Attributes:
        feeds: Activations of the simulation in the order of execution, dequantized to FP32.
    """

    def __init__(self, simulation: Simulation, operators: BackendOperators) -> None:
        super().__init__()
        self._operators = _SplitOperators(operators)
        lowered = lower(simulation, self._operators)
        self.model = lowered.model
        self._qparams = [qparams for qparams in lowered.activations if not qparams.is_requantized]
        simulated = simulation.integers
        assert [name for name, _ in simulated] == [qparams.name for qparams in self._qparams], (
            "both runs quantize alike"
        )
        self._expected = [
            integers + qparams.offset for (_, integers), qparams in zip(simulated, self._qparams, strict=True)
        ]
        self.feeds = [
            (integers - qparams.zero_point) * qparams.scale
            for integers, qparams in zip(self._expected, self._qparams, strict=True)
        ]

    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any], feeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the activation that each segment computes, dequantized to FP32."""
        self._operators.feeds, self._operators.computed = iter(feeds), []
        self.model(*args, **kwargs)
        return tuple(self._operators.computed)

    def lsb_errors(self, computed: Sequence[Tensor]) -> dict[str, int]:
        """Return the largest difference of each activation from the simulation, in LSB.

        Raises:
            ValueError: If one differs by more than 1 LSB.
        """
        integers = [
            torch.round(tensor / qparams.scale) + qparams.zero_point
            for tensor, qparams in zip(computed, self._qparams, strict=True)
        ]
        return check_lsb_errors(max_lsb_errors([qparams.name for qparams in self._qparams], self._expected, integers))


def compare_segments(
    simulation: Simulation, operators: BackendOperators, run: Callable[[SplitModel, Arguments], Sequence[Tensor]]
) -> dict[str, int] | None:
    """Compare every quantized activation of a lowered model with the simulation.

    Args:
        simulation: Run of the model on positional and keyword arguments.
        operators: Operators of the target.
        run: Runs the split model on arguments in the target's runtime.

    Returns:
        The largest differences in LSB; ``None`` for a model without quantizers.

    Raises:
        ValueError: If one differs by more than 1 LSB.
    """
    if not is_quantized(simulation.model):
        return None
    split = SplitModel(simulation, operators)
    return split.lsb_errors(run(split, ((*simulation.inputs, split.feeds), {})))


class _SplitOperators(BackendOperators):
    """Operators of a target that record each activation and continue with the simulation's."""

    def __init__(self, operators: BackendOperators) -> None:
        self.name, self.backend, self.unsigned = operators.name, operators.backend, operators.unsigned
        self.not_propagated = operators.not_propagated
        self.operators = operators
        self.feeds: Iterator[Tensor] = iter(())
        self.computed: list[Tensor] = []

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        if qparams.is_requantized:
            return self.operators.activation(x, qparams)
        self.computed.append(self.operators.activation(x, qparams))
        return self.operators.activation(next(self.feeds), qparams)

    def weight(self, weight: Weight) -> Tensor:
        return self.operators.weight(weight)

    def bias(self, bias: Bias) -> Tensor:
        return self.operators.bias(bias)


def max_lsb_errors(names: Sequence[str], expected: Sequence[Tensor], integers: Sequence[Tensor]) -> dict[str, int]:
    """Return the largest difference of integers by name, over all occurrences of a name.

    >>> max_lsb_errors(["relu", "relu"], [torch.tensor([1, 2])] * 2, [torch.tensor([1, 2]), torch.tensor([4, 2])])
    {'relu': 3}
    """
    errors: dict[str, int] = {}
    for name, simulated, computed in zip(names, expected, integers, strict=True):
        difference = int((simulated.double() - computed.double()).abs().max()) if simulated.numel() else 0
        errors[name] = max(difference, errors.get(name, 0))
    return errors


def check_lsb_errors(errors: dict[str, int]) -> dict[str, int]:
    """Return the differences unchanged.

    Raises:
        ValueError: If one is larger than 1 LSB.
    """
    if wrong := {name: number for name, number in errors.items() if number > 1}:
        worst = max(wrong, key=lambda name: wrong[name])
        raise ValueError(
            f"The file differs from the model in {len(wrong)} of {len(errors)} activations, most in {worst!r} by "
            f"{wrong[worst]} LSB: exclude that layer from quantization, or report a bug."
        )
    return errors
