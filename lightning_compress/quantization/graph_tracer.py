"""Runs of a model before it is trained: the calls that it makes, and its activations in the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_compress.quantization.insertion import QuantizerRef, quantizers_of, remove_quantizers
from lightning_compress.quantization.quantizer import quantizer_mode
from lightning_compress.quantization.quantizer_plan import owning_modules
from lightning_compress.quantization.tracing import Graph, record_graph
from lightning_compress.targets import Targets
from lightning_compress.trainer.example_inputs import common_ancestors, given_inputs
from lightning_compress.trainer.probe import TrainingProbe, probe_before_fit


class GraphTracer:
    """Runs copies of a model, on example inputs if there are any, else in a training step.

    Args:
        trainer: Trainer of the fit.
        targets: Layers to quantize.
        example_inputs: Inputs of ``targets.module``; by default the module's ``example_input_array``.
    """

    def __init__(self, trainer: Trainer, targets: Targets, example_inputs: Any) -> None:
        self._trainer = trainer
        self._targets = targets
        self._example_inputs = example_inputs

    def graph(self, pl_module: LightningModule) -> Graph:
        """Record the calls of the deployable submodule in eval mode and without quantizers, in ``Callback.setup``.

        Raises:
            ValueError: If the model cannot be run.
        """
        probe, given = probe_before_fit(
            self._trainer, pl_module, module=self._targets.module, example_inputs=self._example_inputs
        )
        remove_quantizers(probe.model)
        with torch.compiler.set_stance("force_eager"), record_graph(probe.model) as graph, torch.no_grad():
            try:
                probe.run() if given else probe.loss()
            except Exception as error:
                how = "on example inputs" if given else "in a training step before the fit"
                raise ValueError(
                    f"QuantizationAwareTraining could not run the model {how} ({type(error).__name__}: {error}): "
                    "give example_inputs that it runs on."
                ) from error
        layers = list(owning_modules(self._targets.select(pl_module)))
        return graph.within(_deployed(graph, self._targets.module, layers), layers)

    def at_first_batch(
        self, pl_module: LightningModule, refs: Sequence[QuantizerRef], batch: Any, batch_idx: int, *, divisor: int
    ) -> None:
        """Observe a batch before it is trained on, so that the first step has ranges.

        With manual optimization and without example inputs, no forward pass can be run apart from the training step;
        the first step then has no ranges.

        Args:
            pl_module: The model.
            refs: Its quantizers.
            batch: The batch.
            batch_idx: Its index.
            divisor: The first ``1 / divisor`` of the batch is observed.
        """
        given = given_inputs(pl_module, self._example_inputs)
        if not pl_module.automatic_optimization and given is None:
            return
        inputs = self._trainer.precision_plugin.convert_input(given)
        module = self._targets.module
        probe = TrainingProbe(self._trainer, pl_module, batch, batch_idx, module=module, example_inputs=inputs)
        copies = list(quantizers_of(probe.model))
        mode = quantizer_mode((copied.quantizer for copied in copies), observing=divisor, quantizing=False)
        with mode, torch.compiler.set_stance("force_eager"), torch.no_grad():
            probe.loss() if pl_module.automatic_optimization else probe.run()
        # Weights are updated at once; activations only hand over their statistics, which are reduced over ranks first.
        for ref, copied in zip(refs, copies, strict=True):
            if ref.quantizer.is_weight:
                ref.quantizer.copy_from(ref.module, copied.module, copied.quantizer)
            else:
                ref.quantizer.observed = copied.quantizer.observed


def _deployed(graph: Graph, module: str, layers: Sequence[str]) -> list[str]:
    """Return the deployed modules: the smallest one called that contains all targets, else those that contain some."""
    if module:
        return [module]
    called = [name for name in common_ancestors(layers) if name in graph.called]
    return called[-1:] or sorted({layer.split(".")[0] for layer in layers})
