"""Verification of channel groups by trial removals on copies of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.label_tracing import plain_operators
from lightning_compress.channels.model_trace import ModelTrace
from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.channels.remove import remaining_group, remove_
from lightning_compress.masked_norms import attach_norms_, find_norms
from lightning_compress.module_copies import copy_module, is_defined_in, remove_forward_hooks_

# Relative tolerances. In float64 a wrong removal cannot pass as a rounding error; models that create float32 tensors
# of their own cannot run in float64 and are compared in float32.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
_NORM_TOLERANCE = 1e-5


# Work that trials may take, counted in multiply-accumulates and in runs so that the result does not depend on the
# machine: about a minute on two cores.
MAX_PRODUCTS = 3e11
MAX_TRIALS = 500


class RemovalCheck:
    """A model with random weights, on copies of which removals are verified.

    Args:
        model: A copy of the model, which is changed.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        precision: Data type of weights and inputs.
        width: Narrow the LayerNorms and RMSNorms over channels with them.

    Raises:
        Exception: Any exception of the model's forward.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        precision: torch.dtype,
        width: bool = False,
    ) -> None:
        self.model = model.cpu().to(precision).eval()
        converted = tree_map_only(Tensor, lambda tensor: _converted(tensor, precision), (args, kwargs))
        self.args: tuple[Any, ...] = converted[0]
        self.kwargs: dict[str, Any] = converted[1]
        self._tolerance = _TOLERANCES[precision]
        self._num_trials = 0
        # Observers and fake quantization do not change what depends on what.
        remove_forward_hooks_(self.model, lambda hook: is_defined_in(hook, "lightning_compress"))
        _randomize_(self.model)
        self._remove_recording_hooks()
        self.norms = find_norms(self.model) if width else {}
        self.trace = ModelTrace(copy_module(self.model), self.args, self.kwargs, self.norms)

    @property
    def is_exhausted(self) -> bool:
        """Return True if the trials have taken as much work as they may."""
        return self._num_trials >= min(MAX_TRIALS, max(8, MAX_PRODUCTS / (1 + self.trace.num_products)))

    def removable(self, groups: Sequence[ChannelGroup], beside: Sequence[ChannelGroup] = ()) -> list[ChannelGroup]:
        """Return the groups that can lose channels together, found by bisection.

        Groups that are not decided when the trials are exhausted are left out.

        Args:
            groups: Candidates.
            beside: Groups that lose channels at the same time and are known to be removable.
        """
        if not groups or (not self.is_exhausted and self._is_equivalent([*beside, *groups])):
            return list(groups)
        if len(groups) == 1 or self.is_exhausted:
            return []
        half = len(groups) // 2
        first = self.removable(groups[:half], beside)
        return first + self.removable(groups[half:], [*beside, *first])

    def computes_same(self, removed: Mapping[ChannelGroup, Tensor]) -> bool:
        """Return True if the model computes the same output after removing channels as after zeroing them.

        Args:
            removed: Channels of each group, bool of shape ``(num_channels,)``.
        """
        return self._remove(self.model, removed) is not None

    def _is_equivalent(self, groups: Sequence[ChannelGroup]) -> bool:
        """Return True if about half of the channels can be removed, and then one more of each group."""
        half = {group: _about_half(group.num_channels, seed) for seed, group in enumerate(groups)}
        removal = self._remove(self.model, half)
        if removal is None:
            return False
        # From the smaller model, which takes a fraction of the time.
        small, log = removal
        left = [remaining_group(group, channels, log) for group, channels in half.items()]
        one = {group: _one(group.num_channels, seed) for seed, group in enumerate(left) if group.num_channels > 1}
        return self._remove(small, one) is not None and self._trains(small)

    def _remove(self, model: nn.Module, removed: Mapping[ChannelGroup, Tensor]) -> tuple[nn.Module, RemovalLog] | None:
        """Return a copy without channels, or None if it computes another output than the model with zeros there."""
        self._num_trials += 1
        tensors = named_tensors(model)
        small = copy_module(model, {id(tensors[name]): tensors[name] for name in _replaced(removed)})
        try:
            log = remove_(small, removed)
            outputs = self._outputs(small)
        except Exception:  # shapes that no longer fit raise errors of many types
            return None
        has_norms = any(group.norms for group in removed)
        # Some norms compute in float32 whatever their input.
        tolerance = max(self._tolerance, _NORM_TOLERANCE if has_norms else 0.0)
        with self._zeroed(copy_module(model) if has_norms else model, removed) as twin:
            return (small, log) if self._are_close(outputs, self._outputs(twin), tolerance) else None

    def _trains(self, model: nn.Module) -> bool:
        """Return True if a model, which is changed, runs in training mode, or if the one it was made from does not."""
        # In training mode a model may use more modules, such as auxiliary heads.
        try:
            return not self.trace.trains or self.trace.run_in_training(model) is not None
        except Exception:
            return False

    @contextlib.contextmanager
    def _zeroed(self, model: nn.Module, removed: Mapping[ChannelGroup, Tensor]) -> Iterator[nn.Module]:
        """Set the channels to zero within the context."""
        tensors = named_tensors(model)
        parts = [
            (tensors[part.tensor].detach(), part.dim, part.positions_of(channels))
            for group, channels in removed.items()
            for part in group.output_slices
        ]
        values = [tensor.index_select(dim, positions) for tensor, dim, positions in parts]
        for group, channels in removed.items():
            group.zero_(tensors, channels)
            attach_norms_(model, group.norms)
        try:
            yield model
        finally:
            for (tensor, dim, positions), value in zip(parts, values, strict=True):
                tensor.index_copy_(dim, positions, value)

    def _remove_recording_hooks(self) -> None:
        """Remove the hooks if the model computes the same without: those of the user may compute, or only record."""
        if not any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return
        bare = copy_module(self.model)
        remove_forward_hooks_(bare, lambda hook: True)
        try:
            without_hooks = self._outputs(bare)
        except Exception:
            return
        if self._are_close(without_hooks, self._outputs(self.model), self._tolerance):
            self.model = bare

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        # The random state is forked, so that a model that draws random numbers draws the same in each run.
        # Fused recurrent operators end the process where shapes do not fit.
        with plain_operators(model), torch.random.fork_rng(devices=[]):
            return [leaf for leaf in tree_leaves(model(*self.args, **self.kwargs)) if isinstance(leaf, Tensor)]

    def _are_close(self, outputs: list[Tensor], expected: list[Tensor], tolerance: float) -> bool:
        same = partial(_is_close, tolerance=tolerance)
        return len(outputs) == len(expected) and all(map(same, outputs, expected))


def _is_close(output: Tensor, expected: Tensor, *, tolerance: float) -> bool:
    if output.shape != expected.shape or not output.is_floating_point() or not output.numel():
        return torch.equal(output, expected)
    return bool((output - expected).abs().max() <= tolerance * expected.abs().max())


def make_removal_check(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, width: bool = False
) -> RemovalCheck:
    """Return a check in float64, or in float32 for a model that does not run in float64.

    Raises:
        ValueError: If the model cannot be copied or run, or returns no tensors.
    """
    twin = copy_module(model)
    found: RemovalCheck | None = None
    for precision in _TOLERANCES:
        try:
            found = check = RemovalCheck(twin, args, kwargs, precision=precision, width=width)
        except Exception as error:
            reason = error
        else:
            # Sums of masks that are filled with the least number of a type are infinite in float64.
            if check.trace.is_finite:
                break
    if found is None:
        raise ValueError(
            f"The model cannot be run on the example inputs ({type(reason).__name__}: {reason}): pass "
            "example_inputs that fit its forward."
        ) from reason
    if not check.trace.num_outputs:
        raise ValueError("The output of the model contains no tensors: return a tensor, a tuple or a dict.")
    return check


# Channels for the trial removals. An odd number of random channels splits heads and pairs of channels; a single channel
# is the least change of a shape.


def _about_half(num_channels: int, seed: int) -> Tensor:
    return _random_channels(num_channels, min(num_channels // 2 | 1, num_channels - 1), seed)


def _one(num_channels: int, seed: int) -> Tensor:
    return _random_channels(num_channels, 1, seed)


def _random_channels(num_channels: int, count: int, seed: int) -> Tensor:
    order = torch.randperm(num_channels, generator=torch.Generator().manual_seed(seed))
    return torch.zeros(num_channels, dtype=torch.bool).index_fill_(0, order[:count], True)


def _replaced(removed: Mapping[ChannelGroup, Tensor]) -> set[str]:
    """Return the names of tensors that a removal replaces, so that copies need no copies of them."""
    return {part.tensor for group in removed for part in group.slices}


def _converted(tensor: Tensor, precision: torch.dtype) -> Tensor:
    return tensor.detach().cpu().to(precision if tensor.is_floating_point() else tensor.dtype)


@torch.no_grad()
def _randomize_(model: nn.Module) -> None:
    """Set parameters and running statistics to random values that preserve the scale of activations."""
    # Trained or freshly initialized values may be special, such as a norm's scale of zero, and hide a dependency.
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim < 2:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
