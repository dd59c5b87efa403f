"""Catching a model as a graph, for all exporters alike."""

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
from lightning_compress.export.failures import explained
from lightning_compress.quantization.backend import Backend
from lightning_compress.quantization.finalize import finalize
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import Lowered, lower


def lowered_or_float(model: nn.Module, inputs: Arguments, dialect: Backend, *, unsigned: bool) -> Lowered:
    """What is written of a model: integers in a dialect, or floats where it has no quantizers."""
    return lower(model, inputs, dialect, unsigned=unsigned) if is_quantized(model) else Lowered(finalize(model))


def captured(model: nn.Module, inputs: Arguments, *, dynamic_batch: bool) -> ExportedProgram:
    """The graph of a model, without parameters that lowering has replaced; any batch size where that is asked for."""
    args, kwargs = inputs
    shapes = dynamic_batch_shapes(args, kwargs) if dynamic_batch else None
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    _drop_unused(program)
    return program


@contextlib.contextmanager
def exporting(model: nn.Module, target: str, program: Callable[[], ExportedProgram] | None = None) -> Iterator[None]:
    """Says in one sentence what went wrong, and nothing of what exporters tell their own developers.

    Args:
        model: The model.
        target: What it is exported to.
        program: Its graph, to be looked at when something goes wrong.

    Raises:
        ValueError: For any exception within.
    """
    with torch.no_grad(), _quiet():
        try:
            yield
        except Exception as error:
            raise ValueError(explained(error, model, target, program)) from error


def _drop_unused(program: ExportedProgram) -> None:
    """In place: parameters, buffers and constants that nothing reads are not written."""
    unused = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    signature = program.graph_signature
    for spec in list(signature.input_specs):
        if spec.target is not None and spec.arg.name in unused:
            program.graph.erase_node(unused[spec.arg.name])
            signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
