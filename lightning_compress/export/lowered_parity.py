"""Comparison of a lowered model with its fake-quantized simulation, tensor by tensor on identical inputs.

End to end, a rounding difference of one step in an early layer can change any output. With the inputs of every segment
taken from the simulation, one step of the scale is the largest difference that rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import Arguments
from lightning_compress.quantization.backend import Backend, Bias, QParams, Weight
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import lower
from lightning_compress.quantization.recording import record


class SplitModel(nn.Module):
    """A lowered model that is split at each quantized activation.

    The activation computed by a segment is an output of the model; the next segment reads the simulation's activation,
    which is an input of the model.

    Args:
        model: A model with quantizers; a copy is lowered.
        inputs: Its positional and keyword arguments.
        backend: Target of the export.

    Attributes:
        feeds: Activations of the simulation in the order of execution, dequantized to FP32.
    """

    def __init__(self, model: nn.Module, inputs: Arguments, backend: Backend) -> None:
        super().__init__()
        self._backend = _SplitBackend(backend)
        lowered = lower(model, inputs, self._backend)
        self.model = lowered.model
        self._qparams = [qparams for qparams in lowered.activations if not qparams.is_requantized]
        _, simulated = record(model, inputs)
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
        self._backend.feeds, self._backend.computed = iter(feeds), []
        self.model(*args, **kwargs)
        return tuple(self._backend.computed)

    def steps(self, computed: Sequence[Tensor]) -> dict[str, int]:
        """Return the largest difference of each activation from the simulation, in steps of its scale.

        Raises:
            ValueError: If one differs by more than a step.
        """
        integers = [
            torch.round(tensor / qparams.scale) + qparams.zero_point
            for tensor, qparams in zip(computed, self._qparams, strict=True)
        ]
        return check_steps(largest_steps([qparams.name for qparams in self._qparams], self._expected, integers))


def split_steps(
    model: nn.Module, inputs: Arguments, backend: Backend, run: Callable[[SplitModel, Arguments], Sequence[Tensor]]
) -> dict[str, int] | None:
    """Compare every quantized activation of a lowered model with the simulation.

    Args:
        model: The model.
        inputs: Its positional and keyword arguments.
        backend: Target of the export.
        run: Runs the split model on arguments in the target's runtime.

    Returns:
        The largest differences in steps of the scale; ``None`` for a model without quantizers.

    Raises:
        ValueError: If one differs by more than a step.
    """
    if not is_quantized(model):
        return None
    split = SplitModel(model, inputs, backend)
    return split.steps(run(split, ((*inputs, split.feeds), {})))


class _SplitBackend(Backend):
    """Continues behind each activation with the next of the feeds."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.unsigned, self.opaque = backend.name, backend.unsigned, backend.opaque
        self.backend = backend
        self.feeds: Iterator[Tensor] = iter(())
        self.computed: list[Tensor] = []

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        if qparams.is_requantized:
            return self.backend.activation(x, qparams)
        self.computed.append(self.backend.activation(x, qparams))
        return self.backend.activation(next(self.feeds), qparams)

    def weight(self, weight: Weight) -> Tensor:
        return self.backend.weight(weight)

    def bias(self, bias: Bias) -> Tensor:
        return self.backend.bias(bias)


def largest_steps(names: Sequence[str], expected: Sequence[Tensor], integers: Sequence[Tensor]) -> dict[str, int]:
    """Return the largest difference of integers by name, over all occurrences of a name.

    >>> largest_steps(["relu", "relu"], [torch.tensor([1, 2])] * 2, [torch.tensor([1, 2]), torch.tensor([4, 2])])
    {'relu': 3}
    """
    steps: dict[str, int] = {}
    for name, ours, theirs in zip(names, expected, integers, strict=True):
        apart = int((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0
        steps[name] = max(apart, steps.get(name, 0))
    return steps


def check_steps(steps: dict[str, int]) -> dict[str, int]:
    """Return the differences unchanged.

    Raises:
        ValueError: If one is larger than a step.
    """
    if wrong := {name: number for name, number in steps.items() if number > 1}:
        worst = max(wrong, key=lambda name: wrong[name])
        raise ValueError(
            f"The file differs from the model in {len(wrong)} of {len(steps)} activations, most in {worst!r} by "
            f"{wrong[worst]} steps of its scale."
        )
    return steps
