"""Insertion of quantizers into a model, iteration over them, and removal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_compress.quantization.call_patcher import install_all, patcher_of, uninstall
from lightning_compress.quantization.compilation import support_compilation
from lightning_compress.quantization.fake_quantized_call import FakeQuantizePatcher
from lightning_compress.quantization.placement import QuantizationPoint
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.recomputation import support_recomputation
from lightning_compress.quantization.tracing import Graph
from lightning_compress.targets import COMPILED


@dataclass(frozen=True)
class QuantizerRef:
    """Reference to a quantizer in a model.

    Attributes:
        layer: Module name.
        module: Module that holds scale and zero point.
        quantizer: Quantizer.
    """

    layer: str
    module: nn.Module
    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Name in the model, for example ``"net.conv1.weight"``."""
        return f"{self.layer}.{self.quantizer.name}".lstrip(".")


def quantizers_of(model: nn.Module) -> Iterator[QuantizerRef]:
    """Iterate over the quantizers of a model, in the order of its modules."""
    for layer, module in model.named_modules():
        patcher = patcher_of(module)
        if isinstance(patcher, FakeQuantizePatcher):
            for quantizer in patcher.quantizers.values():
                yield QuantizerRef(layer.replace(COMPILED, ""), module, quantizer)


def is_quantized(model: nn.Module) -> bool:
    """Return True if a model has quantizers."""
    return next(quantizers_of(model), None) is not None


def insert_quantizers(
    model: nn.Module,
    table: Mapping[str, Mapping[QuantizationPoint, Quantizer]],
    shape: Callable[[QuantizationPoint, Quantizer], torch.Size],
    graph: Graph | None = None,
) -> None:
    """Insert quantizers into a model.

    Args:
        model: Model without quantizers.
        table: Quantizers by module name and quantization point.
        shape: Returns the shape of the scale of a quantizer.
        graph: Graph of a run, which tells calls apart by their positions; without one, they are counted.
    """
    for layer, quantizers in table.items():
        module = model.get_submodule(layer)
        for point, quantizer in quantizers.items():
            quantizer.attach(module, shape(point, quantizer))
        module.register_load_state_dict_pre_hook(_prepare_load)
    support_recomputation()
    support_compilation()
    patchers = {layer: FakeQuantizePatcher(quantizers) for layer, quantizers in table.items()}
    if graph is None:
        install_all(model, patchers)
    else:
        install_all(model, patchers, graph.index, graph.called)


def remove_quantizers(model: nn.Module) -> None:
    """Remove the quantizers of a model, with their buffers, parameters and hooks."""
    for module in model.modules():
        patcher = patcher_of(module)
        if isinstance(patcher, FakeQuantizePatcher):
            for quantizer in patcher.quantizers.values():
                quantizer.detach(module)
            hooks = module._load_state_dict_pre_hooks
            for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _prepare_load]:
                del hooks[key]
        uninstall(module)


@torch.no_grad()
def round_weights_(model: nn.Module) -> None:
    """Write the fake-quantized weights into the parameters; the model computes the same as before."""
    for ref in quantizers_of(model):
        if ref.quantizer.name == "weight" and ref.quantizer.quantizing:
            weight = ref.module.get_parameter("weight")
            # Otherwise the next pass would compute the range from the rounded weights, and could change it.
            ref.quantizer.observing = 0
            # Small negative weights are rounded to -0.0, which INT8 cannot represent; adding 0.0 removes the sign.
            weight.copy_(ref.quantizer(ref.module, weight)).add_(0.0)


def digest(refs: Iterable[QuantizerRef]) -> bytes:
    """Hash scales and zero points, for a comparison of ranks."""
    digest = hashlib.blake2b(digest_size=8)
    for ref in refs:
        for tensor in ref.quantizer.qparams(ref.module):
            digest.update(tensor.detach().double().cpu().numpy().tobytes())
    return digest.digest()


def _prepare_load(module: nn.Module, stored: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict pre-hook: set ``ready`` from the stored scales; a checkpoint in FP32 gets scales of zero."""
    patcher = patcher_of(module)
    assert isinstance(patcher, FakeQuantizePatcher)
    for quantizer in patcher.quantizers.values():
        for name in quantizer.tensor_names:
            if prefix + name not in stored:
                stored[prefix + name] = torch.zeros_like(getattr(module, name)).detach()
        quantizer.ready = bool((stored[prefix + quantizer.tensor_names[0]] != 0).all())
