"""Insertion of quantizers into the model of a Trainer, as soon as it is built and before its weights are restored."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.quantization.backend import Backend
from lightning_compress.quantization.graph_tracer import GraphTracer
from lightning_compress.quantization.insertion import is_quantized, quantizers_of, remove_quantizers
from lightning_compress.quantization.quantizer_checkpoint import (
    insert_quantizers_of_checkpoint,
    insert_quantizers_on_load,
    stop_inserting_on_load,
)
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan, owning_modules
from lightning_compress.quantization.tracing import Graph
from lightning_compress.targets import Targets, shorten, unfrozen
from lightning_compress.trainer.late_models import (
    around_configure_model,
    before_loading,
    stop_waiting,
    stop_watching_loads,
)
from lightning_compress.trainer.queries import is_built_late


class ModelPreparation:
    """Quantizers of a model, inserted in ``Callback.setup``, or where its layers are made later.

    Layers may be made in the ``setup`` of the module, and made, replaced or sharded in its ``configure_model``. The
    model is tried in ``Callback.setup``, then before and after ``configure_model``, each time unless it has quantizers
    in all of its layers already: before it is sharded, if it is whole until then.

    Args:
        trainer: The Trainer.
        pl_module: The model.
        weights: Specification of the weights.
        activations: Specification of the activations.
        backend: Runtime for which they are placed.
        targets: Selection of the layers.
        example_inputs: Inputs of ``targets.module``.

    Attributes:
        plan: Specifications of the quantizers, once there are layers.
        failure: Reason why the model could not be traced, unless a checkpoint brings the quantizers along.
        unquantized_ops: Names of the calls that compute in FP32.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        weights: QuantizationSpec,
        activations: QuantizationSpec,
        backend: Backend,
        targets: Targets,
        example_inputs: Any,
    ) -> None:
        self.plan: QuantizerPlan | None = None
        self.failure: ValueError | None = None
        self.unquantized_ops: list[str] = []
        self._trainer = trainer
        self._model = pl_module
        self._specs = weights, activations
        self._backend = backend
        self._targets = targets
        self._tracer = GraphTracer(trainer, targets, example_inputs)
        self._owners: set[nn.Module] | None = None  # of the weights that have been quantized
        self._inserted = False
        self._loading: RemovableHandle | None = None

    def start(self, *, traces: bool) -> None:
        """Insert the quantizers, now or later.

        Args:
            traces: Trace the model; otherwise only a checkpoint has quantizers.

        Raises:
            ValueError: If the model is built already and has no targets, or if a specification does not fit it.
        """
        if is_built_late(self._model):
            self._try(traces)
            around_configure_model(self._model, before=lambda: self._try(traces), after=lambda: self._insert(traces))
        else:
            self._insert(traces)
        if self._trainer.strategy.restore_checkpoint_after_setup:
            # A sharded model is loaded tensor by tensor, and what it does not have is ignored.
            before_loading(self._trainer, lambda path: insert_quantizers_of_checkpoint(self._model, path))

    def stop(self) -> None:
        """Stop waiting for layers and for a checkpoint."""
        stop_waiting(self._model)
        stop_watching_loads(self._trainer)
        self._stop_loading()

    def clear_scales(self) -> None:
        """Set scales that no batch and no checkpoint has given to zero; a meta device makes them any number."""
        for ref in quantizers_of(self._model):
            if not ref.quantizer.ready:
                with torch.no_grad():
                    for name in ref.quantizer.tensor_names:
                        getattr(ref.module, name).zero_()

    def _stop_loading(self) -> None:
        stop_inserting_on_load(self._model, self._loading)
        self._loading = None

    def _try(self, traces: bool) -> None:
        try:
            self._insert(traces)
        except ValueError as error:  # raised after configure_model, if it is one then
            self.failure = error
            self._owners = None

    def _insert(self, traces: bool) -> None:
        with unfrozen(quantized_weights(self._model)):
            targets = self._targets.select(self._model)
            owners = {target.module for target in targets}
            if owners == self._owners and self.failure is None:
                return
            if self._inserted:
                remove_quantizers(self._model)
            self._owners, self.failure, self._inserted = owners, None, False
            self.plan = QuantizerPlan(*self._specs, owning_modules(targets), self._backend)
            self._stop_loading()
            self._loading = insert_quantizers_on_load(self._model, self.plan)
            if traces:
                self._insert_traced(self.plan)

    def _insert_traced(self, plan: QuantizerPlan) -> None:
        """Insert the quantizers, or check that those which the model has already are the same."""
        graph: Graph | None = None
        try:
            graph = self._tracer.graph(self._model)
        except ValueError as error:
            self.failure = error
        if is_quantized(self._model):
            plan.check_same(self._model, graph)
        elif graph is not None:
            placement = plan.insert_traced(self._model, graph)
            self._inserted = True
            self.unquantized_ops = [*(node.name for node in placement.unquantized_ops()), *graph.opaque]
            if self.unquantized_ops:
                rank_zero_info(
                    f"QuantizationAwareTraining: unquantized ops (FP32) are {shorten(self.unquantized_ops)}."
                )


def quantized_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are quantized already: they are targets even if they are frozen by now."""
    refs = [ref for ref in quantizers_of(model) if ref.quantizer.is_weight]
    return [parameter for ref in refs for parameter in ref.module.parameters(recurse=False)]
