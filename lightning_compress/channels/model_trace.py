"""Trace of the channel labels of a model in evaluation and in training mode."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_compress.channels.activation_labels import ActivationLabels
from lightning_compress.channels.channel_labels import ChannelLabels, ChannelRole
from lightning_compress.channels.groups import first_names, named_tensors
from lightning_compress.channels.label_tracing import LabelTracing, TooLargeError, plain_operators
from lightning_compress.channels.operator_call import SplitDim
from lightning_compress.layer_kinds import RECURRENT


class ModelTrace:
    """Labels of a model's parameters and buffers, connected by what it computes.

    Args:
        model: A copy of the model, which is changed.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        norms: Names of LayerNorms and RMSNorms that can be narrowed, so that their channels are not fixed.

    Attributes:
        labels: The labels.
        splits: Dimensions that operators split into equal parts.
        num_outputs: Number of output tensors.
        is_finite: True if all outputs in evaluation mode are finite.
        num_products: Number of multiply-accumulates of a run in evaluation mode.
        trains: True if the model runs in training mode.
        is_complete: False if the model is too large to be traced.

    Raises:
        Exception: Any exception of the model's forward in evaluation mode.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], norms: Collection[str] = ()
    ) -> None:
        self._args, self._kwargs, self._norms = args, kwargs, norms
        self.labels = ChannelLabels(_unique_tensors(model))
        _fix_hidden_units(self.labels, model)
        _mark_norms(self.labels, norms)
        self.splits: list[SplitDim] = []
        self.num_outputs = self.num_products = 0
        self.is_finite = True
        self.is_complete = True
        self._run(model.eval(), lambda: model(*args, **kwargs))
        self.trains = self._runs_in_training(model)

    def run_in_training(self, model: nn.Module) -> Any:
        """Run a copy of the model in training mode, in float32."""
        # Only shapes matter, and float64 is several times slower.
        args, kwargs = tree_map_only(Tensor, _single, (self._args, self._kwargs))
        with plain_operators(model), torch.random.fork_rng(devices=[]):
            return model.float().train()(*args, **kwargs)

    def _runs_in_training(self, model: nn.Module) -> bool:
        model.float()
        try:
            self._run(model, lambda: self.run_in_training(model))
        except Exception:
            return False
        return True

    def _run(self, model: nn.Module, call: Callable[[], Any]) -> None:
        """Connect labels by a run of the model."""
        activations = ActivationLabels(self.labels, _unique_tensors(model))
        mode = LabelTracing(activations, dict(model.named_modules()), self._norms)
        try:
            with plain_operators(model), torch.random.fork_rng(devices=[]), mode.names_of_modules(), mode:
                output = call()
        except TooLargeError:
            self.is_complete = False
            output = call()
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            activations.fix(activations.axes(tensor), "")
        self.splits += mode.splits
        if not self.num_outputs:
            self.is_finite = all(bool(tensor.isfinite().all()) for tensor in outputs)
        self.num_outputs = self.num_outputs or len(outputs)
        self.num_products = self.num_products or mode.num_products


def _fix_hidden_units(labels: ChannelLabels, model: nn.Module) -> None:
    """Let recurrent layers keep their hidden units; they can lose inputs."""
    for dim in labels.dims:
        owner, _, tensor = dim.tensor.rpartition(".")
        is_input = dim.dim == 1 and tensor in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")
        if isinstance(model.get_submodule(owner), RECURRENT) and not is_input:
            labels.fix(torch.arange(dim.start, dim.start + dim.size), f"{owner!r} is recurrent and keeps its units")


def _mark_norms(labels: ChannelLabels, norms: Collection[str]) -> None:
    """Let the scale and shift of norms be zero in masked channels, by which the norms recognize them."""
    for dim in labels.dims:
        if dim.tensor.rpartition(".")[0] in norms:
            labels.mark(torch.arange(dim.start, dim.start + dim.size), ChannelRole.PRODUCED)


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by their first names."""
    tensors, names = named_tensors(model), first_names(model)
    return {name: tensor for name, tensor in tensors.items() if names[name] == name}


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
