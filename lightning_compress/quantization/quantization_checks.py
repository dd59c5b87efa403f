"""Checks of the Trainer and the model before quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_compress.constraints.layer import Layer
from lightning_compress.masked_norms import check_no_masked_norms
from lightning_compress.quantization.insertion import QuantizerRef, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.observers import Learned
from lightning_compress.trainer.queries import callbacks_of, is_a


def check_quantizable(trainer: Trainer, pl_module: LightningModule, module: str, quantization: Callback) -> None:
    """Check for configurations that quantization-aware training does not support.

    Args:
        trainer: Trainer of the fit.
        pl_module: The model.
        module: Name of its deployable submodule.
        quantization: The callback.

    Raises:
        ValueError: For synchronized batch norms, a second QuantizationAwareTraining
            callback, a weight averaging callback before this one, and norms that skip masked channels.
    """
    check_no_masked_norms(pl_module, "QuantizationAwareTraining")
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        raise ValueError(
            "QuantizationAwareTraining does not support sync_batchnorm=True, which replaces batch norms after "
            "quantizers were placed: set it to False; statistics are frozen later in the run anyway."
        )
    for name, norm in pl_module.named_modules():
        if isinstance(norm, nn.SyncBatchNorm) and f"{name}.".startswith(f"{module}." if module else ""):
            raise ValueError(
                f"QuantizationAwareTraining does not support synchronized batch norms such as {name!r}, whose "
                "functions are not observed: leave them plain; statistics are frozen later in the run anyway."
            )
    if sum(isinstance(callback, type(quantization)) for callback in callbacks_of(trainer)) > 1:
        raise ValueError(
            "The Trainer has two QuantizationAwareTraining callbacks, and a model is quantized once: use one, with "
            "specifications by globs such as weights={'fc': Int(4), '*': Int(8)}."
        )
    # An averaged model is a deep copy that is made in setup: made first, it would have no quantizers.
    for callback in callbacks_of(trainer):
        if callback is quantization:
            break
        if getattr(callback, "_average_model", None) is not None:
            raise ValueError(
                f"{type(callback).__name__} has copied the model before it was quantized: put "
                "QuantizationAwareTraining before it in callbacks=[...]."
            )


def check_shardable(trainer: Trainer, specs: Iterable[Int]) -> None:
    """Check that the parameters of quantizers can be sharded.

    Args:
        trainer: Trainer of the fit.
        specs: Specifications of all quantizers.

    Raises:
        ValueError: Under ModelParallelStrategy for learned scales.
    """
    is_sharded = is_a(trainer.strategy, "ModelParallelStrategy")
    if is_sharded and any(isinstance(spec.observer, Learned) for spec in specs):
        raise ValueError(
            "QuantizationAwareTraining does not support observer=Learned() with ModelParallelStrategy, which cannot "
            "shard scales, parameters of one number: use another observer, such as MSE(), or 'ddp'."
        )


def check_groups_fit_shards(refs: Iterable[QuantizerRef]) -> None:
    """Check that no group of weights with one scale is cut by tensor parallelism.

    Raises:
        ValueError: If one is; with the name of the first layer.
    """
    for ref in refs:
        weight, group = getattr(ref.module, ref.quantizer.name, None), ref.quantizer.spec.granularity
        if not isinstance(group, int) or not isinstance(weight, DTensor):
            continue
        layer = Layer(ref.name, cast(nn.Parameter, weight))
        if layer.shard_shape[1] % group:
            raise ValueError(
                f"The input dimension of {ref.name!r}, of which a rank has {layer.shard_shape[1]}, cannot be cut into "
                f"groups of {group}: choose a granularity that divides it."
            )


def check_learned(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check that an optimizer trains every learned scale.

    Raises:
        ValueError: If a scale is missing; with the name of the first one.
    """
    trained = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    for ref in quantizers_of(pl_module):
        if ref.quantizer.is_learned and id(ref.quantizer.scale(ref.module)) not in trained:
            raise ValueError(
                f"No optimizer holds the learned scale of {ref.name!r}: configure_optimizers must pass "
                "self.parameters(), or those with the prefix 'quant_' too."
            )
