"""Post-training quantization."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from lightning_compress.arguments import call_model
from lightning_compress.masked_norms import check_no_masked_norms
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.quantizer import quantizer_mode
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan, owning_modules
from lightning_compress.quantization.scale_updates import update_scales
from lightning_compress.quantization.tracing import trace
from lightning_compress.targets import Targets, unfrozen


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    weights: QuantizationSpec = Int(8),
    activations: QuantizationSpec = Int(8),
    targets: Targets = Targets(),
    backend: Backend = OnnxRuntime(),
) -> nn.Module:
    """Quantize a trained model without further training (post-training quantization).

    Args:
        model: FP32 model. It is not modified; a copy is run in eval mode.
        batches: Calibration batches, each a tensor, a tuple of positional or a dict of keyword arguments.
        weights: Specification of the weights: one for all, or by globs over module names; ``None`` keeps FP32.
        activations: Specification of the inputs and outputs of the layers, in the same form.
        targets: Layers to quantize.
        backend: Runtime for which quantizers are placed.

    Returns:
        A fake-quantized copy in eval mode.

    Raises:
        ValueError: If ``batches`` is empty, if the first batch calls no target, if NaN or infinity is observed, or if
            the model has quantizers already.

    >>> model = calibrate(nn.Linear(2, 1), [torch.tensor([[0.0, 2.55]])])
    >>> model.quant_linear_input_0_scale
    tensor(0.0100)
    """
    if is_quantized(model):
        raise ValueError("calibrate: the model has quantizers already; start from float_copy(model).")
    check_no_masked_norms(model, "calibrate")
    remaining = iter(batches)
    try:
        first = next(remaining)
    except StopIteration:
        raise ValueError("calibrate: there is no batch; ranges of activations need at least one.") from None
    prepared = copy_module(model).eval()
    with unfrozen(prepared.parameters()):  # nothing is trained: a frozen model is quantized like any other
        is_target = owning_modules(targets.select(prepared))
    graph = trace(prepared, first)
    QuantizerPlan(weights, activations, is_target, backend).insert_traced(prepared, graph)
    refs = list(quantizers_of(prepared))
    if not refs:
        raise ValueError("calibrate: the first batch calls none of the targets; is it an input of the model?")
    with torch.no_grad(), quantizer_mode((ref.quantizer for ref in refs), observing=1, quantizing=False):
        for batch in chain([first], remaining):
            call_model(prepared, batch)
            # Moving averages are updated with each batch; all other statistics are merged and searched once.
            update_scales([ref for ref in refs if ref.quantizer.updates_per_batch])
        update_scales(refs)
    return prepared
