"""Queries about a Trainer, its callbacks and its model.

Classes of Lightning are recognized by name, so that a Trainer of ``pytorch_lightning`` works as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle


def is_a(instance: object, *names: str) -> bool:
    """Return True if the class of an object, or one of its bases, has one of the names."""
    return any(base.__name__ in names for base in type(instance).__mro__)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a Trainer in the order in which they are called."""
    return trainer.callbacks  # type: ignore[attr-defined]


def check_trainer(trainer: object, technique: str) -> None:
    """Check that a callback is called by a Trainer.

    Raises:
        ValueError: For Lightning Fabric, which has neither a plan of the run nor all hooks.
    """
    if not is_a(trainer, "Trainer"):
        raise ValueError(
            f"{technique} does not support Lightning Fabric, which has no plan of the run and calls no hooks around "
            "backward passes: train with lightning.pytorch.Trainer."
        )


def find_frozen(pl_module: LightningModule, parameters: Sequence[nn.Parameter]) -> frozenset[int]:
    """Return the indices of parameters that are not trained; those that ``toggle_optimizer`` sets aside are."""
    toggled = cast("dict[nn.Parameter, bool]", pl_module._param_requires_grad_state)  # annotated with str there
    still = [i for i, parameter in enumerate(parameters) if not parameter.requires_grad]
    return frozenset(i for i in still if not toggled.get(parameters[i], False))


def check_strategy(trainer: Trainer, technique: str, *, by_shard: bool = True) -> None:
    """Check that the optimizer holds the weights in their own shapes.

    Args:
        trainer: Trainer of the fit.
        technique: Name of the technique, for the message.
        by_shard: The technique needs no more of a layer than a rank has under tensor parallelism.

    Raises:
        ValueError: For FSDP1 and DeepSpeed, which flatten or split weights; for tensor parallelism, where a rank has a
            share of a layer's channels, unless ``by_shard``; for averages of the weights of a sharded model.
    """
    if is_a(trainer.strategy, "FSDPStrategy", "DeepSpeedStrategy"):
        raise ValueError(
            f"{technique} does not support {type(trainer.strategy).__name__}, which flattens or splits weights: "
            "use 'ddp', or ModelParallelStrategy with FSDP2's fully_shard in configure_model."
        )
    is_parallel = is_a(trainer.strategy, "ModelParallelStrategy")
    if is_tensor_parallel(trainer) and not by_shard:
        raise ValueError(
            f"{technique} does not support tensor parallelism, where a rank has only its share of a layer's channels: "
            "set tensor_parallel_size=1 and data_parallel_size to the number of ranks, and shard with fully_shard."
        )
    averages = [c for c in callbacks_of(trainer) if is_a(c, "WeightAveraging", "StochasticWeightAveraging")]
    if is_parallel and averages:
        raise ValueError(
            f"{type(averages[0]).__name__} does not support ModelParallelStrategy beside {technique}: it copies the "
            "model, which is sharded. Leave it out, or use 'ddp'."
        )


def is_tensor_parallel(trainer: Trainer) -> bool:
    """Return True if several ranks compute one layer together."""
    if not is_a(trainer.strategy, "ModelParallelStrategy"):
        return False
    return trainer.strategy.device_mesh["tensor_parallel"].size() > 1  # type: ignore[attr-defined]


def overrides_hook(pl_module: LightningModule, name: str) -> bool:
    """Return True if a model overrides a hook of Lightning."""
    return not getattr(type(pl_module), name).__module__.endswith(".core.hooks")


def is_built_late(pl_module: LightningModule) -> bool:
    """Return True if a model overrides a hook that may build parts of it after ``Callback.setup``."""
    hooks = (getattr(type(pl_module), name) for name in ("configure_model", "setup"))
    # The modules of this package override these hooks too, but build nothing in them.
    overridden = not all(
        re.search(r"\.core\.hooks$|^lightning_compress\.(distillation|models)\.", hook.__module__) for hook in hooks
    )
    parts = [part for part in pl_module.children() if is_a(part, "LightningModule")]
    return overridden or any(is_built_late(cast(LightningModule, part)) for part in parts)


def guard_weight_loading(pl_module: LightningModule) -> RemovableHandle:
    """Reject weights of another model before any is copied, until the returned handle is removed."""
    return pl_module.register_load_state_dict_pre_hook(_check_same_model)


def _check_same_model(pl_module: LightningModule, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    # With a prefix it is a copy inside an average of the weights, which took this hook along.
    if prefix or not pl_module.strict_loading:
        return
    ours = pl_module.state_dict()
    for name in (*ours, *stored):
        if name not in ours or name not in stored:
            where = "is only in the checkpoint" if name not in ours else "is only in the model"
        elif ours[name].shape != stored[name].shape:
            shapes = tuple(stored[name].shape), tuple(ours[name].shape)
            where = f"has shape {shapes[0]} in the checkpoint and {shapes[1]} in the model"
        else:
            continue
        raise ValueError(f"The checkpoint is of another model: {name!r} {where}.")


def is_compiled(pl_module: LightningModule) -> bool:
    """Return True if ``torch.compile`` has been applied to the model or to a submodule."""
    parts = (is_a(m, "OptimizedModule") or m._compiled_call_impl is not None for m in pl_module.modules())
    return getattr(pl_module, "_compiler_ctx", None) is not None or any(parts)


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Yield the copies of the model in which callbacks (WeightAveraging, SWA) average its weights."""
    for callback in callbacks_of(trainer):
        average = getattr(callback, "_average_model", None)
        if isinstance(average, AveragedModel):
            yield average.module
        elif isinstance(average, nn.Module):
            yield average


def loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """Return the loss scale that gradients still carry: only fused optimizers unscale them inside their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return scaler.get_scale() if scaler is not None and fused else 1.0
