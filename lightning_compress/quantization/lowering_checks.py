"""Checks of quantized models before they are lowered for a backend."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_compress.quantization.backend import Backend
from lightning_compress.quantization.insertion import QuantizerRef, quantizers_of
from lightning_compress.quantization.placement import Placement
from lightning_compress.targets import shorten


def check_quantizers(refs: Iterable[QuantizerRef], backend: Backend) -> None:
    """Check that the quantizers of a model have observed batches, and have grids that the backend takes.

    Raises:
        ValueError: If one has not.
    """
    refs = list(refs)
    if not refs:
        raise ValueError("The model has no quantizers: train it with QuantizationAwareTraining, or calibrate() it.")
    if not any(ref.quantizer.ready for ref in refs):
        raise ValueError(
            f"The observer of {refs[0].name!r} has never observed a batch: train or calibrate before exporting."
        )
    for ref in refs:
        spec, is_weight = ref.quantizer.spec, ref.quantizer.is_weight
        # A zero point of the weight would add a sum over the inputs to every output, which the kernels leave out.
        if is_weight and not spec.symmetric:
            raise ValueError(
                f"The weights of {ref.layer!r} are affine, which integer kernels do not support: use symmetric=True."
            )
        if not is_weight and not spec.symmetric and backend.symmetric:
            raise ValueError(
                f"{ref.name!r} has a zero point, and {backend.name} takes only 0: quantize the model for it, with "
                f"backend=lc.{type(backend).__name__}() in QuantizationAwareTraining or calibrate."
            )


def check_shared_scales(model: nn.Module, placement: Placement, backend: Backend) -> None:
    """Check that operands and results have one scale where the backend requires it, as those of concatenations.

    Raises:
        ValueError: If they have several.
    """
    refs = {ref.name: ref for ref in quantizers_of(model)}
    for points in placement.shared_scales():
        names = [point.full_name for point in points]
        scales = [ref.quantizer.qparams(ref.module)[0] for name in names if (ref := refs.get(name)) is not None]
        if len(scales) < len(points) or any(not torch.equal(scale, scales[0]) for scale in scales):
            raise ValueError(
                f"{backend.name} computes with one scale for {shorten(names)}, which have several: quantize the model "
                f"for it, with backend=lc.{type(backend).__name__}() in QuantizationAwareTraining or calibrate."
            )


def check_finite(name: str, kind: str, tensor: Tensor | None) -> None:
    """Check that a tensor of a layer is finite.

    Raises:
        ValueError: If it is not.
    """
    if tensor is not None and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name!r} has NaN or infinity in its {kind}: training has diverged; load an earlier checkpoint."
        )
