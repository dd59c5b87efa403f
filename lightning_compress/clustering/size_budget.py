"""Quantization of weights so that the packed file has a given size."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.clustering.layer_statistics import observe_layers
from lightning_compress.clustering.rate_distortion import WeightedErrors, quantize_weight
from lightning_compress.module_copies import copy_module
from lightning_compress.packing.symbol_costs import MAX_INTEGER
from lightning_compress.packing.writer import save_packed
from lightning_compress.targets import Target, Targets, unfrozen

_UNITS = {"B": 1, "kB": 1_000, "MB": 1_000_000, "KiB": 2**10, "MiB": 2**20}
_RATE = 0.05
_TOLERANCE = 0.01  # of the size; smaller files are accepted, larger ones are not
_MAX_STEPS = 24


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
        raise ValueError(f"quantize_to_size: {size!r} is not a size in bytes; write for example '60kB' or 60000.")
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
    originals = [layer.parameter.detach().clone() for layer in layers]
    search = _StepSearch(prepared, layers, originals, errors, half)
    search.run(num_bytes)
    return prepared


class _StepSearch:
    """Search of the step with which a file has a given size."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Target],
        originals: Sequence[Tensor],
        errors: Sequence[WeightedErrors],
        half: Sequence[str],
    ) -> None:
        self._model, self._layers, self._originals, self._errors, self._half = model, layers, originals, errors, half

    def run(self, num_bytes: int) -> None:
        """Quantize the model so that its file has the given size.

        Raises:
            ValueError: If the file is larger with every weight zero.
        """
        # Sizes fall with the logarithm of the step, nearly linearly.
        lower, upper = self._bounds()
        smallest = self._apply(upper)
        if smallest > num_bytes:
            raise ValueError(
                f"quantize_to_size: the file takes {smallest} bytes with every selected weight at zero; allow more, "
                "select more layers, or round other tensors with half=('norms',)."
            )
        best = upper
        for _ in range(_MAX_STEPS):
            middle = (lower + upper) / 2
            found = self._apply(middle)
            if found > num_bytes:
                lower = middle
                continue
            best = upper = middle
            if found >= (1 - _TOLERANCE) * num_bytes:
                return
        self._apply(best)

    def _bounds(self) -> tuple[float, float]:
        scales = [
            math.log(float(original.abs().max().clamp_min(1e-30)) * math.sqrt(max(error.sensitivity, 1e-60)))
            for original, error in zip(self._originals, self._errors, strict=True)
        ]
        return min(scales) - math.log(MAX_INTEGER), max(scales) + math.log(64)

    @torch.no_grad()
    def _apply(self, log_scale: float) -> int:
        """Quantize with the steps of a scale, and return the size of the file."""
        for layer, original, error in zip(self._layers, self._originals, self._errors, strict=True):
            largest = float(original.abs().max())
            # The same loss by a step in each layer, within the range of the integers.
            wanted = math.exp(log_scale) / math.sqrt(max(error.sensitivity, 1e-60))
            step = float(np.float32(max(wanted, largest / MAX_INTEGER, 1e-30)))
            integers = quantize_weight(original, error, step=step, rate=_RATE)
            layer.parameter.copy_((integers.float() * step).reshape(original.shape))
        return _packed_size(self._model.state_dict(), self._half)


def _packed_size(state: Mapping[str, Tensor], half: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return save_packed(state, Path(folder, "file"), half=half).num_bytes
