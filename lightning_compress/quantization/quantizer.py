"""Uniform affine quantizer for one tensor of a module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_compress.constraints.layer import local_shard
from lightning_compress.functional.fake_quantize import (
    MIN_SCALE,
    fake_quantize,
    fake_quantize_learned,
    qparams_from_range,
    quantize,
)
from lightning_compress.functional.rounding import round_zero_point
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.observers import Learned, RangeStatistics
from lightning_compress.sharded_modules import full_tensor, map_shard, shard_along, without_partial_sums

PREFIX = "quant_"
"""Prefix of the names of buffers and parameters that belong to a quantizer."""

_MIN_SAMPLES = 16  # observed of each batch, if only a part of it is
_MIN_SUBSAMPLED = 4096  # number of values up to which a tensor is observed as a whole


class Quantizer:
    """Fake-quantizes a tensor of a module.

    Scale and zero point are buffers of that module (parameters if they are learned) and are saved, moved and averaged
    with it. A scale of zero means that no batch has been observed; the tensor is then returned unchanged.

    Args:
        name: Name of the quantization point in the module, for example ``"weight"`` or ``"relu"``.
        spec: Bit width, granularity and observer, with all fields filled in.
        axis: Channel dimension, for per-channel scales.
        is_weight: The tensor is a weight: it is observed, and its scale updated, in every forward pass.

    Attributes:
        observing: Divisor of the batch: the first ``1 / observing`` of each batch is observed; 0 for none.
        quantizing: Fake-quantize the tensor.
        ready: The scale has been set.
        observed: Statistics since the last update.
        statistics: Statistics accumulated by the observer over all updates.
        shared: Quantizers with the same scale, this one among them; empty for a scale of its own.
    """

    def __init__(self, name: str, spec: Int, *, axis: int = 0, is_weight: bool = False) -> None:
        self.name = name
        self.spec = spec
        self.axis = axis
        self.is_weight = is_weight
        self.observing = 0
        self.quantizing = True
        self.ready = False
        self.observed: RangeStatistics | None = None
        self.statistics: RangeStatistics | None = None
        self.shared: list[Quantizer] = []

    @property
    def is_learned(self) -> bool:
        """True if the scale is a parameter."""
        return isinstance(self.spec.observer, Learned)

    @property
    def updates_per_batch(self) -> bool:
        """True if :meth:`update` must be called after each batch."""
        return self.spec.observer is not None and self.spec.observer.updates_per_batch

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names in the module of the scale and, for affine quantizers, the zero point."""
        suffixes = ("scale",) if self.spec.symmetric else ("scale", "zero_point")
        return tuple(f"{PREFIX}{self.name}_{suffix}" for suffix in suffixes)

    def attach(self, module: nn.Module, shape: torch.Size) -> None:
        """Register scale and zero point of a shape with a module; see :meth:`scale_shape`."""
        for name in self.tensor_names:
            value = torch.zeros(shape, dtype=torch.float32, device=_device(module))
            if self.is_learned:
                module.register_parameter(name, nn.Parameter(value))
            else:
                module.register_buffer(name, value)

    def detach(self, module: nn.Module) -> None:
        """Remove scale and zero point from the module."""
        for name in self.tensor_names:
            delattr(module, name)

    def copy_from(self, module: nn.Module, other_module: nn.Module, other: Quantizer) -> None:
        """Copy scale and zero point from the same quantizer in another module, if that one is ready."""
        if other.ready:
            self._set(module, other.scale(other_module).detach(), other.zero_point(other_module).detach())

    def scale_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the scale for a tensor of a shape."""
        match self.spec.granularity:
            case "tensor":
                return torch.Size()
            case "channel":
                return torch.Size([shape[self.axis]])
            case group:
                assert isinstance(group, int)
                return torch.Size([shape[0], shape[1] // group])

    def scale(self, module: nn.Module) -> Tensor:
        """Return the registered scale."""
        return local_shard(getattr(module, f"{PREFIX}{self.name}_scale"))

    def zero_point(self, module: nn.Module) -> Tensor:
        """Return the registered zero point."""
        if self.spec.symmetric:
            return torch.zeros_like(self.scale(module))
        return local_shard(getattr(module, f"{PREFIX}{self.name}_zero_point"))

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """Observe and fake-quantize ``x`` if ``observing`` and ``quantizing`` are set."""
        if isinstance(x, DTensor):
            x = without_partial_sums(x)
        if self.observing:
            # Ranges of activations are reduced over ranks after the batch, those of weights are set at once.
            self._observe(module, full_tensor(x) if self.is_weight else local_shard(x))
        if not (self.quantizing and self.ready):
            return self._with_zero_gradients(module, x) if self.is_learned else x
        qparams = self.scale(module), self.zero_point(module)
        if isinstance(x, DTensor):
            scale, zero_point = (self._shard_for(values, x) for values in qparams)
            return map_shard(x, lambda shard: self._fake_quantize(shard, scale, zero_point))
        return self._fake_quantize(x, *qparams)

    def _fake_quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        grouped = self._grouped(x)
        quant_min, quant_max = self.spec.quant_min, self.spec.quant_max
        scale, zero_point = self._broadcast(scale, grouped), self._broadcast(zero_point, grouped)
        if self.is_learned:
            # LSQ's gradient scale counts the values that share a scale; the batch dimension is left out, because
            # gradient accumulation and ranks may divide a batch in any way.
            num_values = x.numel() // scale.numel() if self.is_weight else math.prod(x.shape[1:])
            # An optimizer step may take the scale across zero; abs() flips the gradient with the sign.
            scale = scale.abs() + MIN_SCALE
            learned = fake_quantize_learned(
                grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max, num_values=num_values
            )
            return learned.view_as(x)
        # Averaged models (EMA) have fractional zero points. The scale is cloned, because a second call of a shared
        # layer writes a new one in place before the backward pass of the first.
        scale, zero_point = scale.clone(), round_zero_point(zero_point, quant_min=quant_min, quant_max=quant_max)
        # While ranges are still observed, clipped activations keep their gradient. Without it nothing pulls back
        # activations that outgrow the range, and training from scratch diverges.
        masks = self.is_weight or not self.observing
        return fake_quantize(
            grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max, masks_gradient=masks
        ).view_as(x)

    def to_integers(self, module: nn.Module, x: Tensor) -> Tensor:
        """Quantize ``x`` to its integers, int32 and of the same shape."""
        grouped = self._grouped(x)
        scale, zero_point = (self._broadcast(t.detach(), grouped) for t in self.qparams(module))
        quant_min, quant_max = self.spec.quant_min, self.spec.quant_max
        return quantize(grouped, scale, zero_point, quant_min=quant_min, quant_max=quant_max).view_as(x)

    def qparams(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return scale and zero point as they are applied: the scale positive, the zero point integral."""
        scale = self.scale(module)
        zero_point = round_zero_point(
            self.zero_point(module), quant_min=self.spec.quant_min, quant_max=self.spec.quant_max
        )
        return scale.abs() + MIN_SCALE if self.is_learned else scale, zero_point

    def update(self, module: nn.Module) -> None:
        """Compute scale and zero point from the statistics since the last update, already reduced over ranks."""
        if self.observed is None:
            return
        new, self.observed = self.observed, None
        observer = self.spec.observer
        assert observer is not None
        # Ranges of weights follow the current values; those of activations accumulate.
        self.statistics = observer.accumulate(None if self.is_weight else self.statistics, new)
        if not self._is_trained():
            self._set(module, *compute_qparams(self.spec, self.statistics))

    @torch.no_grad()
    def _set(self, module: nn.Module, scale: Tensor, zero_point: Tensor) -> None:
        self.scale(module).copy_(scale.view_as(self.scale(module)))
        if not self.spec.symmetric:
            self.zero_point(module).copy_(zero_point.view_as(self.scale(module)))
        self.ready = True

    def _is_trained(self) -> bool:
        """Return True if the optimizer owns the scale; until fake-quantization starts, a learned scale is observed."""
        return self.is_learned and self.ready and self.quantizing

    def _with_zero_gradients(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return ``x`` with zero gradients for scale and zero point: DDP expects a gradient of every parameter."""
        learned = [getattr(module, name).sum() for name in self.tensor_names]
        return x + 0.0 * torch.stack(learned).sum() if torch.is_grad_enabled() and x.is_floating_point() else x

    @torch.no_grad()
    def _observe(self, module: nn.Module, x: Tensor) -> None:
        assert self.spec.observer is not None
        # Experts without tokens and heads without boxes get empty tensors, which have no range.
        if self._is_trained() or not x.numel():
            return
        if not self.is_weight and self.observing > 1 and _has_batch_dimension(x):
            # The first samples are contiguous in memory: a strided view would cost more than it saves.
            x = x[: max(_MIN_SAMPLES, len(x) // self.observing)]
        new = self.spec.observer.observe(self._rows(x.detach()))
        self.observed = new if self.is_weight or self.observed is None else self.observed.merge(new)
        if self.is_weight:
            self.update(module)

    def _shard_for(self, values: Tensor, x: DTensor) -> Tensor:
        """Return the scales, or zero points, of this rank's shard of a tensor."""
        match self.spec.granularity:
            case "tensor":
                return values
            case "channel":
                return shard_along(values, x, {self.axis: 0})
            case _:
                return shard_along(values, x, {0: 0, 1: 1})

    def _grouped(self, x: Tensor) -> Tensor:
        group = self.spec.granularity
        return x.unflatten(1, (-1, group)) if isinstance(group, int) else x

    def _broadcast(self, values: Tensor, grouped: Tensor) -> Tensor:
        """Reshape scales to broadcast against the grouped tensor."""
        match self.spec.granularity:
            case "tensor":
                return values
            case "channel":
                return values.view([-1 if dim == self.axis else 1 for dim in range(grouped.ndim)])
            case _:
                return values.unsqueeze(2)

    def _rows(self, x: Tensor) -> Tensor:
        """Reshape to ``(scales, values)``, float32 or wider."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        match self.spec.granularity:
            case "tensor":
                return x.reshape(1, -1)
            case "channel":
                return x.movedim(self.axis, 0).flatten(1)
            case _:
                return self._grouped(x).flatten(0, 1)


@contextmanager
def quantizer_mode(quantizers: Iterable[Quantizer], *, observing: int, quantizing: bool) -> Iterator[None]:
    """Set the mode of quantizers inside the context; after it they are in their mode of before.

    Args:
        quantizers: The quantizers.
        observing: As :attr:`Quantizer.observing`.
        quantizing: As :attr:`Quantizer.quantizing`.
    """
    before = [(quantizer, quantizer.observing, quantizer.quantizing) for quantizer in quantizers]
    for quantizer, _, _ in before:
        quantizer.observing, quantizer.quantizing = observing, quantizing
    try:
        yield
    finally:
        for quantizer, was_observing, was_quantizing in before:
            quantizer.observing, quantizer.quantizing = was_observing, was_quantizing


def compute_qparams(spec: Int, statistics: RangeStatistics) -> tuple[Tensor, Tensor]:
    """Compute scale and zero point, ``(rows,)`` each."""
    observer = spec.observer
    assert observer is not None
    symmetric = bool(spec.symmetric)
    ends = observer.compute_range(statistics, num_levels=spec.quant_max - spec.quant_min + 1, symmetric=symmetric)
    if spec.granularity == "tensor":
        # Rows are separate tensors here: the floor of a scale must not depend on the other rows.
        ends = (ends[0].unsqueeze(1), ends[1].unsqueeze(1))
    scale, zero_point = qparams_from_range(
        *ends, quant_min=spec.quant_min, quant_max=spec.quant_max, symmetric=symmetric
    )
    return scale.flatten(), zero_point.flatten()


def _has_batch_dimension(x: Tensor) -> bool:
    """Return True if samples may be left out; the first dimension of a per-channel factor is not the batch."""
    return x.ndim > 1 and x.numel() > _MIN_SUBSAMPLED and not isinstance(x, nn.Parameter)


def _device(module: nn.Module) -> torch.device | None:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else None
