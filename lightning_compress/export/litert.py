"""Export to LiteRT (TensorFlow Lite), which computes in INT8 on phones, microcontrollers and CPUs."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_compress.arguments import Arguments, as_arguments
from lightning_compress.atomic_files import atomic_write
from lightning_compress.export.broadcasting import remove_expansions
from lightning_compress.export.capture import capture, exporting, lower_for, run_copy
from lightning_compress.export.executorch import ExecutorchOperators
from lightning_compress.export.executorch_passes import duplicate_dequantize
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.failures import running
from lightning_compress.export.litert_passes import crop_transposed_convolutions, spell_out_exponentials
from lightning_compress.export.lowered_parity import SplitModel, compare_segments
from lightning_compress.export.output_comparison import output_names, relative_difference, tensor_leaves, top1_agreement
from lightning_compress.export.requirements import require
from lightning_compress.profiling import latency_quartiles
from lightning_compress.quantization.backend import LiteRT
from lightning_compress.quantization.backend_operators import Weight
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.targets import shorten


@dataclass(frozen=True, kw_only=True)
class LitertFile(ExportedFile):
    """A ``.tflite`` file and its measurements.

    Attributes:
        top1_agreement: Fraction of the example inputs with the same top-1 class as the model.
    """

    top1_agreement: float


def export_litert(model: nn.Module, path: str | Path, example_inputs: Any) -> LitertFile:
    """Export a model as ``.tflite``, run the file in LiteRT and compare it with the model layer by layer.

    Quantize a model with concatenations or interpolations for it, with ``backend=LiteRT()``. Sigmoid, tanh, softmax and
    what contains them compute in FP32. The batch size is fixed to that of the example inputs. Inputs and outputs that
    the model quantizes are INT8 in the file, with their scales and zero points. A model without quantizers is written
    in FP32; :func:`float_copy` removes the quantizers of a model.

    Args:
        model: The model; it is not modified.
        path: Path of the file; an existing file is replaced once the new one is complete.
        example_inputs: Inputs of the model: a tensor, a tuple, or a dict of keyword arguments.

    Returns:
        The file and its measurements.

    Raises:
        ImportError: If the packages of the extra ``litert`` are not installed.
        ValueError: If a quantizer has not observed a batch, if only weights are quantized, if the operands of a
            concatenation or interpolation have several scales, if the model cannot be converted or the file not be
            run, if weights are not INT8 in the file, or if an activation differs from the model's by more than 1 LSB.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> import lightning_compress as lc
        >>> images = torch.rand(8, 3, 32, 32)
        >>> model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), [images])
        >>> lc.export_litert(model, "model.tflite", images[:1]).steps  # doctest: +SKIP
        {'input': 0, '1.relu': 0}
    """
    require("litert_torch", "ai_edge_litert", "torchao", extra="litert")
    operators, inputs = LitertOperators(), as_arguments(example_inputs)
    simulation = run_copy(model, inputs)
    lowered = lower_for(simulation, operators)
    quantizes = is_quantized(model)
    with atomic_write(path) as partial, running(operators.name, type(model).__name__):
        with _converting(model, lambda: capture(lowered.model, inputs, dynamic_batch=False)):
            partial.write_bytes(_convert(_Flat(lowered.model, inputs, output_names(simulation.output)), quantizes))
        _check_integers(partial.read_bytes(), lowered)
        steps = compare_segments(simulation, operators, _run_split)
        network = LitertNetwork(partial.read_bytes(), output_names(simulation.output))
        expected, actual = tensor_leaves(simulation.output), network.run(inputs)
        seconds = latency_quartiles(network.call(inputs))
    return LitertFile(
        path=Path(path),
        num_bytes=Path(path).stat().st_size,
        latency_quartiles=seconds,
        steps=steps,
        difference=relative_difference(expected, actual),
        unquantized_ops=tuple(lowered.unquantized_ops),
        top1_agreement=top1_agreement(expected, actual),
    )


class LitertOperators(ExecutorchOperators):
    """Quantization as ``quantized_decomposed`` operators, which litert-torch converts to the types of tensors."""

    name, backend = "LiteRT", LiteRT()
    subject = "this export to LiteRT"

    def weight(self, weight: Weight) -> Tensor:
        """Quantize and dequantize the FP32 value, as litert-torch finds no constant of integers."""
        qparams = (weight.scale, weight.zero_point, weight.axis, -127, 127, torch.int8)
        integers = self._ops.quantize_per_channel.default(weight.value, *qparams)
        return self._ops.dequantize_per_channel.default(integers, *qparams)


class LitertNetwork:
    """A file in LiteRT's interpreter, with one thread of this CPU.

    Args:
        serialized: The file.
        names: Names of the outputs; ``None`` for numbered ones.
    """

    def __init__(self, serialized: bytes, names: Sequence[str] | None = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=serialized, num_threads=1)
        self._signature = self._interpreter.get_signature_runner()
        self._inputs, self._outputs = self._signature.get_input_details(), self._signature.get_output_details()
        self._names = names or [f"output_{index}" for index in range(len(self._outputs))]

    def call(self, inputs: Arguments) -> Callable[[], dict[str, np.ndarray]]:
        """Return a function that runs the file on inputs, which are quantized before."""
        # Inputs that the model does not read are not in the file.
        feeds = {f"args_{index}": tensor for index, tensor in enumerate(tensor_leaves(inputs))}
        arrays = {name: _quantize(feeds[name], details) for name, details in self._inputs.items()}
        return lambda: self._signature(**arrays)

    def run(self, inputs: Arguments) -> list[Tensor]:
        """Return the outputs in order, dequantized."""
        outputs = self.call(inputs)()
        return [_dequantize(outputs[name], self._outputs[name]) for name in self._names]


def _quantize(tensor: Tensor, details: dict[str, Any]) -> np.ndarray:
    array, dtype = tensor.detach().cpu().numpy(), details["dtype"]
    scale, zero_point = details["quantization"]
    if scale:
        ends = np.iinfo(dtype)
        array = np.clip(np.round(array / np.float32(scale)) + zero_point, ends.min, ends.max)
    return array.astype(dtype)


def _dequantize(array: np.ndarray, details: dict[str, Any]) -> Tensor:
    scale, zero_point = details["quantization"]
    return torch.from_numpy((array.astype(np.float32) - zero_point) * np.float32(scale) if scale else array)


class _Flat(nn.Module):
    """A model with tensors as positional inputs, and a tuple or a flat dict of outputs.

    Args:
        model: The model.
        inputs: Its positional and keyword arguments.
        names: Names of the outputs.
    """

    def __init__(self, model: nn.Module, inputs: Arguments, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model = model.eval()
        self._leaves, self._structure = tree_flatten(inputs)
        self._names = names

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs."""
        return tuple(leaf for leaf in self._leaves if isinstance(leaf, Tensor))

    def forward(self, *tensors: Tensor) -> Any:
        """Run the model."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._structure)
        outputs = tensor_leaves(self.model(*args, **kwargs))
        return tuple(outputs) if self._names is None else dict(zip(self._names, outputs, strict=True))


@contextmanager
def _converting(model: nn.Module, program: Callable[[], Any] | None = None) -> Iterator[None]:
    with exporting(model, LitertOperators.name, program), redirect_stdout(io.StringIO()):
        yield


def _convert(flat: _Flat, quantizes: bool) -> bytes:
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    # Nothing is quantized by it: it only says that the scales in the graph are those of static quantization.
    static = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    config = QuantConfig(pt2e_quantizer=static) if quantizes else None
    program = capture(flat, (flat.tensors, {}), dynamic_batch=False)
    crop_transposed_convolutions(program.graph_module)
    remove_expansions(program.graph_module)
    spell_out_exponentials(program.graph_module)
    # If two readers share one, litert-torch lets some read it in the layout of the others.
    duplicate_dequantize(program.graph_module)
    return litert_torch.convert(program.module(), flat.tensors, quant_config=config)._exporter.to_bytes()


def _check_integers(serialized: bytes, lowered: LoweredModel) -> None:
    """Check that the weights of all quantized layers are in the file, in any order of their dimensions."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    reference = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=serialized, experimental_op_resolver_type=reference)
    interpreter.allocate_tensors()
    constants = []
    for details in interpreter.get_tensor_details():
        if details["dtype"] is np.int8 and len(details["quantization_parameters"]["scales"]):
            # Activations have no values before a run.
            constants.append(interpreter.get_tensor(details["index"]))
    missing = tuple(layer.name for layer in lowered.layers if not _is_stored(layer.weight.integers.numpy(), constants))
    if missing:
        raise ValueError(
            f"The weights of {shorten(list(missing))} are not stored as INT8 in the file: exclude what LiteRT has no "
            f"INT8 kernel for from quantization with targets=Targets(exclude={missing})."
        )


def _is_stored(integers: np.ndarray, constants: Sequence[np.ndarray]) -> bool:
    """Return whether a tensor is one of the constants, with its dimensions in any order."""
    orders = [*itertools.permutations(range(integers.ndim))]
    return any(
        array.size == integers.size
        and any(np.array_equal(integers.transpose(order).reshape(array.shape), array) for order in orders)
        for array in constants
    )


class _Segments(nn.Module):
    """Some segments of a split model, those from ``start`` to ``stop``."""

    def __init__(self, split: SplitModel, start: int, stop: int) -> None:
        super().__init__()
        self.split, self._start, self._stop = split, start, stop

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Return the activations that these segments compute."""
        return self.split(*arguments)[self._start : self._stop]


def _run_split(split: SplitModel, arguments: Arguments) -> Sequence[Tensor]:
    return _run_segments(split, arguments, 0, len(split.feeds))


def _run_segments(split: SplitModel, arguments: Arguments, start: int, stop: int) -> list[Tensor]:
    try:
        with _converting(split):
            serialized = _convert(_Flat(_Segments(split, start, stop), arguments, None), quantizes=True)
    except ValueError:
        # litert-torch's choice of layouts fails on some graphs of many inputs and outputs: fewer at a time.
        if stop - start == 1:
            raise
        middle = (start + stop) // 2
        return [*_run_segments(split, arguments, start, middle), *_run_segments(split, arguments, middle, stop)]
    return LitertNetwork(serialized).run(arguments)
