"""Quantizers in checkpoints: insertion where the state dict has them, and the state of the observers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.utils.hooks import RemovableHandle

from lightning_compress.quantization.insertion import quantizers_of, remove_quantizers
from lightning_compress.quantization.observers import RangeStatistics
from lightning_compress.quantization.placement import QuantizationPoint
from lightning_compress.quantization.quantizer import PREFIX
from lightning_compress.quantization.quantizer_plan import QuantizerPlan

_PLAN = "_quantization_plan"
_FORMAT = ("bits", "symmetric", "granularity")  # attributes of an Int that determine its grid


def insert_quantizers_on_load(pl_module: LightningModule, plan: QuantizerPlan) -> RemovableHandle:
    """Insert quantizers where a loaded checkpoint has them, until :func:`stop_inserting_on_load` is called."""
    vars(pl_module)[_PLAN] = plan
    handle = pl_module.register_load_state_dict_pre_hook(_insert_stored)
    # Before other hooks, which may look for the parameters that are loaded.
    pl_module._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]
    return handle


def stop_inserting_on_load(pl_module: LightningModule, handle: RemovableHandle | None) -> None:
    """Undo :func:`insert_quantizers_on_load`."""
    vars(pl_module).pop(_PLAN, None)
    if handle is not None:
        handle.remove()


def insert_quantizers_of_checkpoint(pl_module: LightningModule, path: Path) -> None:
    """Insert quantizers where a checkpoint file or a directory of a distributed checkpoint has them.

    Args:
        pl_module: Model for which :func:`insert_quantizers_on_load` was called.
        path: Path of the checkpoint.

    Raises:
        ValueError: If only the model has quantizers, and loading is strict.
    """
    stored = _shards_of(path) if path.is_dir() else _weights_of(path)
    _insert_stored(pl_module, stored, "")
    ours = sorted(_quantizer_keys(pl_module.state_dict()))
    if ours and pl_module.strict_loading and not _quantizer_keys(stored):
        raise ValueError(
            f"The checkpoint is of another model: {ours[0]!r} is only in the model. To quantize a trained model, load "
            "its weights and start a new run."
        )


def _weights_of(path: Path) -> Mapping[str, Tensor]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True).get("state_dict", {})


def _shards_of(path: Path) -> Mapping[str, Tensor]:
    """Return tensors of the names and shapes of a distributed checkpoint; their values are loaded later."""
    entries = FileSystemReader(path).read_metadata().state_dict_metadata.items()
    tensors = {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
    prefix = "state_dict."
    return {
        name.removeprefix(prefix): torch.ones(()).expand(entry.size)
        for name, entry in tensors.items()
        if name.startswith(prefix)
    }


def statistics_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the observer statistics of activations by quantizer name, on the CPU."""
    return {
        ref.name: {"min_max": statistics.min_max.cpu(), "counts": statistics.counts.cpu()}
        for ref in quantizers_of(model)
        if (statistics := ref.quantizer.statistics) is not None and not ref.quantizer.is_weight
    }


def restore_statistics(model: nn.Module, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set the observer statistics to those of :func:`statistics_of`, and clear all others."""
    for ref in quantizers_of(model):
        ref.quantizer.statistics = ref.quantizer.observed = None
        if ref.name in statistics:
            min_max, counts = (statistics[ref.name][name] for name in ("min_max", "counts"))
            device = ref.quantizer.scale(ref.module).device
            ref.quantizer.statistics = RangeStatistics(min_max.to(device), counts.to(device))


def _insert_stored(pl_module: LightningModule, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Load-state-dict pre-hook: replace the quantizers of the model by those of the checkpoint, if they differ."""
    stored_keys = _quantizer_keys(stored)
    if prefix or not stored_keys or _PLAN not in vars(pl_module):
        return
    if stored_keys != _quantizer_keys(pl_module.state_dict()):
        remove_quantizers(pl_module)
        vars(pl_module)[_PLAN].insert_stored(pl_module, stored)


def _quantizer_keys(state: Mapping[str, Tensor]) -> set[str]:
    return {key for key in state if key.rpartition(".")[2].startswith(PREFIX)}


def check_stored_formats(stored: Mapping[str, Any], plan: QuantizerPlan) -> None:
    """Check that the quantizers of a checkpoint have the formats of a plan.

    Args:
        stored: Specification of each quantizer of the checkpoint by its name, as plain data.
        plan: Specifications of the callback.

    Raises:
        ValueError: If one differs in its bits, symmetry or granularity: its scale would be that of another grid.
    """
    for name, plain in stored.items():
        module, _, quantizer = name.rpartition(".")
        # Compared as plain data: the observer may be of a class that a checkpoint must not import.
        found = {field: plain["init_args"][field] for field in _FORMAT}
        expected = plan.spec_at(QuantizationPoint.from_name(module, quantizer))
        if expected is None or found != {field: getattr(expected, field) for field in _FORMAT}:
            others = ", ".join(f"{field}={found[field]!r}" for field in _FORMAT[1:])
            raise ValueError(
                f"The checkpoint quantizes {name!r} to {found['bits']} bits ({others}), and the callback has "
                f"{expected or 'FP32'}: pass the formats of the checkpoint, or load its weights alone to start anew."
            )
