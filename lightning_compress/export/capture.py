"""Capture of a model as a graph, common to all export targets."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from lightning_compress.arguments import Arguments
from lightning_compress.export.batch_inputs import dynamic_shapes
from lightning_compress.export.failures import failure_message
from lightning_compress.quantization.backend_operators import BackendOperators
from lightning_compress.quantization.call_patcher import unwound
from lightning_compress.quantization.finalize import copy_for_deployment
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import LoweredModel, lower
from lightning_compress.quantization.simulation import Simulation, simulate


def run_copy(model: nn.Module, inputs: Arguments) -> Simulation:
    """Run a copy of a model for deployment, and record its calls if it has quantizers.

    Raises:
        ValueError: If a parameter is not in FP32, or if the model cannot be run on the inputs.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"{name!r} has the dtype {tensor.dtype}, and exported files compute in FP32: export model.float() with "
                "example_inputs in FP32."
            )
    with _explicit_masks():
        return simulate(copy_for_deployment(model, "", "export"), inputs)


def lower_for(simulation: Simulation, operators: BackendOperators) -> LoweredModel:
    """Lower a model with quantizers for a target; a model without quantizers stays as it is.

    Raises:
        ValueError: If the model cannot be lowered, or the target does not support one of its quantized layers.
    """
    if not is_quantized(simulation.model):
        return LoweredModel(simulation.model)
    lowered = lower(simulation, operators)
    operators.check(lowered.layers)
    return lowered


def capture(model: nn.Module, inputs: Arguments, *, dynamic_batch: bool, dynamic_size: bool = False) -> ExportedProgram:
    """Capture the graph of a model without the parameters that lowering has replaced by constants.

    Args:
        model: The model.
        inputs: Its positional and keyword arguments.
        dynamic_batch: True if the first dimension of inputs may have any size.
        dynamic_size: True if the others may, as far as the model allows it.
    """
    args, kwargs = inputs
    is_dynamic = dynamic_batch or dynamic_size
    shapes = dynamic_shapes(args, kwargs, batch=dynamic_batch, size=dynamic_size) if is_dynamic else None
    with _explicit_masks(), unwound():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    _drop_unused(program)
    return program


@contextlib.contextmanager
def exporting(model: nn.Module, target: str, program: Callable[[], ExportedProgram] | None = None) -> Iterator[None]:
    """Run an exporter without gradients, logs and warnings, and translate its exceptions.

    Args:
        model: The model.
        target: Name of the target.
        program: Returns the graph of the model, which is searched for the cause of a failure.

    Raises:
        ValueError: For any exception within the context.
    """
    with torch.no_grad(), _quiet(), _without_garbage_collection():
        try:
            yield
        except Exception as error:
            raise ValueError(failure_message(error, model, target, program)) from error


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect no cycles: exporters create objects by the million, and a search among them takes time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _explicit_masks() -> Iterator[None]:
    """Let ``nn.Transformer`` use masks as they are: it looks for a causal one in their values, which a graph lacks."""
    transformer: Any = nn.modules.transformer
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


def _drop_unused(program: ExportedProgram) -> None:
    """Remove in place the parameters, buffers and constants that no node reads: they would only enlarge the file."""
    unused = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    signature = program.graph_signature
    for spec in list(signature.input_specs):
        # Inputs of the user have no target and stay, read or not: they are the signature of the file.
        if spec.target is not None and spec.arg.name in unused:
            program.graph.erase_node(unused[spec.arg.name])
            signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Exporters log and print whole graphs, addressed to their developers; their exceptions say what is wrong.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "executorch", "coremltools")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
