"""Plain copies of models, to be written to files."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lightning_compress.quantization.insertion import is_quantized, remove_quantizers, round_weights_
from lightning_compress.quantization.lowering import round_biases_
from lightning_compress.quantization.strip_compile import strip_compile


def finalize(model: nn.Module, *, module: str = "", example_inputs: Any = None) -> nn.Module:
    """A copy of a model as it is deployed: in eval mode, with nothing to train and no hooks of a fit.

    Zeros, clusters and integers times their scales are in the weights. Quantizers stay, frozen: their ranges are part
    of the model.

    Args:
        model: The model, which stays as it is.
        module: Name of its deployable part.
        example_inputs: What that part is called with: a tensor, a tuple, or a dict of keyword arguments. With them,
            biases are integers times their scales as well, so that a model with quantizers computes what a file of
            integers does; activations of few bits make such small differences large.

    Raises:
        ValueError: If it has no such part, or its quantizers are none that a file takes (with ``example_inputs``).

    >>> finalize(nn.Sequential(nn.Linear(2, 1)), module="0").weight.requires_grad
    False
    """
    plain = _copied(model, module, "finalize")
    round_weights_(plain)
    if example_inputs is not None and is_quantized(plain):
        round_biases_(plain, example_inputs)
    return plain


def float_copy(model: nn.Module, *, module: str = "") -> nn.Module:
    """As :func:`finalize`, without quantizers, so that integers can be compared with floats on equal terms."""
    plain = _copied(model, module, "float_copy")
    remove_quantizers(plain)
    return plain


def _copied(model: nn.Module, module: str, caller: str) -> nn.Module:
    if module and module not in dict(model.named_modules()):
        raise ValueError(f"{caller}: the model has no module {module!r}.")
    return strip_compile(copy.deepcopy(model.get_submodule(module)).eval()).requires_grad_(False)
