"""The file of a quantized run, tested in the place of the model that it was made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten

import lightning_compress as lc
from lightning_compress.export.onnx.exporter import OnnxFile
from lightning_compress.export.onnx.runtime import feeds_of, session


@dataclass(frozen=True)
class Files:
    """What a quantized run has written.

    Attributes:
        integers: The file with integers.
        floats: The same model with floats.
        metrics: Test metrics of the file with integers, run by ONNX Runtime.
    """

    integers: OnnxFile
    floats: OnnxFile
    metrics: dict[str, float]


@contextmanager
def seen_inputs(module: nn.Module) -> Iterator[list[Any]]:
    """While it lasts, keeps the arguments of the first call of a module, a few samples of them, on the CPU."""
    seen: list[Any] = []

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        if not seen:
            given = (tuple(args), dict(kwargs))
            size = next((len(t) for t in tree_leaves(given) if isinstance(t, Tensor) and t.ndim), 0)
            seen.append(tree_map_only(Tensor, lambda t: _few(t.detach().cpu(), size), given))

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _few(tensor: Tensor, size: int) -> Tensor:
    """The first samples of a tensor that has as many as the first argument."""
    return tensor[:8] if tensor.ndim and len(tensor) == size else tensor


def write_files(model: LightningModule, module: str, inputs: Any, directory: Path) -> tuple[OnnxFile, OnnxFile]:
    """Writes ``model.onnx`` with integers and ``float.onnx`` with floats.

    Args:
        model: The quantized model.
        module: Name of its deployable part.
        inputs: Arguments of that part.
        directory: Where to write.
    """
    plain = lc.finalize(model, module=module).cpu()
    integers = lc.export_onnx(plain, directory / "model.onnx", inputs)
    return integers, lc.export_onnx(lc.float_copy(model, module=module).cpu(), directory / "float.onnx", inputs)


def in_place_of(model: LightningModule, module: str, file: OnnxFile, inputs: Any) -> LightningModule:
    """A copy of a LightningModule whose deployable part is a file, run by ONNX Runtime."""
    with torch.no_grad():
        output = lc.finalize(model, module=module).cpu()(*inputs[0], **inputs[1])
    tested = copy.deepcopy(model).cpu()
    runtime = _Runtime(file, output)
    if module:
        tested.set_submodule(module, runtime)
    else:
        vars(tested)["forward"] = runtime
    return tested


class _Runtime(nn.Module):
    """A file as a module."""

    def __init__(self, file: OnnxFile, output: Any) -> None:
        super().__init__()
        assert file.parity is not None
        self.session = session(file.path, precise=bool(file.parity.overflowing))
        self.structure = torch.utils._pytree.tree_structure(output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the file computes."""
        outputs = self.session.run(None, feeds_of(self.session.get_inputs(), (args, kwargs)))
        return tree_unflatten([torch.from_numpy(output) for output in outputs], self.structure)
