"""Runs of a model before it is trained: the calls that it makes, and its activations in the first batch."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_compress.arguments import reason
from lightning_compress.quantization.insertion import QuantizerRef, quantizers_of, remove_quantizers
from lightning_compress.quantization.quantizer import PREFIX, quantizer_mode
from lightning_compress.quantization.quantizer_plan import owning_modules
from lightning_compress.quantization.tracing import Graph, record_graph
from lightning_compress.sharded_modules import is_sharded
from lightning_compress.targets import Targets
from lightning_compress.trainer.example_inputs import common_ancestors, given_inputs
from lightning_compress.trainer.in_place_probe import InPlaceProbe
from lightning_compress.trainer.probe import NOT_CALLED, TrainingProbe, probe_before_fit
from lightning_compress.trainer.trial import record_calls


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
        layers = list(owning_modules(self._targets.select(pl_module)))
        module = self._targets.module
        try:
            graph = _record(probe, probe.run if given else probe.step)
        except Exception as error:
            if given:
                raise ValueError(
                    f"QuantizationAwareTraining could not run the model on example inputs ({type(error).__name__}: "
                    f"{reason(error)}): give example_inputs that it runs on."
                ) from error
            # A network that answers otherwise in training is run by itself, on the inputs that it gets there.
            graph = _record_by_itself(probe, module, layers)
        return graph.within(_deployed(graph.called, module, layers), layers)

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
        probe_class = _SharedProbe if is_sharded(pl_module) else TrainingProbe
        probe = probe_class(self._trainer, pl_module, batch, batch_idx, module=module, example_inputs=inputs)
        copies = list(quantizers_of(probe.model))
        mode = quantizer_mode((copied.quantizer for copied in copies), observing=divisor, quantizing=False)
        with mode, torch.compiler.set_stance("force_eager"), torch.no_grad():
            probe.step() if pl_module.automatic_optimization else probe.run()
        # Weights are updated at once; activations only hand over their statistics, which are reduced over ranks first.
        for ref, copied in zip(refs, copies, strict=True):
            if ref.quantizer is copied.quantizer:
                continue
            if ref.quantizer.is_weight:
                ref.quantizer.copy_from(ref.module, copied.module, copied.quantizer)
            else:
                ref.quantizer.observed = copied.quantizer.observed


class _SharedProbe(InPlaceProbe):
    """Probe of the model itself, which keeps the ranges that its quantizers observe."""

    keeps = PREFIX


def _record(probe: TrainingProbe, run: Callable[[], Any]) -> Graph:
    with torch.compiler.set_stance("force_eager"), record_graph(probe.model) as graph, torch.no_grad():
        run()
    return graph


def _record_by_itself(probe: TrainingProbe, module: str, layers: Sequence[str]) -> Graph:
    calls = record_calls(probe)
    names = [name for name in _deployed(calls, module, layers) if name in calls]
    if not names:
        raise ValueError(NOT_CALLED)

    def run() -> None:
        for name in names:
            args, kwargs = calls[name]
            probe.model.get_submodule(name)(*args, **kwargs)

    return _record(probe, run)


def _deployed(called: Container[str], module: str, layers: Sequence[str]) -> list[str]:
    """Return the deployed modules: the smallest one called that contains all targets, else those that contain some."""
    if module:
        return [module]
    found = [name for name in common_ancestors(layers) if name in called]
    return found[-1:] or sorted({layer.split(".")[0] for layer in layers})
