"""Fake-quantization of the arguments and results of function calls in a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.call_patcher import Action, CallPatcher, CallSite
from lightning_compress.quantization.function_names import CHANNEL_AXIS
from lightning_compress.quantization.placement import QuantizationPoint
from lightning_compress.quantization.quantizer import Quantizer


class FakeQuantizedCall:
    """Action that quantizes the activations, the weight and the result of a function call.

    Attributes:
        operands: Quantizers of activations, by position.
        weight: Quantizer of the weight.
        inner: Quantizer of SiLU's sigmoid.
        output: Quantizer of the result.
    """

    def __init__(self) -> None:
        self.operands: dict[int, Quantizer] = {}
        self.weight: Quantizer | None = None
        self.inner: Quantizer | None = None
        self.output: Quantizer | None = None

    def put(self, role: str, quantizer: Quantizer) -> None:
        """Set the quantizer of a role, see :class:`~lightning_compress.quantization.placement.QuantizationPoint`."""
        if role.startswith("input_"):
            self.operands[int(role.removeprefix("input_"))] = quantizer
        else:
            setattr(self, role, quantizer)

    @property
    def activations(self) -> dict[str, Quantizer]:
        """Quantizers of activations by role.

        Those that have never observed a batch are left out, such as those of experts without tokens, or of calls in
        evaluation alone: what they would quantize stays in FP32.
        """
        quantizers: dict[str, Quantizer | None] = {f"input_{k}": self.operands[k] for k in sorted(self.operands)}
        quantizers |= {"inner": self.inner, "output": self.output}
        return {role: quantizer for role, quantizer in quantizers.items() if quantizer is not None and quantizer.ready}

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the quantized result of the call on quantized arguments."""
        if self.operands:
            args = self._with_operands(module, args)
        if self.weight is not None:
            args, kwargs = with_argument(args, kwargs, 1, "weight", lambda w: self._weight(module, w))
        result = self._silu(module, args[0]) if self.inner is not None else function(*args, **kwargs)
        return result if self.output is None else self.output(module, result)

    def _weight(self, module: nn.Module, weight: Tensor) -> Tensor:
        assert self.weight is not None
        return self.weight(module, weight)

    def _silu(self, module: nn.Module, x: Tensor) -> Tensor:
        # Integer runtimes have no SiLU: they compute a quantized sigmoid and a quantized product.
        assert self.inner is not None
        return x * self.inner(module, torch.sigmoid(x))

    def _with_operands(self, module: nn.Module, args: Any) -> tuple[Any, ...]:
        # The operands of cat and stack are a list in the first argument.
        if isinstance(args[0], (list, tuple)):
            parts = list(args[0])
            for k, quantizer in self.operands.items():
                parts[k] = quantizer(module, parts[k])
            return parts, *args[1:]
        given = list(args)
        for k, quantizer in self.operands.items():
            given[k] = quantizer(module, given[k])
        return tuple(given)


class FakeQuantizePatcher(CallPatcher):
    """CallPatcher with fake-quantization as its actions.

    Args:
        quantizers: Quantizers of one module, by quantization point.

    Attributes:
        quantizers: Quantizers by name.
    """

    def __init__(self, quantizers: Mapping[QuantizationPoint, Quantizer]) -> None:
        actions: dict[CallSite, FakeQuantizedCall] = {}
        defaults: dict[str, FakeQuantizedCall] = {}
        for point, quantizer in quantizers.items():
            if point.call.function:
                actions.setdefault(point.call, FakeQuantizedCall()).put(point.role, quantizer)
        # The weight of a layer belongs to no single call: it is quantized in those that have quantizers of activations,
        # and, as the default action, in calls that the traced run did not make.
        for point, quantizer in quantizers.items():
            if not point.call.function:
                for call, action in actions.items():
                    if call.function in CHANNEL_AXIS:
                        action.weight = quantizer
                for function in CHANNEL_AXIS:
                    defaults.setdefault(function, FakeQuantizedCall()).weight = quantizer
        kinds: tuple[dict[CallSite, Action], dict[str, Action]] = ({**actions}, {**defaults})
        super().__init__(*kinds)
        self.quantizers = {point.name: quantizer for point, quantizer in quantizers.items()}


def with_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str, change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with one of them changed, given by position or by keyword.

    >>> with_argument((1, 2), {}, 1, "weight", lambda w: 10 * w)
    ((1, 20), {})
    """
    if len(args) > index:
        return (*args[:index], change(args[index]), *args[index + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: change(kwargs[name])}
