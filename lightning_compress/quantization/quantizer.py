"""One tensor's simulated integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_compress.functional.fake_quantize import (
    fake_quantize,
    fake_quantize_learned,
    qparams_from_range,
    quantize,
    round_zero_point,
)
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.observers import Learned, RangeStatistics

PREFIX = "quant_"
"""Begins the names of buffers and parameters that belong to a quantizer."""

_SMALLEST = torch.finfo(torch.float32).tiny * 2**24
_AT_LEAST = 16  # samples of a batch, where only a part of it is looked at
_SMALL = 4096  # values that are looked at all together


class Quantizer:
    """Rounds a tensor to integers and back, on its way through a module.

    Scale and zero point are buffers of that module (parameters if they are learned), so that they travel with it; a
    scale of zero means that no batch has been observed, and leaves the tensor as it is.

    Args:
        name: Of the place in the module, such as ``"weight"`` or ``"relu"``.
        integers: What stands for the tensor.
        axis: Dimension of the channels, for scales of channels.
        is_weight: Whether the tensor is looked at anew in every pass, and at once.

    Attributes:
        observing: Look at one part in so many of each batch; 0: do not look.
        quantizing: Whether to round.
        ready: Whether there is a scale.
        observed: What was observed since the last update.
        statistics: What the observer knows.
    """

    def __init__(self, name: str, integers: Int, *, axis: int = 0, is_weight: bool = False) -> None:
        self.name = name
        self.integers = integers
        self.axis = axis
        self.is_weight = is_weight
        self.observing = 0
        self.quantizing = True
        self.ready = False
        self.observed: RangeStatistics | None = None
        self.statistics: RangeStatistics | None = None

    @property
    def is_learned(self) -> bool:
        """Whether the scale is a parameter."""
        return isinstance(self.integers.observer, Learned)

    @property
    def counts_batches(self) -> bool:
        """Whether what was observed in several batches must not be merged, as the range moves from one to the next."""
        return self.integers.observer is not None and self.integers.observer.counts_batches

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names in the module of the scale and, unless it is always zero, the zero point."""
        suffixes = ("scale",) if self.integers.symmetric else ("scale", "zero_point")
        return tuple(f"{PREFIX}{self.name}_{suffix}" for suffix in suffixes)

    def attach(self, module: nn.Module, shape: torch.Size) -> None:
        """Registers scale and zero point with a module; ``shape`` is that of a scale, see :meth:`scale_shape`."""
        for name in self.tensor_names:
            value = torch.zeros(shape, dtype=torch.float32, device=_device(module))
            if self.is_learned:
                module.register_parameter(name, nn.Parameter(value))
            else:
                module.register_buffer(name, value)

    def detach(self, module: nn.Module) -> None:
        """Takes scale and zero point out of the module."""
        for name in self.tensor_names:
            delattr(module, name)

    def take(self, module: nn.Module, other_module: nn.Module, other: Quantizer) -> None:
        """Takes scale and zero point of the same quantizer in another module."""
        if other.ready:
            self._set(module, other.scale(other_module).detach(), other.zero_point(other_module).detach())

    def scale_shape(self, shape: torch.Size) -> torch.Size:
        """Shape of the scale for a tensor of a shape."""
        match self.integers.granularity:
            case "tensor":
                return torch.Size()
            case "channel":
                return torch.Size([shape[self.axis]])
            case group:
                assert isinstance(group, int)
                return torch.Size([shape[0], shape[1] // group])

    def scale(self, module: nn.Module) -> Tensor:
        """The scale, positive, as it is registered."""
        return getattr(module, f"{PREFIX}{self.name}_scale")

    def zero_point(self, module: nn.Module) -> Tensor:
        """The zero point, as it is registered."""
        if self.integers.symmetric:
            return torch.zeros_like(self.scale(module))
        return getattr(module, f"{PREFIX}{self.name}_zero_point")

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Looks at ``x`` if that is due, and rounds it if that is due."""
        if self.observing:
            self._look(module, x)
        if not (self.quantizing and self.ready):
            return self._with_scale(module, x) if self.is_learned else x
        grouped = self._grouped(x)
        quant_min, quant_max = self.integers.quant_min, self.integers.quant_max
        scale, zero_point = (self._against(t, grouped) for t in (self.scale(module), self.zero_point(module)))
        if self.is_learned:
            num_values = x.numel() // scale.numel() if self.is_weight else math.prod(x.shape[1:])
            # An optimizer may step across zero; the gradient turns round with the sign.
            scale = scale.abs() + _SMALLEST
            learned = fake_quantize_learned(
                grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max, num_values=num_values
            )
            return learned.view_as(x)
        # Rounded, as averages of models are not whole; a copy, as a second call of a layer sets its scale anew.
        scale, zero_point = scale.clone(), round_zero_point(zero_point, quant_min=quant_min, quant_max=quant_max)
        # What a range clips that is still being looked for gets its gradient: activations that outgrow their ranges
        # would not be held back any more, and a network that is trained from scratch diverges.
        masks = self.is_weight or not self.observing
        return fake_quantize(
            grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max, masks_gradient=masks
        ).view_as(x)

    def to_integers(self, module: nn.Module, x: Tensor) -> Tensor:
        """The integers, as int32, that stand for ``x``."""
        grouped = self._grouped(x)
        scale, zero_point = (self._against(t.detach(), grouped) for t in self.grid(module))
        quant_min, quant_max = self.integers.quant_min, self.integers.quant_max
        return quantize(grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max).view_as(x)

    def grid(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are applied: positive, and whole."""
        scale = self.scale(module)
        zero_point = round_zero_point(
            self.zero_point(module), quant_min=self.integers.quant_min, quant_max=self.integers.quant_max
        )
        return scale.abs() + _SMALLEST if self.is_learned else scale, zero_point

    def update(self, module: nn.Module) -> None:
        """Turns what was observed since the last update, reduced over ranks by then, into scale and zero point."""
        if self.observed is None:
            return
        new, self.observed = self.observed, None
        observer = self.integers.observer
        assert observer is not None
        self.statistics = observer.updated(None if self.is_weight else self.statistics, new)
        if not self._is_trained():
            self._set(module, *_grid_of(self.integers, self.statistics))

    @torch.no_grad()
    def _set(self, module: nn.Module, scale: Tensor, zero_point: Tensor) -> None:
        self.scale(module).copy_(scale.view_as(self.scale(module)))
        if not self.integers.symmetric:
            self.zero_point(module).copy_(zero_point.view_as(self.scale(module)))
        self.ready = True

    def _is_trained(self) -> bool:
        """Whether the scale is the optimizer's by now; until numbers are rounded, it follows what is observed."""
        return self.is_learned and self.ready and self.quantizing

    def _with_scale(self, module: nn.Module, x: Tensor) -> Tensor:
        """The same tensor, with gradients of zero for scale and zero point: DDP waits for some of every parameter."""
        learned = [getattr(module, name).sum() for name in self.tensor_names]
        return x + 0.0 * torch.stack(learned).sum() if torch.is_grad_enabled() and x.is_floating_point() else x

    @torch.no_grad()
    def _look(self, module: nn.Module, x: Tensor) -> None:
        assert self.integers.observer is not None
        if self._is_trained():
            return
        if not self.is_weight and self.observing > 1 and _may_be_a_batch(x):
            # Values at the front of memory: strides would cost more than they save.
            x = x[: max(_AT_LEAST, len(x) // self.observing)]
        new = self.integers.observer.observe(self._rows(x.detach()))
        self.observed = new if self.is_weight or self.observed is None else self.observed.merged(new)
        if self.is_weight:
            self.update(module)

    def _grouped(self, x: Tensor) -> Tensor:
        group = self.integers.granularity
        return x.unflatten(1, (-1, group)) if isinstance(group, int) else x

    def _against(self, values: Tensor, grouped: Tensor) -> Tensor:
        """Scales in a shape that broadcasts against the tensor."""
        match self.integers.granularity:
            case "tensor":
                return values
            case "channel":
                return values.view([-1 if dim == self.axis else 1 for dim in range(grouped.ndim)])
            case _:
                return values.unsqueeze(2)

    def _rows(self, x: Tensor) -> Tensor:
        """One row for each scale, float32 or wider."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        match self.integers.granularity:
            case "tensor":
                return x.reshape(1, -1)
            case "channel":
                return x.movedim(self.axis, 0).flatten(1)
            case _:
                return self._grouped(x).flatten(0, 1)


class QuantizationPoint(Protocol):
    """A quantizer and the module that it is in."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer."""


def update_together(integers: Int, places: Sequence[QuantizationPoint]) -> None:
    """As :meth:`Quantizer.update`, for activations of the same integers at a stroke where nothing is searched for."""
    observer = integers.observer
    assert observer is not None
    if observer.bins:
        for place in places:
            place.quantizer.update(place.module)
        return
    observed = [place.quantizer.observed for place in places]
    new = [s.min_max for s in observed if s is not None]
    before = [
        n if p.quantizer.statistics is None else p.quantizer.statistics.min_max
        for p, n in zip(places, new, strict=True)
    ]
    none = new[0].new_empty(len(new), 0)
    statistics = observer.updated(RangeStatistics(torch.cat(before), none), RangeStatistics(torch.cat(new), none))
    scale, zero_point = _grid_of(integers, statistics)
    for i, place in enumerate(places):
        place.quantizer.statistics = RangeStatistics(statistics.min_max[i : i + 1], none[i : i + 1])
        place.quantizer.observed, place.quantizer.ready = None, True
    with torch.no_grad():
        torch._foreach_copy_([p.quantizer.scale(p.module) for p in places], list(scale.float().unbind()))
        if not integers.symmetric:
            torch._foreach_copy_([p.quantizer.zero_point(p.module) for p in places], list(zero_point.float().unbind()))


def _grid_of(integers: Int, statistics: RangeStatistics) -> tuple[Tensor, Tensor]:
    """Scale and zero point, one a row; rows of activations are tensors of their own."""
    observer = integers.observer
    assert observer is not None
    symmetric = bool(integers.symmetric)
    ends = observer.compute_range(
        statistics, num_levels=integers.quant_max - integers.quant_min + 1, symmetric=symmetric
    )
    if integers.granularity == "tensor":
        ends = (ends[0].unsqueeze(1), ends[1].unsqueeze(1))
    scale, zero_point = qparams_from_range(
        *ends, quant_min=integers.quant_min, quant_max=integers.quant_max, symmetric=symmetric
    )
    return scale.flatten(), zero_point.flatten()


def _may_be_a_batch(x: Tensor) -> bool:
    """Whether samples may be left out; the first dimension of a factor for each channel is not that of samples."""
    return x.ndim > 1 and x.numel() > _SMALL and not isinstance(x, nn.Parameter)


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None
