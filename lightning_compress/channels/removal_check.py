"""Removals that are tried on a copy of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.remove import remove_

# A wrong removal cannot hide behind the rounding of twice the precision that is trained in; a network that makes
# tensors of a precision of its own cannot run in that.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}


class RemovalCheck:
    """A network with random weights, on copies of which removals are tried.

    Args:
        model: A copy of the network, which is changed.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.
        precision: What it is run in.

    Raises:
        Exception: Whatever the network raises.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, precision: torch.dtype
    ) -> None:
        self.model = model.cpu().to(precision).eval()
        prepared = tree_map_only(Tensor, lambda tensor: _prepared(tensor, precision), (args, kwargs))
        self.args: tuple[Any, ...] = prepared[0]
        self.kwargs: dict[str, Any] = prepared[1]
        self._tolerance = _TOLERANCES[precision]
        _forget_hooks_(self.model)
        _randomize_(self.model)
        self.num_outputs = len(self._outputs(self.model))
        self._trains = self._runs_in_training(self.model)

    def sound(self, groups: Sequence[ChannelGroup], beside: Sequence[ChannelGroup] = ()) -> list[ChannelGroup]:
        """Those of the groups whose channels can be removed beside those of others, found by halving."""
        if not groups or self._agrees([*beside, *groups]):
            return list(groups)
        if len(groups) == 1:
            return []
        half = len(groups) // 2
        first = self.sound(groups[:half], beside)
        return first + self.sound(groups[half:], [*beside, *first])

    def _agrees(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the network without some channels computes what it computes with them at zero, and trains."""
        return all(
            self._agrees_without({group: some(group.num_channels, seed) for seed, group in enumerate(groups)})
            for some in (_every_second, _about_half, _one)
        )

    def _agrees_without(self, chosen: dict[ChannelGroup, Tensor]) -> bool:
        masked = copy.deepcopy(self.model)
        tensors = named_tensors(masked)
        for group, channels in chosen.items():
            group.zero_(tensors, channels)
        expected = self._outputs(masked)
        try:
            remove_(masked, chosen)
            outputs = self._outputs(masked)
        except Exception:  # shapes that no longer fit, in whatever words
            return False
        same = len(outputs) == len(expected) and all(map(self._is_close, outputs, expected))
        return same and (not self._trains or self._runs_in_training(masked))

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        # Forked, so that a network that draws random numbers draws the same each time.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices=[]):
            return [leaf for leaf in tree_leaves(model(*self.args, **self.kwargs)) if isinstance(leaf, Tensor)]

    def _runs_in_training(self, model: nn.Module) -> bool:
        """Whether parts that only training calls, such as auxiliary heads, do not fail either."""
        twin = copy.deepcopy(model).train()
        try:
            self._outputs(twin)
        except Exception:
            return False
        return True

    def _is_close(self, output: Tensor, expected: Tensor) -> bool:
        if output.shape != expected.shape or not output.is_floating_point() or not output.numel():
            return torch.equal(output, expected)
        return bool((output - expected).abs().max() <= self._tolerance * expected.abs().max())


def make_removal_check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RemovalCheck:
    """A trial in double precision, where the network can.

    Raises:
        ValueError: If the network cannot be copied or run, or returns no tensors.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"The network cannot be copied ({type(error).__name__}: {error}): take off what computes weights from "
            "others, such as torch.nn.utils.weight_norm."
        ) from error
    for precision in _TOLERANCES:
        try:
            trial = RemovalCheck(twin, args, kwargs, precision=precision)
        except Exception as error:
            reason = error
        else:
            break
    else:
        raise ValueError(
            f"The network cannot be run on the example inputs ({type(reason).__name__}: {reason}): give "
            "example_inputs that it runs on."
        ) from reason
    if not trial.num_outputs:
        raise ValueError(
            "The network returns nothing in which tensors can be found: return a tensor, a tuple or a dict."
        )
    return trial


# Sets of channels: every second; an odd number, which leaves no heads or pairs of channels intact; one.


def _every_second(num_channels: int, seed: int) -> Tensor:
    return torch.arange(num_channels) % 2 == 1


def _about_half(num_channels: int, seed: int) -> Tensor:
    return _kmeans_plus_plus(num_channels, min(num_channels // 2 | 1, num_channels - 1), seed)


def _one(num_channels: int, seed: int) -> Tensor:
    return _kmeans_plus_plus(num_channels, 1, seed)


def _kmeans_plus_plus(num_channels: int, count: int, seed: int) -> Tensor:
    order = torch.randperm(num_channels, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(num_channels, dtype=torch.bool).index_fill_(0, order[:count], True)


def _prepared(tensor: Tensor, precision: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(precision if tensor.is_floating_point() else tensor.dtype)


def _forget_hooks_(model: nn.Module) -> None:
    """Takes off what observes modules or simulates numerics; it has no part in what depends on what."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called):
            hooks.clear()


@torch.no_grad()
def _randomize_(model: nn.Module) -> None:
    """Values of which none is special, as zero is for a norm's scale; activations keep their size."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
