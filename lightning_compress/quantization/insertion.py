"""Quantizers in a model: hanging them in, finding them there, and taking them out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.call_patcher import (
    Action,
    CallPatcher,
    CallSite,
    install_all,
    patcher_of,
    uninstall,
)
from lightning_compress.quantization.placement import CHANNEL_AXIS, QuantizationPoint
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.targets import COMPILED


class FakeQuantizedCall:
    """A function call with quantizers around it."""

    def __init__(self) -> None:
        self.operands: dict[int, Quantizer] = {}
        self.weight: Quantizer | None = None
        self.inner: Quantizer | None = None
        self.output: Quantizer | None = None

    def put(self, role: str, quantizer: Quantizer) -> None:
        """Puts a quantizer where a place's role says."""
        if role.startswith("input_"):
            self.operands[int(role.removeprefix("input_"))] = quantizer
        else:
            setattr(self, role, quantizer)

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The quantized result of the call on quantized arguments."""
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
        assert self.inner is not None
        return x * self.inner(module, torch.sigmoid(x))

    def _with_operands(self, module: nn.Module, args: Any) -> tuple[Any, ...]:
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
    """CallPatcher whose actions are simulated integers.

    Attributes:
        quantizers: By name, those of the module.
    """

    def __init__(self, quantizers: Mapping[QuantizationPoint, Quantizer]) -> None:
        actions: dict[CallSite, FakeQuantizedCall] = {}
        defaults: dict[str, FakeQuantizedCall] = {}
        for place, quantizer in quantizers.items():
            if place.call.function:
                actions.setdefault(place.call, FakeQuantizedCall()).put(place.role, quantizer)
        for place, quantizer in quantizers.items():
            if not place.call.function:
                for call, action in actions.items():
                    if call.function in CHANNEL_AXIS:
                        action.weight = quantizer
                for function in CHANNEL_AXIS:
                    defaults.setdefault(function, FakeQuantizedCall()).weight = quantizer
        kinds: tuple[dict[CallSite, Action], dict[str, Action]] = ({**actions}, {**defaults})
        super().__init__(*kinds)
        self.quantizers = {place.name: quantizer for place, quantizer in quantizers.items()}


@dataclass(frozen=True)
class QuantizerRef:
    """A quantizer in its module.

    Attributes:
        layer: Name of the module.
        module: The module.
        quantizer: The quantizer.
    """

    layer: str
    module: nn.Module
    quantizer: Quantizer

    @property
    def name(self) -> str:
        """Of the place in the model, such as ``"net.conv1.weight"``."""
        return f"{self.layer}.{self.quantizer.name}".lstrip(".")


def quantizers_of(model: nn.Module) -> Iterator[QuantizerRef]:
    """The quantizers in a model, in the order of its modules."""
    for layer, module in model.named_modules():
        sites = patcher_of(module)
        if isinstance(sites, FakeQuantizePatcher):
            for quantizer in sites.quantizers.values():
                yield QuantizerRef(layer.replace(COMPILED, ""), module, quantizer)


def with_weight_bits(model: nn.Module, bits: int) -> nn.Module:
    """A copy of a model with quantizers in which weights of more bits have so many, over the same ranges."""
    reduced = copy.deepcopy(model)
    for attached in quantizers_of(reduced):
        quantizer = attached.quantizer
        if quantizer.is_weight and quantizer.integers.bits > bits:
            coarser = replace(quantizer.integers, bits=bits)
            with torch.no_grad():
                quantizer.scale(attached.module).mul_(quantizer.integers.quant_max / coarser.quant_max)
            quantizer.integers = coarser
    return reduced


def digest(found: Iterable[QuantizerRef]) -> bytes:
    """A hash of scales and zero points, equal on all ranks that have decided alike."""
    digest = hashlib.blake2b(digest_size=8)
    for attached in found:
        for tensor in attached.quantizer.grid(attached.module):
            digest.update(tensor.detach().double().cpu().numpy().tobytes())
    return digest.digest()


def add_quantizers(
    model: nn.Module,
    table: Mapping[str, Mapping[QuantizationPoint, Quantizer]],
    shape: Callable[[QuantizationPoint, Quantizer], torch.Size],
) -> None:
    """Hangs quantizers into modules by their names, with scales of the shapes that are said."""
    for layer, quantizers in table.items():
        module = model.get_submodule(layer)
        for place, quantizer in quantizers.items():
            quantizer.attach(module, shape(place, quantizer))
        module.register_load_state_dict_pre_hook(_take_stock)
    install_all(model, {layer: FakeQuantizePatcher(quantizers) for layer, quantizers in table.items()})


def remove_quantizers(model: nn.Module) -> None:
    """Makes a model a plain one again: takes out quantizers, their buffers and parameters."""
    for module in model.modules():
        sites = patcher_of(module)
        if isinstance(sites, FakeQuantizePatcher):
            for quantizer in sites.quantizers.values():
                quantizer.detach(module)
            hooks = module._load_state_dict_pre_hooks
            for key in [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _take_stock]:
                del hooks[key]
        uninstall(module)


@torch.no_grad()
def round_weights_(model: nn.Module) -> None:
    """Writes into weights what the model computes with in their place, which is then what it computes with again."""
    for attached in quantizers_of(model):
        if attached.quantizer.name == "weight" and attached.quantizer.quantizing:
            weight = attached.module.get_parameter("weight")
            attached.quantizer.observing = 0
            # A small negative weight is rounded to -0.0, which is no integer.
            weight.copy_(attached.quantizer(attached.module, weight)).add_(0.0)


def is_quantized(model: nn.Module) -> bool:
    """Whether a model simulates integers."""
    return next(quantizers_of(model), None) is not None


def with_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str, change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with one of them changed, however it was given."""
    if len(args) > index:
        return (*args[:index], change(args[index]), *args[index + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, name: change(kwargs[name])}


def _take_stock(module: nn.Module, stored: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: knows which scales come along; a float model's checkpoint brings none."""
    sites = patcher_of(module)
    assert isinstance(sites, FakeQuantizePatcher)
    for quantizer in sites.quantizers.values():
        for name in quantizer.tensor_names:
            if prefix + name not in stored:
                stored[prefix + name] = torch.zeros_like(getattr(module, name)).detach()
        quantizer.ready = bool((stored[prefix + quantizer.tensor_names[0]] != 0).all())
