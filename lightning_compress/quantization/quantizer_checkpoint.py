"""What checkpoints have of quantization: quantizers that come with weights, and what observers know."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.quantization.insertion import quantizers_of, remove_quantizers
from lightning_compress.quantization.observers import RangeStatistics
from lightning_compress.quantization.quantizer import PREFIX
from lightning_compress.quantization.quantizer_plan import QuantizerPlan

_PLAN = "_quantization_plan"


def insert_quantizers_on_load(pl_module: LightningModule, plan: QuantizerPlan) -> RemovableHandle:
    """Until :func:`stop_inserting_on_load`, hangs quantizers in where a checkpoint that is loaded has them."""
    vars(pl_module)[_PLAN] = plan
    handle = pl_module.register_load_state_dict_pre_hook(_insert_stored)
    pl_module._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]
    return handle


def stop_inserting_on_load(pl_module: LightningModule, handle: RemovableHandle | None) -> None:
    """Loads weights as before again."""
    vars(pl_module).pop(_PLAN, None)
    if handle is not None:
        handle.remove()


def statistics_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What observers of activations know, by the names of the places."""
    return {
        attached.name: {"min_max": statistics.min_max.cpu(), "counts": statistics.counts.cpu()}
        for attached in quantizers_of(model)
        if (statistics := attached.quantizer.statistics) is not None and not attached.quantizer.is_weight
    }


def restore_statistics(model: nn.Module, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Makes observers know what they knew, and nothing else."""
    for attached in quantizers_of(model):
        attached.quantizer.statistics = attached.quantizer.observed = None
        if attached.name in statistics:
            min_max, counts = (statistics[attached.name][name] for name in ("min_max", "counts"))
            device = attached.quantizer.scale(attached.module).device
            attached.quantizer.statistics = RangeStatistics(min_max.to(device), counts.to(device))


def _insert_stored(pl_module: LightningModule, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before a checkpoint's weights are loaded: hangs quantizers in where it has them."""
    theirs = _quantizer_keys(stored)
    if prefix or not theirs or _PLAN not in vars(pl_module):
        return
    if theirs != _quantizer_keys(pl_module.state_dict()):
        remove_quantizers(pl_module)
        vars(pl_module)[_PLAN].insert_stored(pl_module, stored)


def _quantizer_keys(state: Mapping[str, Tensor]) -> set[str]:
    return {key for key in state if key.rpartition(".")[2].startswith(PREFIX)}
