"""Capture of a model as a graph, common to all export targets."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.export import ExportedProgram

from lightning_compress.arguments import Arguments
from lightning_compress.export.batch_inputs import dynamic_batch_shapes
from lightning_compress.export.failures import failure_message
from lightning_compress.quantization.backend import Backend
from lightning_compress.quantization.finalize import finalize
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import LoweredModel, lower


def lower_or_copy(model: nn.Module, inputs: Arguments, backend: Backend) -> LoweredModel:
    """Lower a model with quantizers for a target, or copy a model without quantizers as FP32.

    Raises:
        ValueError: If a parameter is not in FP32, if the model cannot be lowered, or the target does not support one
            of its quantized layers.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(
                f"{name!r} has the dtype {tensor.dtype}, and exported files compute in FP32: export model.float() with "
                "example_inputs in FP32."
            )
    if not is_quantized(model):
        return LoweredModel(finalize(model))
    lowered = lower(model, inputs, backend)
    backend.check(lowered.layers)
    return lowered


def capture(model: nn.Module, inputs: Arguments, *, dynamic_batch: bool) -> ExportedProgram:
    """Capture the graph of a model without the parameters that lowering has replaced by constants.

    Args:
        model: The model.
        inputs: Its positional and keyword arguments.
        dynamic_batch: True if the first dimension of inputs may have any size.
    """
    args, kwargs = inputs
    shapes = dynamic_batch_shapes(args, kwargs) if dynamic_batch else None
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
    with torch.no_grad(), _quiet():
        try:
            yield
        except Exception as error:
            raise ValueError(failure_message(error, model, target, program)) from error


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
    # Exporters log whole graphs at WARNING level, addressed to their developers.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "executorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
