"""Norms that normalize over the channels that are left while others are masked, as they do after the removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.module_copies import copy_module

# Modules that compute in float32 whatever their input are compared at this precision; other norms differ by far more.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MaskedNorm:
    """A LayerNorm or RMSNorm over channels, some of which are masked: scale, shift and input are zero there.

    Two forward hooks let the module compute what a norm over the other channels computes. They hold no tensors, and
    read from the module's own scale and shift which channels are left, so that they work in copies, averages and
    pickles of a model, and with any weights that are loaded.

    Attributes:
        dim: Dimension of the input that indexes the channels: -1, or 1 for images with the channels first.
        is_centered: True if the norm subtracts the mean, as LayerNorm does.
    """

    dim: int
    is_centered: bool

    def attach_(self, module: nn.Module) -> None:
        """Add the hooks to a norm module, in place of those that it has."""
        detach_(module)
        module.register_forward_pre_hook(_BeforeNorm(self), with_kwargs=True)
        # First of all hooks, so that those of the user see the output of the norm.
        module.register_forward_hook(_AfterNorm(self), prepend=True)

    def prepare_input(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the input with which the norm over all channels has the statistics of those that are left.

        With masked channels at the mean of the others, the sum of squared deviations is that of the others, and a
        factor makes up for the larger number that it is divided by. The epsilon stays the same.

        Args:
            module: The norm.
            x: Its input, zero in masked channels.
        """
        kept, dtype = kept_channels(module), x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # a single rounding where x has half precision
        number = kept.sum().clamp(min=1).to(x.dtype)
        if self.is_centered:
            mean = x.sum(self.dim, keepdim=True) / number
            shape = [1] * x.ndim
            shape[self.dim] = -1
            x = torch.where(kept.view(shape), x, mean)
        return (x * (len(kept) / number).sqrt()).to(dtype)

    def scale_output(self, module: nn.Module, output: Tensor) -> Tensor:
        """Return the output without the factor of the input, for the same module."""
        kept, bias = kept_channels(module), module._parameters.get("bias")
        factor = (kept.sum().clamp(min=1).to(output.dtype) / len(kept)).sqrt()
        if bias is None:
            return output * factor
        shape = [1] * output.ndim
        shape[self.dim] = -1
        return output * factor + (bias * (1 - factor)).to(output.dtype).view(shape)


_FORMS = tuple(MaskedNorm(dim, is_centered) for dim in (-1, 1) for is_centered in (True, False))


@dataclass(frozen=True)
class _BeforeNorm:
    norm: MaskedNorm

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self.norm.prepare_input(module, args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: self.norm.prepare_input(module, kwargs[name])}


@dataclass(frozen=True)
class _AfterNorm:
    norm: MaskedNorm

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.norm.scale_output(module, output)


def kept_channels(norm: nn.Module) -> Tensor:
    """Return which channels of a norm are left: those with a scale or a shift other than zero.

    Returns:
        Bool of shape ``(num_channels,)``.
    """
    weight, bias = norm.get_parameter("weight").detach(), norm._parameters.get("bias")
    return weight != 0 if bias is None else (weight != 0) | (bias.detach() != 0)


def detach_(norm: nn.Module) -> None:
    """Remove the hooks of :class:`MaskedNorm` from a module."""
    for hooks in (norm._forward_pre_hooks, norm._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, (_BeforeNorm, _AfterNorm))]:
            del hooks[key]
            norm._forward_pre_hooks_with_kwargs.pop(key, None)


def masked_norms(model: nn.Module) -> dict[str, MaskedNorm]:
    """Return the norms of a model that have hooks, by module name."""
    return {
        name: hook.norm
        for name, module in model.named_modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, _AfterNorm)
    }


def detach_complete_(model: nn.Module) -> None:
    """Remove the hooks of norms without masked channels, which compute the same without them."""
    for name in masked_norms(model):
        if kept_channels(model.get_submodule(name)).all():
            detach_(model.get_submodule(name))


def check_no_masked_norms(model: nn.Module, caller: str) -> None:
    """Check that the weights of a model are all that it computes with.

    Raises:
        ValueError: If norms skip masked channels.
    """
    names = list(masked_norms(model))
    if names:
        raise ValueError(
            f"{caller}: {len(names)} norms, such as {names[0]!r}, skip masked channels, which a plain model does not: "
            "remove the channels first, with shrink."
        )


def attach_norms_(model: nn.Module, norms: Mapping[str, MaskedNorm]) -> None:
    """Add the hooks to norms of a model.

    Args:
        model: The model.
        norms: Norms by module name.
    """
    for name, norm in norms.items():
        norm.attach_(model.get_submodule(name))


def find_norms(model: nn.Module) -> dict[str, MaskedNorm]:
    """Return the norms of a model that :class:`MaskedNorm` supports, by module name.

    A module is recognized by its behavior: masked and with hooks, it computes the same as with fewer channels.
    """
    found = ((name, _find_norm(module)) for name, module in model.named_modules())
    return {name: norm for name, norm in found if norm is not None}


def set_normalized_shape_(module: nn.Module) -> None:
    """Let the ``normalized_shape`` of a norm over the last dimension follow the shape of its scale."""
    weight, shape = module._parameters.get("weight"), getattr(module, "normalized_shape", None)
    if isinstance(shape, tuple) and len(shape) == 1 and weight is not None and weight.ndim == 1:
        vars(module)["normalized_shape"] = tuple(weight.shape)


@torch.no_grad()
def _find_norm(module: nn.Module) -> MaskedNorm | None:
    vectors = {name: vector for name, vector in module._parameters.items() if vector is not None}
    is_leaf = not any(True for _ in module.children()) and not any(True for _ in module.buffers())
    is_named = "weight" in vectors and set(vectors) <= {"weight", "bias"}
    if not is_leaf or not is_named or any(vector.ndim != 1 or len(vector) < 2 for vector in vectors.values()):
        return None
    return next((norm for norm in _FORMS if _is_norm(module, norm)), None)


def _is_norm(module: nn.Module, norm: MaskedNorm) -> bool:
    """Return True if a module, masked and with hooks, computes the same as with fewer channels."""
    try:
        masked, small = (_plain_copy(module) for _ in range(2))
        size = len(masked.get_parameter("weight"))
        generator = torch.Generator().manual_seed(0)
        kept = torch.arange(size) % 2 == 0
        x = torch.randn(2, 3, size, dtype=torch.float64, generator=generator) + 0.5 * torch.arange(size)
        x = x[..., torch.randperm(size, generator=generator)] * kept
        x = x if norm.dim == -1 else x.movedim(-1, 1).unsqueeze(-1).expand(-1, -1, -1, 2)
        for name, vector in list(masked.named_parameters()):
            values = torch.rand(size, dtype=torch.float64, generator=generator) + 0.5
            vector.copy_(values * kept)
            setattr(small, name, nn.Parameter(values[kept]))
        set_normalized_shape_(small)
        norm.attach_(masked)
        index = kept.nonzero().flatten()
        expected = small(x.index_select(norm.dim, index))
        output = masked(x).index_select(norm.dim, index)
        # A function of single channels, such as PReLU, passes the first test but does not normalize.
        scaled = small(10 * x.index_select(norm.dim, index))
    except Exception:  # a module that is no norm may fail in any way, or not be copied at all
        return False
    return _close(output, expected, _TOLERANCE) and _close(scaled, expected, 0.05)


def _plain_copy(module: nn.Module) -> nn.Module:
    plain = copy_module(module).cpu().double().eval()
    plain._forward_hooks.clear()
    plain._forward_pre_hooks.clear()
    return plain


def _close(output: Tensor, expected: Tensor, tolerance: float) -> bool:
    same = isinstance(output, Tensor) and output.shape == expected.shape
    return same and bool((output - expected).abs().max() <= tolerance * expected.abs().max())
