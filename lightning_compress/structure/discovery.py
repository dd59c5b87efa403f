"""Finds the channel groups of a network, and tries each before it is believed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.structure.cutting import remove_
from lightning_compress.structure.graph import coupled
from lightning_compress.structure.groups import ChannelGroup, named_tensors
from lightning_compress.structure.heads import attention_heads
from lightning_compress.structure.members import Unfit, group_of

# A wrong removal cannot hide behind the rounding of twice the precision that is trained in.
_PRECISION = torch.float64
_TOLERANCE = 1e-8


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The channel groups of a network, and why other layers are left whole.

    What the dependency graph proposes is tried: on a copy with random weights half of the channels are zeroed, then
    removed, and both must compute the same. Where they do not (a shortcut that pads or subsamples channels, a reshape)
    the group is left out.

    Args:
        model: The network; it is only copied.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.

    Returns:
        The groups in the order of the network's modules, and reasons by the names of layers that are left whole.

    Raises:
        ValueError: If the network cannot be run.
    """
    trial = Trial(model, *tree_map_only(Tensor, _prepared, (args, dict(kwargs))))
    groups, whole = list(attention_heads(trial.model)), {}
    heads = {part.tensor for group in groups for part in group.slices}
    for members in coupled(copy.deepcopy(trial.model), trial.args, trial.kwargs):
        try:
            group = group_of(members)
        except Unfit as reason:
            whole[members[0].name] = str(reason)
            continue
        if heads.isdisjoint(part.tensor for part in group.makers):
            groups.append(group)
    groups = [group for group in groups if group.num_channels > 1]
    sound = trial.sound(groups)
    whole |= {
        g.name: "without some of its channels the network does not compute the same" for g in groups if g not in sound
    }
    return sound, whole


class Trial:
    """A copy of a network with random weights, on which removals are tried.

    Args:
        model: The network.
        args: Positional arguments of its forward, in double precision.
        kwargs: Keyword arguments.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = copy.deepcopy(model).cpu().to(_PRECISION).eval()
        self.args, self.kwargs = args, kwargs
        _forget_hooks_(self.model)
        _randomize_(self.model)
        try:
            self._outputs(self.model)
        except Exception as error:
            raise ValueError(
                f"The network cannot be run on the example inputs ({type(error).__name__}: {error}): give "
                "example_inputs that it runs on."
            ) from error

    def sound(self, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
        """Those of the groups whose channels can be removed, found by halving."""
        if not groups or self._agrees(groups):
            return list(groups)
        if len(groups) == 1:
            return []
        half = len(groups) // 2
        return self.sound(groups[:half]) + self.sound(groups[half:])

    def _agrees(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the network without half of the channels computes what it computes with them at zero."""
        chosen = {group: _every_second(group) for group in groups}
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
        return len(outputs) == len(expected) and all(map(_is_close, outputs, expected))

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return [leaf for leaf in tree_leaves(model(*self.args, **self.kwargs)) if isinstance(leaf, Tensor)]


def _every_second(group: ChannelGroup) -> Tensor:
    return torch.arange(group.num_channels) % 2 == 1


def _is_close(output: Tensor, expected: Tensor) -> bool:
    if output.shape != expected.shape or not output.is_floating_point():
        return torch.equal(output, expected)
    return bool((output - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _prepared(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(_PRECISION if tensor.is_floating_point() else tensor.dtype)


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
