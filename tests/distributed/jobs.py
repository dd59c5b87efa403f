"""What each of the processes does; one process does the same on the union of their data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import TensorDataset

import lightning_compress as lc
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from lightning_compress.constraints.mask import MaskConstraint
from tests.cases import RAMP, Case, Loader, Net, assert_zeros, case, dataset, is_positive_zero, save_every_step, trainer

PATIENCE = timedelta(seconds=30)


class Share(Loader):
    """This rank's share of every batch, in double precision; all of it where there is one process."""

    def __init__(self) -> None:
        images, classes = dataset().tensors
        super().__init__(TensorDataset(images.double(), classes))

    def __iter__(self) -> Iterator[Any]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for images, classes in super().__iter__():
            yield images[rank::size], classes[rank::size]


def whole_batches() -> Loader:
    """Every batch as a whole on each rank, in double precision."""
    images, classes = dataset().tensors
    return Loader(TensorDataset(images.double(), classes))


class ShardedNet(Net):
    """Net whose weights are sharded over the data-parallel ranks by FSDP2."""

    def configure_model(self) -> None:
        if isinstance(self.fc.weight, DTensor):
            return
        for module in (self.conv1, self.conv2, self.fc, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class NetInOneGroup(Net):
    """Net whose weights are sharded together: its outermost module gathers them, and keeps them in evaluation."""

    def configure_model(self) -> None:
        if not isinstance(self, FSDPModule):
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


class ParallelNet(Net):
    """Net whose last layer is cut over the tensor-parallel ranks, which all have the same data."""

    def configure_model(self) -> None:
        if not isinstance(self.fc.weight, DTensor):
            parallelize_module(
                self.fc, self.device_mesh["tensor_parallel"], ColwiseParallel(output_layouts=Replicate())
            )


class LateNet(Net):
    """Net whose layers are made in a hook.

    Args:
        built: The hook: "setup" or "configure_model"; "meta" for the latter on the meta device, with weights that are
            loaded once there is memory for them.
        kind: Strategy, for which the weights are laid out in ``configure_model``.
        dtype: Type of the weights.
    """

    def __init__(self, built: str, *, kind: str, dtype: torch.dtype = torch.double) -> None:
        LightningModule.__init__(self)
        self.optimizer, self.frozen_norms = "adam", True
        self.built, self.kind, self.weight_dtype = built, kind, dtype

    def build(self) -> None:
        if not self._modules:
            with torch.device("meta" if self.built == "meta" else "cpu"):
                layers = dict(whole_net(self.weight_dtype).named_children())
            for name, layer in layers.items():
                self.add_module(name, layer)
            self.train()

    def train(self, mode: bool = True) -> Net:
        return super().train(mode) if self._modules else self

    def setup(self, stage: str) -> None:
        if self.built == "setup":
            self.build()

    def configure_model(self) -> None:
        self.build()
        layout = _CLASSES.get(self.kind)
        if layout is not None:
            layout.configure_model(self)

    def on_fit_start(self) -> None:
        if self.built == "meta":
            options = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(self, whole_net(self.weight_dtype).state_dict(), options=options)


def whole_net(dtype: torch.dtype) -> Net:
    return Net("adam", frozen_norms=True).to(dtype)


class Watch(Callback):
    """The whole masks after each batch; asserts that all ranks hold zeros there."""

    def __init__(self) -> None:
        self.masks: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        self.masks.append(whole_masks(run))
        assert_zeros(whole(dict(model.named_parameters())), self.masks[-1])
        for optimizer in run.optimizers:
            for name, mask in self.masks[-1].items():
                for value in optimizer.state[model.get_parameter(name)].values():
                    if isinstance(value, Tensor) and value.shape == mask.shape:
                        assert is_positive_zero(whole({name: value})[name][~mask])


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        for name, tensor in tensors.items()
    }


def whole_masks(run: Trainer) -> dict[str, Tensor]:
    constraints = [c.constraint for c in run.callbacks if isinstance(getattr(c, "constraint", None), MaskConstraint)]
    return {la.name: la.full(mask).clone() for c in constraints for la, mask in zip(c.layers, c.masks, strict=True)}


@dataclass
class Result:
    """What a fit ended with, on one rank."""

    state: dict[str, Tensor]
    masks: list[dict[str, Tensor]]
    momenta: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)


def num_ranks() -> int:
    return int(os.environ.get("NUM_RANKS", 1))


def is_sharded(kind: str) -> bool:
    return kind in ("fsdp2", "dcp")


def strategy(kind: str) -> Strategy | str:
    """The strategy of "ddp", "fsdp2", "dcp", which is FSDP2 with distributed checkpoints, or "tp"."""
    if kind == "ddp":
        return DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    if is_sharded(kind) or kind == "tp":
        sizes = (1, num_ranks()) if kind == "tp" else (num_ranks(), 1)
        return ModelParallelStrategy(
            data_parallel_size=sizes[0], tensor_parallel_size=sizes[1], process_group_backend="gloo", timeout=PATIENCE,
            save_distributed_checkpoint=kind == "dcp",
        )  # fmt: skip
    return "auto"


def placed(kind: str) -> dict[str, Any]:
    """Arguments of the Trainer."""
    if kind == "one":
        return {}
    return {"devices": num_ranks(), "strategy": strategy(kind), "use_distributed_sampler": False}


def make(case: Case, kind: str, seed: int = 0) -> Net:
    torch.manual_seed(seed + (dist.get_rank() if dist.is_initialized() else 0))
    model = _CLASSES.get(kind, Net)("adam", frozen_norms=True).double()
    case.prepare(model)
    return model


_CLASSES: dict[str, Any] = {"fsdp2": ShardedNet, "dcp": ShardedNet, "tp": ParallelNet}


def fit_model(
    model: LightningModule, kind: str, callbacks: list[Callback], ckpt_path: Path | None = None, **options: Any
) -> Result:
    watch = Watch()
    run = trainer([watch, *callbacks], **placed(kind), **options)
    run.fit(model, whole_batches() if kind == "tp" else Share(), ckpt_path=ckpt_path)
    return Result({name: t.clone() for name, t in whole(model.state_dict()).items()}, watch.masks)


def fit(name: str, kind: str, seed: int = 0, folder: Path | None = None, ckpt_path: Path | None = None) -> Result:
    """Fits a case and saves after steps 3, 5, 8, 10 and others; ``kind`` is "one", "ddp", "fsdp2" or "dcp"."""
    callbacks = case(name).callbacks()
    if folder is not None:
        # Not after every step: to gather what is sharded takes as long as to train.
        steps = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=n, save_top_k=-1) for n in (3, 5, 8)]
        callbacks.extend(steps)
    return fit_model(make(case(name), kind, seed), kind, callbacks, ckpt_path)


def saving(folder: Path | None) -> list[Callback]:
    """Saves after steps 5 and 10: to gather what is sharded takes as long as to train."""
    if folder is None:
        return []
    return [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)]


def fit_in_one_group(name: str) -> Result:
    """Fits a case with a validation before the first step and in mid-epoch."""
    torch.manual_seed(0)
    model = NetInOneGroup("adam", frozen_norms=True).double()
    run = trainer([watch := Watch(), *case(name).callbacks()], **placed("fsdp2"), val_check_interval=2)
    run.fit(model, Share(), Share())
    return Result({name: t.clone() for name, t in whole(model.state_dict()).items()}, watch.masks)


def fit_and_validate(name: str, kind: str, folder: Path) -> tuple[float, float, float]:
    """The validation losses after a fit, of its checkpoint, and after a fit that goes on from its middle."""
    losses = []
    for path in (None, folder / "step=10.ckpt", folder / "step=5.ckpt"):
        model = make(case(name), kind)
        run = trainer([*saving(folder if path is None else None), *case(name).callbacks()], **placed(kind))
        if path is None or path.name == "step=5.ckpt":
            run.fit(model, Share(), ckpt_path=path)
            path = None
        losses.append(run.validate(model, Share(), ckpt_path=path)[0]["val_loss"])
    return losses[0], losses[1], losses[2]


def fit_late(name: str, kind: str, built: str, ckpt_path: Path | None = None, folder: Path | None = None) -> Result:
    """Fits a case on a network that is made in a hook."""
    model = LateNet(built, kind=kind)
    return fit_model(model, kind, [*case(name).callbacks(), *saving(folder)], ckpt_path)


def finalize(kind: str, path: Path) -> tuple[Tensor, str]:
    """The outputs of the finalized model after a fit, and what is said when the model itself is packed."""
    model = make(case("prune_and_qat"), kind)
    fit_model(model, kind, case("prune_and_qat").callbacks())
    plain = lc.finalize(model)
    assert not any(isinstance(tensor, DTensor) for tensor in plain.state_dict().values())
    try:
        lc.save_packed(model, path)
        said = ""
    except ValueError as error:
        said = str(error)
    with torch.no_grad():
        return plain(dataset().tensors[0][:4].double()), said


def accumulate(name: str, kind: str) -> Result:
    return fit_model(make(case(name), kind), kind, case(name).callbacks(), accumulate_grad_batches=2)


def average(kind: str) -> Result:
    return fit_model(make(case("cubic"), kind), kind, [lc.Pruning(0.9, schedule=RAMP), EMAWeightAveraging(decay=0.5)])


def distil(
    name: str,
    kind: str,
    seed: int = 0,
    folder: Path | None = None,
    ckpt_path: Path | None = None,
    mean_teacher: bool = False,
    sharded_teacher: bool = False,
) -> Result:
    """Fits a case on a student whose teacher is another network of its kind, matching logits and features."""
    torch.manual_seed(seed + (dist.get_rank() if dist.is_initialized() else 0))
    teacher = (_CLASSES[kind] if sharded_teacher else Net)().double()
    for parameter in teacher.parameters():
        parameter.data.add_(0.1)
    # The last pair has a linear map between 4 and 8 channels, which is trained.
    losses = {"kd": lc.KD(), "hints": lc.FitNet((("conv2", "norm1"),)), "mapped": lc.FitNet((("fc", "norm2"),))}
    student = _CLASSES.get(kind, Net)("adam", frozen_norms=True).double()
    case(name).prepare(student)
    module = lc.DistillationModule(student, lc.MeanTeacher() if mean_teacher else teacher, losses=losses)
    module.objective.build_adapters({"mapped_0": [[4, 4], [4, 8, 5, 5]]})
    module.double()
    callbacks = case(name).callbacks() + saving(folder)
    result = fit_model(module, kind, callbacks, ckpt_path)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert "objective.adapters.mapped_0.map.weight" in trained, trained
    assert all(name.startswith(("student.", "objective.")) for name in trained)
    assert module.teacher.fc.weight.grad is None
    assert isinstance(module.teacher.fc.weight, DTensor) == sharded_teacher
    result.teacher = {name: tensor.clone() for name, tensor in whole(module.teacher.state_dict()).items()}
    return result


def shrink(kind: str, folder: Path | None = None, ckpt_path: Path | None = None) -> Result:
    """Fits what is left of the network without half of its channels."""
    inputs, masked = torch.randn(2, 4, 5, 5), Net()
    for group in find_groups(masked, (inputs,), {})[0]:
        group.zero_(named_tensors(masked), torch.arange(group.num_channels) % 2 == 1)
    shrunk = lc.Shrunk(lc.shrink(masked, inputs)[1])
    saved = [save_every_step(folder)] if folder is not None else []
    return fit_model(make(case("cubic"), kind), kind, [shrunk, *saved], ckpt_path)


class Tamper(Callback):
    """Changes the weights of one rank alone."""

    def on_train_batch_start(self, run: Trainer, model: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and run.global_rank == 1:
            model.conv1.weight.data.mul_(torch.rand_like(model.conv1.weight))


def tamper(kind: str) -> str:
    """What is said when one rank has other weights."""
    try:
        fit_model(make(case("cubic"), kind), kind, [Tamper(), lc.Pruning(0.9, schedule=RAMP)])
    except RuntimeError as error:
        return str(error)
    return ""


def refusal(name: str, kind: str, average: type[Callback] | None = None, options: Mapping[str, Any] = {}) -> str:
    """What is said when a case is refused, beside an average if there is one, which must be before the first step."""
    model = make(case(name), kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        fit_model(model, kind, [*case(name).callbacks(), *([average(**options)] if average else [])])
    except ValueError as error:
        after = whole(model.state_dict())
        assert all(torch.equal(after[key], before[key]) for key in before)
        return str(error)
    return ""


def evaluate(kind: str, path: Path) -> float:
    """The validation loss of a checkpoint."""
    model = make(case("cubic"), kind)
    run = trainer([lc.Pruning(0.9, schedule=RAMP)], **placed(kind))
    return run.validate(model, Share(), ckpt_path=path)[0]["val_loss"]
