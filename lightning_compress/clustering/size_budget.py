"""Quantization of weights so that the packed file has a given size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.clustering.layer_statistics import observe_layers
from lightning_compress.clustering.rate_distortion import WeightedErrors
from lightning_compress.clustering.step_search import QuantizedWeight, StepSearch, packed_size
from lightning_compress.module_copies import copy_module
from lightning_compress.targets import Targets, unfrozen

_UNITS = {"B": 1, "kB": 1_000, "MB": 1_000_000, "KiB": 2**10, "MiB": 2**20}


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    >>> parse_size("60kB"), parse_size("1.5 MiB"), parse_size(500)
    (60000, 1572864, 500)

    Raises:
        ValueError: If it is not a positive number of bytes, kB, MB, KiB or MiB.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", size) if isinstance(size, str) else None
    number = size if isinstance(size, int) and not isinstance(size, bool) else 0
    if match is not None and match[2] in _UNITS:
        number = round(float(match[1]) * _UNITS[match[2]])
    if number < 1:
        raise ValueError(f"{size!r} is not a size in bytes; write for example '60kB' or 60000.")
    return number


def quantize_to_size(
    model: nn.Module,
    batches: Iterable[Any],
    size: int | str,
    *,
    targets: Targets = Targets(),
    half: Sequence[str] = (),
) -> nn.Module:
    """Quantize the weights of a trained model so that its packed file has a given size, without further training.

    The weights become multiples of one step per layer. Errors are weighted by the second moments of inputs and output
    gradients, made up for by the weights that are not yet quantized, and traded for bits under the model of the coder
    of :func:`save_packed`. The steps of all layers follow from one number, which is searched.

    Args:
        model: Trained model. It is not modified; a copy is run in eval mode.
        batches: Calibration batches without labels, each a tensor, a tuple of positional or a dict of keyword
            arguments. Some hundred samples suffice.
        size: Size of the file in bytes, or with a unit, for example ``"60kB"``. The file is at most this large, and
            at most 1 % smaller unless every weight is zero or at full precision.
        targets: Layers to quantize.
        half: Groups of tensors to round to float16, as :func:`save_packed` will be told.

    Returns:
        A copy in eval mode.

    Raises:
        ValueError: If ``batches`` is empty, if no weight is selected, or if the file cannot be that small.

    Example:
        >>> import torch, lightning_compress as lc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
        >>> small = lc.quantize_to_size(net, [torch.randn(32, 64)], "2.5kB")
        >>> len(small[0].weight.unique()) < 64
        True
    """
    num_bytes = parse_size(size)
    held = list(batches)
    if not held:
        raise ValueError("quantize_to_size: there is no batch; the importance of weights needs at least one.")
    prepared = copy_module(model).eval()
    with unfrozen(prepared.parameters()):
        layers = targets.select(prepared)
        statistics = observe_layers(prepared, [(layer.module, layer.parameter) for layer in layers], held)
    errors = [WeightedErrors.of(own.inputs, own.gradients) for own in statistics]
    weights = [layer.parameter.detach().clone() for layer in layers]

    @torch.no_grad()
    def size_of(quantized: Sequence[QuantizedWeight]) -> int:
        for layer, weight in zip(layers, quantized, strict=True):
            layer.parameter.copy_(weight.values)
        return packed_size(prepared.state_dict(), half)

    size_of(StepSearch(weights, errors, [None] * len(layers), size_of).run(num_bytes))
    return prepared
