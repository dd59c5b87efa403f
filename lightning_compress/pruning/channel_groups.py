"""The channels of a model that is about to be fitted, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lightning_compress.channels.costs import Cost, Latency, NumChannels, TensorSizes, macs, parameters
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.channel_pruner import ChannelRankingGroup, least_left
from lightning_compress.pruning.patterns import Channels
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup, couple
from lightning_compress.pruning.ranking_groups import ranked_together
from lightning_compress.targets import Targets, shorten
from lightning_compress.trainer.example_inputs import containers, probe_before_fit
from lightning_compress.trainer.lightning import is_a, is_built_late
from lightning_compress.trainer.probe import TrainingProbe

_NUM_SAMPLES = 2  # runs in double precision, with a graph


class ModelChannelGroups:
    """The channel groups of a model, found in ``Callback.setup``.

    Args:
        trainer: The Trainer of the fit.
        pl_module: The model.
        pattern: What a sparsity is a fraction of, and what widths are rounded to.
        targets: Groups are left whole unless all their layers are targets.
        example_inputs: What ``targets.module`` is called with; by default the module's ``example_input_array``, else
            what a training step shows.

    Raises:
        ValueError: If the model cannot be run, or no channel can be removed.
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, pattern: Channels, targets: Targets, example_inputs: Any
    ) -> None:
        self.pattern = pattern
        if is_a(trainer.strategy, "ModelParallelStrategy"):
            raise ValueError("Channels does not work under ModelParallelStrategy, which shards them: use 'ddp'.")
        if is_built_late(pl_module):
            raise ValueError(
                "Channels looks at the model in Callback.setup, before the LightningModule's setup and "
                "configure_model: build the model in __init__."
            )
        chosen = [target.name for target in targets.select(pl_module)]
        probe, given = probe_before_fit(
            trainer, pl_module, module=targets.module, example_inputs=example_inputs, most=_NUM_SAMPLES
        )
        with isolate_rng():
            name, self._args, self._kwargs = _call(probe, given, targets.module, chosen)
            self._network: nn.Module = probe.model.get_submodule(name)
            groups, whole = find_groups(self._network, self._args, self._kwargs)
        self._prefix = f"{name}." if name else ""
        parameters = dict(pl_module.named_parameters(remove_duplicate=False))
        self.groups = [group for group in groups if self._is_chosen(group, parameters, chosen)]
        if not self.groups:
            reasons = "; ".join(f"{layer!r}: {reason}" for layer, reason in list(whole.items())[:3])
            raise ValueError(
                f"Channels: no channels of {shorten(sorted(chosen))} can be removed"
                + (f" ({reasons})." if reasons else ": everything that is coupled with them must be a target, too.")
            )

    def layers(self, model: nn.Module) -> list[Layer]:
        """All tensors that make channels."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names = dict.fromkeys(self._prefix + part.tensor for group in self.groups for part in group.output_slices)
        return [Layer(name, parameters[name]) for name in names]

    def pools(
        self, model: nn.Module, sparsity: float | Mapping[str, float], *, each: bool
    ) -> list[ChannelRankingGroup]:
        """What is ranked together.

        Args:
            model: The LightningModule.
            sparsity: The final sparsity, or one for each glob of layers.
            each: Rank each group by itself.

        Raises:
            ValueError: If a glob matches nothing.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        here = {name.removeprefix(self._prefix): p for name, p in parameters.items() if name.startswith(self._prefix)}
        members = couple(self.groups, here, self.layers(model), self._prefix)
        parts = ranked_together(members, sparsity, _layers, of="layer whose channels can be removed")
        if each:
            parts = [([member], share) for part, share in parts for member in part]
        return [
            ChannelRankingGroup(tuple(part), share, self._cost([member.group for member in part]))
            for part, share in parts
        ]

    def check(self, pools: Sequence[ChannelRankingGroup]) -> None:
        """Refuses a sparsity that cannot be had; once, in ``setup``, as a measured cost is as good as its clock.

        Raises:
            ValueError: If so much cannot be removed.
        """
        for pool in pools:
            least = least_left([member.group for member in pool.members], pool.cost, self.pattern.round_to)
            if least > pool.dense * (1 - pool.sparsity):
                raise ValueError(
                    f"A sparsity of {pool.sparsity:g} cannot be had from "
                    f"{shorten([member.name for member in pool.members])}: at most {1 - least / pool.dense:.3f} of the "
                    f"{self.pattern.of} can go; lower it, or round_to."
                )

    def _cost(self, groups: Sequence[ChannelGroup]) -> Cost:
        costs: dict[str, Callable[[], Cost]] = {
            "channels": lambda: NumChannels(groups),
            "parameters": lambda: TensorSizes(self._network, groups, parameters(self._network)),
            "macs": lambda: TensorSizes(self._network, groups, macs(self._network, self._args, self._kwargs)),
            "latency": lambda: Latency(self._network, self._args, self._kwargs),
        }
        return costs[self.pattern.of]()

    def _is_chosen(self, group: ChannelGroup, parameters: Mapping[str, nn.Parameter], chosen: Sequence[str]) -> bool:
        """Whether all layers that make the channels are targets, and all that would be masked is trained."""
        output_slices = {self._prefix + part.tensor for part in group.output_slices}
        matrices = {name for name in output_slices if parameters[name].ndim > 1}
        return matrices <= set(chosen) and all(parameters[name].requires_grad for name in output_slices)


def _call(
    probe: TrainingProbe, given: bool, module: str, targets: Sequence[str]
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """The network and what it is called with: the largest module that is called and has all targets."""
    if given:
        return (module, *probe.inputs())
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def see(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    handles = [m.register_forward_pre_hook(see(name), with_kwargs=True) for name, m in probe.model.named_modules()]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        probe.loss()
    for handle in handles:
        handle.remove()
    around = [module] if module else containers([target.rpartition(".")[0] for target in targets])
    name = next((name for name in around if name in calls), None)
    if name is None:
        raise ValueError(
            "training_step does not call the module to be pruned as a whole: name the network with "
            "Targets(module='...'), or give example_inputs."
        )
    return (name, *calls[name])


def _layers(member: RankedChannelGroup) -> list[str]:
    """The group's name, and the layers that make its channels."""
    return [member.name, *(layer.layer for layer, _ in member.matrices)]
