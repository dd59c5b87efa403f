"""Prunable channel groups of a LightningModule, found before the fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_compress.channels.block_discovery import block_group, find_blocks
from lightning_compress.channels.costs import (
    Cost,
    Latency,
    NumChannels,
    TensorSizes,
    mac_factors,
    parameter_factors,
)
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.constraints.layer import Layer
from lightning_compress.masked_norms import MaskedNorm
from lightning_compress.pruning.channel_pruner import ChannelRankingGroup, minimum_cost
from lightning_compress.pruning.narrowed_norms import check_scales, goes_along, has_width, norms_of
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup, attach_weights
from lightning_compress.pruning.ranking_groups import group_by_sparsity
from lightning_compress.pruning.structured_patterns import StructuredPattern
from lightning_compress.targets import Target, Targets, shorten
from lightning_compress.trainer.example_inputs import common_ancestors
from lightning_compress.trainer.probe import NOT_CALLED, TrainingProbe, probe_before_fit
from lightning_compress.trainer.queries import is_built_late
from lightning_compress.trainer.trial import record_calls

# Removals are verified in float64 and traced with autograd; two samples are enough, and batch norms need more than one.
_NUM_SAMPLES = 2

_LAYERS = Targets().types

_TOO_LATE = (
    "Channels traces the model in Callback.setup, before the LightningModule's setup and configure_model: build the "
    "model in __init__."
)


class ModelChannelGroups:
    """Channel groups of a model, found in ``Callback.setup``.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The model.
        pattern: Cost that the sparsity refers to, and the multiple of channels to keep.
        targets: Selection of layers; a group is pruned only if all layers that produce its channels are selected.
        example_inputs: Arguments of ``targets.module``; by default the module's ``example_input_array``, or the
            arguments that it receives in a training step.

    Raises:
        ValueError: If the model cannot be run, or if no channel can be removed.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        pattern: StructuredPattern,
        targets: Targets,
        example_inputs: Any,
    ) -> None:
        self.pattern = pattern
        selected = [target.name for target in _select(targets, pl_module)]
        probe, has_inputs = probe_before_fit(
            trainer, pl_module, module=targets.module, example_inputs=example_inputs, max_samples=_NUM_SAMPLES
        )
        with isolate_rng():
            name, self._args, self._kwargs = _traceable_call(probe, has_inputs, targets.module, selected)
            self._traced: nn.Module = probe.model.get_submodule(name)
            self._prefix = f"{name}." if name else ""
            parameters = dict(pl_module.named_parameters(remove_duplicate=False))
            groups, reasons = self._find(parameters, selected)
        self._shapes = _shapes(pl_module)
        along = {name for name in parameters if pattern.width and goes_along(name, pl_module, targets)}
        is_chosen = pattern.unit != "channels"
        self.groups = [g for g in groups if is_chosen or self._is_prunable(g, parameters, selected, along)]
        if not self.groups:
            of_units = "channel groups" if pattern.unit == "channels" else "blocks"
            examples = "; ".join(f"{layer!r}: {reason}" for layer, reason in list(reasons.items())[:3])
            raise ValueError(
                f"{type(pattern).__name__}: no {pattern.unit} of {shorten(sorted(selected))} can be removed"
                + (f" ({examples})." if examples else f": all layers of their {of_units} must be targets, too.")
            )

        check_scales(self._traced, self.groups)
        if pattern.width and not has_width(self.groups):
            reason = next(iter(reasons.values()), "they must be trained, and all of their layers be targets")
            rank_zero_warn(f"Channels(width=True): there are no channels of norms that can be removed ({reason}).")

    @property
    def norms(self) -> dict[str, MaskedNorm]:
        """LayerNorms and RMSNorms over channels of the groups, by module name."""
        return norms_of(self.groups, self._prefix)

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return all tensors that produce channels of the groups.

        Raises:
            ValueError: If the model was rebuilt after it was traced.
        """
        if _shapes(model) != self._shapes:
            raise ValueError(_TOO_LATE)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names = dict.fromkeys(self._prefix + item.tensor for group in self.groups for item in group.output_slices)
        return [Layer(name, parameters[name]) for name in names]

    def ranking_groups(
        self, model: nn.Module, sparsity: float | Mapping[str, float], *, per_group: bool
    ) -> list[ChannelRankingGroup]:
        """Return the channel groups that are ranked together.

        Args:
            model: The LightningModule.
            sparsity: Final sparsity, or sparsities by globs over layer names.
            per_group: Rank each channel group by itself.

        Raises:
            ValueError: If a glob matches no layer.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        traced = {name.removeprefix(self._prefix): p for name, p in parameters.items() if name.startswith(self._prefix)}
        ranked = attach_weights(self.groups, traced, self.layers(model), self._prefix)
        grouped = group_by_sparsity(ranked, sparsity, _layer_names, kind="layer whose channels can be removed")
        if per_group:
            grouped = [([member], target) for members, target in grouped for member in members]
        return [
            ChannelRankingGroup(tuple(members), target, self._cost([member.group for member in members]))
            for members, target in grouped
        ]

    def check(self, ranking_groups: Sequence[ChannelRankingGroup]) -> None:
        """Check that the final sparsities are possible.

        Only ``setup`` calls this: a latency varies from run to run, and a second measurement could fail in mid-fit.

        Raises:
            ValueError: If the cost of the fewest channels that can be kept is above the target.
        """
        for ranking_group in ranking_groups:
            groups = [ranked.group for ranked in ranking_group.channel_groups]
            fewest = minimum_cost(groups, ranking_group.cost, self.pattern.round_to)
            if fewest > ranking_group.dense_cost * (1 - ranking_group.sparsity) * (1 + 1e-9):
                names = shorten([ranked.name for ranked in ranking_group.channel_groups])
                raise ValueError(
                    f"A sparsity of {ranking_group.sparsity:g} is not possible for {names}: at most "
                    f"{1 - fewest / ranking_group.dense_cost:.3f} of the {self.pattern.of} can be removed; lower the "
                    "sparsity or round_to."
                )

    def _cost(self, groups: Sequence[ChannelGroup]) -> Cost:
        traced, args, kwargs = self._traced, self._args, self._kwargs
        costs: dict[str, Callable[[], Cost]] = {
            self.pattern.unit: lambda: NumChannels(groups),
            "parameters": lambda: TensorSizes(traced, groups, parameter_factors(traced)),
            "macs": lambda: TensorSizes(traced, groups, mac_factors(traced, args, kwargs)),
            "latency": lambda: Latency(traced, args, kwargs),
        }
        return costs[self.pattern.of]()

    def _find(
        self, parameters: Mapping[str, nn.Parameter], selected: Sequence[str]
    ) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Find the channel groups, or the blocks whose layers are all selected as the only group."""
        traced, args, kwargs = self._traced, self._args, self._kwargs
        if self.pattern.unit == "channels":
            return find_groups(traced, args, kwargs, width=self.pattern.width)
        found, reasons = find_blocks(traced, args, kwargs)
        groups = {name: block_group(traced, [name]) for name in found}
        layers = {self._prefix + f"{name}.weight" for name, m in traced.named_modules() if isinstance(m, _LAYERS)}
        along = {name for name in parameters if name not in layers}
        names = [name for name, group in groups.items() if self._is_prunable(group, parameters, selected, along)]
        return [block_group(traced, names)] if names else [], reasons

    def _is_prunable(
        self,
        group: ChannelGroup,
        parameters: Mapping[str, nn.Parameter],
        selected: Sequence[str],
        along: Collection[str],
    ) -> bool:
        """Return True if all layers that produce the channels are selected, and no tensor to be masked is frozen."""
        names = {self._prefix + item.tensor for item in group.output_slices}
        takes_along = bool(group.norms or group.blocks)
        weights = {name for name in names if parameters[name].ndim > 1 and not (takes_along and name in along)}
        return weights <= set(selected) and all(parameters[name].requires_grad for name in names)


def _select(targets: Targets, pl_module: LightningModule) -> list[Target]:
    try:
        return targets.select_stored(pl_module)
    except ValueError as error:
        if not is_built_late(pl_module):
            raise
        raise ValueError(f"{error} {_TOO_LATE}") from error


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters by name, by which a model that was rebuilt is recognized."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _traceable_call(
    probe: TrainingProbe, has_inputs: bool, module: str, targets: Sequence[str]
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the name and the arguments of the outermost module that is called and contains all targets."""
    if has_inputs:
        return (module, *probe.inputs())
    calls = record_calls(probe)
    candidates = [module] if module else common_ancestors([target.rpartition(".")[0] for target in targets])
    name = next((name for name in candidates if name in calls), None)
    if name is None:
        raise ValueError(NOT_CALLED)
    return (name, *calls[name])


def _layer_names(ranked: RankedChannelGroup) -> list[str]:
    """Return the name of the group, and the names of the layers that produce its channels."""
    return [ranked.name, *(layer.layer for layer, _ in ranked.layer_weights)]
