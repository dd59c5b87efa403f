"""The registry: one line in ``CASES`` buys the contracts of every suite. Beside it the small things they all train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.constraints.mask import MaskConstraint

NUM_STEPS = 10  # two epochs of five batches
RAMP = lc.Schedule(begin=0.1, end=0.7, every=2)  # updates after steps 1, 2, 4, 6 and 7
AT_START = lc.Schedule(begin=0.0, curve="one_shot")
DYNAMIC = lc.Schedule(begin=0.0, end=0.7, every=2, curve="one_shot")
BODY = lc.Targets(exclude=("fc",))


@dataclass(frozen=True)
class Case:
    """A technique or a combination, and what is to be expected of it.

    Attributes:
        name: How the tests call it.
        callbacks: Makes the callbacks of one run.
        zeros: Masked weights in the end, of the 384 of :class:`Net` (conv1 288, conv2 64, fc 32); 0: nothing is masked.
        within: How far from that a pattern of larger units may end.
        values: Most values that a layer has in the end; 0: any number.
        grows: Whether weights may come back.
        rounds_to_zero: Whether weights become zero that are not masked.
        prepare: What is done to a model before its first fit.
        refused: Suites in which a ``ValueError`` is expected, and words of it: "average first" (WeightAveraging before
            the technique), "compile" (a compiled module), "fsdp2" (sharded), "late" (a model built in setup), "manual"
            (manual optimization), "teacher" (a frozen network inside the module).
        differs: Suites with an equality that mathematics does not promise, and the reason: "double" (64-bit against
            32-bit), "union" (two processes against one on the data of both).
    """

    name: str
    callbacks: Callable[[], list[Callback]]
    zeros: int = 0
    within: int = 0
    values: int = 0
    grows: bool = False
    rounds_to_zero: bool = False
    prepare: Callable[[nn.Module], None] = lambda model: None
    refused: Mapping[str, str] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantizes(self) -> bool:
        """True if the model has quantizers in the end."""
        return any(isinstance(callback, lc.QuantizationAwareTraining) for callback in self.callbacks())

    def evaluating(self) -> list[Callback]:
        """What a Trainer needs to load a checkpoint into a fresh model: nothing, unless scales come with it."""
        return self.callbacks() if self.quantizes else []


def halve(model: nn.Module) -> None:
    """Writes zeros into every second weight."""
    for target in lc.Targets().select(model):
        target.parameter.data.flatten()[::2] = 0.0


def qat(**options: Any) -> list[Callback]:
    """Quantization-aware training."""
    return [lc.QuantizationAwareTraining(**options)]


PROBES = "runs training_step by itself"
CHANNELS_REFUSE = {"late": "build the model in __init__"}
QAT_REFUSES = {"average first": "put QuantizationAwareTraining before it"}
LEARNED_REFUSES = {**QAT_REFUSES, "fsdp2": "does not support observer=Learned() with ModelParallelStrategy"}
LATE = lc.Schedule(begin=0.0, end=0.8, every=1)  # with pruning on RAMP: updates after steps 7 and 8
MILESTONES = lc.QATSchedule(observe=2, fake_quantize=4, freeze_observers=6, freeze_batch_norm=8)
LEARNED = lc.Int(4, observer=lc.Learned())

CASES = [
    Case("cubic", lambda: [lc.Pruning(0.9, schedule=RAMP)], zeros=346),
    Case("layer", lambda: [lc.Pruning(0.9, scope="layer", schedule=RAMP)], zeros=346),
    Case("taylor", lambda: [lc.Pruning(0.9, score=lc.Taylor(), schedule=RAMP)], zeros=346),
    Case("movement", lambda: [lc.Pruning(0.9, score=lc.Movement(), schedule=RAMP)], zeros=346),
    Case("lamp", lambda: [lc.Pruning(0.9, score=lc.LAMP(), schedule=RAMP)], zeros=346),
    Case("random", lambda: [lc.Pruning(0.9, score=lc.Random(), schedule=RAMP)], zeros=346),
    Case(
        "snip",
        lambda: [lc.Pruning(0.8, score=lc.SNIP(), schedule=AT_START)],
        zeros=307,
        refused={"manual": PROBES},
    ),
    Case(
        "synflow",
        lambda: [lc.Pruning(0.8, score=lc.SynFlow(rounds=3), schedule=RAMP)],
        zeros=307,
        refused={"manual": PROBES},
    ),
    Case(
        "grasp",
        lambda: [lc.Pruning(0.8, score=lc.GraSP(), schedule=AT_START)],
        zeros=307,
        refused={"manual": PROBES},
    ),
    Case(
        "bn_scale",
        lambda: [lc.Pruning(0.5, score=lc.BNScale(), pattern=lc.Channels(), scope="layer", schedule=RAMP)],
        zeros=176,
        refused=CHANNELS_REFUSE,
    ),
    Case(
        "rigl",
        lambda: [lc.Pruning(0.8, growth=lc.RigL(), distribution=lc.ERK(), schedule=DYNAMIC)],
        zeros=307,
        grows=True,
    ),
    Case("set", lambda: [lc.Pruning(0.8, growth=lc.SET(), schedule=DYNAMIC)], zeros=307, grows=True),
    Case("two_of_four", lambda: [lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=RAMP)], zeros=192),
    Case(
        "block",
        lambda: [lc.Pruning(0.5, pattern=lc.Block((4, 4)), schedule=RAMP)],
        zeros=192,
        refused={"fsdp2": "cannot be cut into blocks of 4x4"},
    ),
    Case(
        "channels",
        lambda: [lc.Pruning(0.5, pattern=lc.Channels(), scope="layer", schedule=RAMP)],
        zeros=176,
        refused=CHANNELS_REFUSE,
    ),
    Case(
        "fpgm",
        lambda: [lc.Pruning(0.5, pattern=lc.Channels(), score=lc.FPGM(), scope="layer", schedule=RAMP)],
        zeros=176,
        refused=CHANNELS_REFUSE,
    ),
    Case(
        "channels_macs",
        lambda: [lc.Pruning(0.5, pattern=lc.Channels(of="macs"), score=lc.Taylor(), schedule=RAMP)],
        zeros=176,
        within=40,
        refused=CHANNELS_REFUSE,
    ),
    Case(
        "rewind_weights",
        lambda: [lc.Pruning(0.9, rewind=lc.RewindWeights(1), schedule=RAMP)],
        zeros=346,
    ),
    Case(
        "rewind_rate",
        lambda: [lc.Pruning(0.9, rewind=lc.RewindLearningRate(1), schedule=RAMP)],
        zeros=346,
    ),
    Case(
        "recalibrate",
        lambda: [lc.Pruning(0.9, recalibrate=2, schedule=RAMP)],
        zeros=346,
        refused={"manual": PROBES},
        differs={"union": "each rank estimates statistics on batches of its own"},
    ),
    Case("per_glob", lambda: [lc.Pruning({"conv*": 0.75, "fc": 0.5}, schedule=RAMP)], zeros=280),
    Case(
        "two_callbacks",
        lambda: [
            lc.Pruning(0.9, targets=lc.Targets(include=("conv1",)), schedule=RAMP),
            lc.Pruning(0.5, targets=lc.Targets(exclude=("conv1",)), schedule=lc.Schedule(end=6, every=3)),
        ],
        zeros=307,
    ),
    Case("fixed", lambda: [lc.Fixed()], zeros=192, prepare=halve),
    Case("cluster", lambda: [lc.WeightClustering(4, schedule=RAMP)], values=4),
    Case("cluster_once", lambda: [lc.WeightClustering(8, schedule=AT_START)], values=8),
    Case(
        "cluster_channels",
        lambda: [lc.WeightClustering(2, granularity="channel", schedule=RAMP)],
        values=16,
    ),
    Case(
        "cluster_groups",
        lambda: [lc.WeightClustering(3, granularity=3, weighted=True, schedule=RAMP)],
        values=9,
    ),
    Case(
        "cluster_vectors",
        lambda: [lc.WeightClustering(4, vector_size=4, gradient="sum", schedule=RAMP)],
        values=16,
    ),
    Case(
        "dkm",
        lambda: [lc.WeightClustering(4, method="dkm", schedule=RAMP)],
        values=4,
        refused={"compile": "does not support compiled models"},
    ),
    Case(
        "prune_and_dkm",
        lambda: [
            lc.Pruning(0.7, schedule=lc.Schedule(end=3, every=1)),
            lc.WeightClustering(4, method="dkm", granularity=3, weighted=True, schedule=RAMP),
        ],
        zeros=269,
        values=12,
        refused={"compile": "does not support compiled models"},
    ),
    Case(
        "size_budget",
        lambda: [lc.SizeBudget(900, schedule=RAMP)],
        rounds_to_zero=True,
        refused={"manual": PROBES, "teacher": "allow more"},
    ),
    Case(
        "prune_and_cluster",
        lambda: [lc.Pruning(0.7, schedule=RAMP), lc.WeightClustering(4, schedule=LATE)],
        zeros=269,
        values=4,
    ),
    Case(
        "rigl_and_cluster",
        lambda: [lc.Pruning(0.7, growth=lc.RigL(), schedule=DYNAMIC), lc.WeightClustering(4, schedule=LATE)],
        zeros=269,
        values=4,
        grows=True,
    ),
    Case(
        "fixed_and_cluster",
        lambda: [lc.Fixed(), lc.WeightClustering(4, schedule=RAMP)],
        zeros=192,
        values=4,
        prepare=halve,
    ),
    Case("qat", qat, refused=QAT_REFUSES),
    Case(
        "cluster_and_qat",
        lambda: [lc.WeightClustering(4, schedule=RAMP), *qat()],
        values=4,
        refused=QAT_REFUSES,
    ),
    Case(
        "prune_and_cluster_and_qat",
        lambda: [lc.Pruning(0.7, schedule=RAMP), lc.WeightClustering(4, schedule=LATE), *qat()],
        zeros=269,
        values=4,
        refused=QAT_REFUSES,
    ),
    Case(
        "qat_learned",
        lambda: qat(weights=LEARNED, activations=LEARNED),
        refused=LEARNED_REFUSES,
        differs={"double": "scales are parameters of single precision, which train along"},
    ),
    Case(
        "qat_learned_milestones",
        lambda: qat(weights=LEARNED, activations=LEARNED, schedule=MILESTONES),
        refused=LEARNED_REFUSES,
        differs={"double": "scales are parameters of single precision, which train along"},
    ),
    Case(
        "qat_histogram",
        lambda: qat(
            weights={"fc": lc.Int(8, observer=lc.MSE()), "*": lc.Int(4)},
            activations={"fc": lc.Int(8, observer=lc.Histogram()), "*": lc.Int(8, observer=lc.Percentile(99.9))},
        ),
        refused=QAT_REFUSES,
    ),
    Case("qat_milestones", lambda: qat(schedule=MILESTONES), refused=QAT_REFUSES),
    Case("prune_and_qat", lambda: [lc.Pruning(0.9, schedule=RAMP), *qat()], zeros=346, refused=QAT_REFUSES),
]

# Whole residual blocks, which Net does not have: ``tests/pruning/test_depth.py`` runs the contracts on a deeper one.
BLOCK_CASES = [
    Case("depth", lambda: [lc.Pruning(0.4, pattern=lc.Depth(), schedule=RAMP)]),
    Case("depth_macs", lambda: [lc.Pruning(0.4, pattern=lc.Depth(of="macs"), score=lc.Taylor(), schedule=RAMP)]),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

# One of each mechanism: what costly tests run by default. Their other cases are marked slow.
MAIN_CASES = frozenset({
    "cubic", "snip", "rigl", "two_of_four", "channels", "rewind_weights", "recalibrate", "two_callbacks", "cluster",
    "dkm", "size_budget", "prune_and_cluster", "qat_learned", "prune_and_cluster_and_qat", "depth",
})  # fmt: skip


def main_cases(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Run a test on some cases, of which only the main ones run by default."""
    marks = {case.name: () if case.name in MAIN_CASES else (pytest.mark.slow,) for case in cases}
    params = [pytest.param(case, id=case.name, marks=marks[case.name]) for case in cases]
    return pytest.mark.parametrize("case", params)


every_mask = pytest.mark.parametrize("case", [case for case in CASES if case.zeros], ids=lambda case: case.name)
every_clustering = pytest.mark.parametrize("case", [case for case in CASES if case.values], ids=lambda case: case.name)
every_qat = pytest.mark.parametrize("case", [case for case in CASES if case.quantizes], ids=lambda case: case.name)


def case(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


# Distillation losses between ``Net`` and a teacher with the layers "1", "2" and "4".
LOSSES: dict[str, dict[str, Any]] = {
    "kd": {"kd": lc.KD()},
    "mse": {"mse": lc.LogitMSE()},
    "hints": {"hints": lc.FitNet((("conv2", "1"), ("norm1", "2"))), "dist": lc.DIST()},
    "contrast": {"crd": lc.CRD((("norm2", "4"),), dim=8), "dkd": lc.DKD(weight=lc.Ramp(0.0, 1.0))},
    "relations": {
        "rkd": lc.RKD((("norm2", "4"),)),
        "sp": lc.SimilarityPreserving((("conv2", "1"),)),
        "at": lc.AttentionTransfer((("conv2", "1"),)),
    },
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


class Net(LightningModule):
    """A LightningModule that knows nothing of compression: two convolutions with norms, a linear layer, 384 weights.

    Args:
        optimizer: A key of ``OPTIMIZERS``.
        frozen_norms: Use the norms' running statistics in training, so that samples do not see each other.
    """

    def __init__(self, optimizer: str = "sgd", *, frozen_norms: bool = False) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.frozen_norms = frozen_norms
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(4, 8, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 8, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(8)
            self.fc = nn.Linear(8, 4)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).relu().mean(dim=(2, 3)))

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        for norm in (self.norm1, self.norm2):
            norm.train(mode and not self.frozen_norms)
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TwoPlayers(Net):
    """Steps by hand: a discriminator twice for each step of the model; the owner of the targets steps second."""

    def __init__(self, *, raw: bool = False, clip: float | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.discriminator = nn.Linear(4, 1)
        self.raw, self.clip = raw, clip

    def configure_optimizers(self) -> Any:
        mine = [p for name, p in self.named_parameters() if not name.startswith("discriminator")]
        theirs = torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.9)
        return [theirs, torch.optim.SGD(mine, lr=0.1, momentum=0.9, weight_decay=0.01)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        theirs, mine = self.optimizers()
        for _ in range(2):
            theirs.zero_grad()
            self.back(self.discriminator(self(batch[0]).detach()).square().mean())
            theirs.step()
        mine.zero_grad()
        self.back(self.loss(batch) - 0.1 * self.discriminator(self(batch[0])).mean())
        if self.clip is not None:
            self.clip_gradients(mine, self.clip, "norm")
            mine_too = [p for n, p in self.named_parameters() if not n.startswith("discriminator")]
            live = torch.cat([p.grad.flatten() for p in mine_too])
            assert_zeros({n: p.grad for n, p in self.named_parameters()}, masks_of(self.trainer))
            torch.testing.assert_close(live.norm(), torch.tensor(self.clip))
        mine.step()

    def back(self, loss: Tensor) -> None:
        loss.backward() if self.raw else self.manual_backward(loss)


def placed(average: Callback, techniques: list[Callback], order: int) -> list[Callback]:
    """An average of the weights before (1) or after (-1) the techniques."""
    return [average, *techniques] if order == 1 else [*techniques, average]


def mine_only(case: Case) -> list[Callback]:
    """The case's callbacks, kept off the discriminator; a training step by hand cannot be tried."""
    callbacks = case.callbacks()
    for callback in callbacks:
        if case.quantizes or isinstance(getattr(callback, "pattern", None), lc.Channels):
            callback.example_inputs = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        old = callback.targets
        callback.targets = lc.Targets(old.include, (*old.exclude, "discriminator"), old.types, old.module)
    return callbacks


def dataset(num_samples: int = 40, seed: int = 0) -> TensorDataset:
    """Images whose class is the channel that is brightest on average."""
    images = torch.randn(num_samples, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, images.mean(dim=(2, 3)).argmax(dim=1))


class Loader(DataLoader):
    """Five batches of eight in an order of each epoch's own; its state is where it stands, so that runs resume."""

    def __init__(self, data: TensorDataset | None = None, batch_size: int = 8) -> None:
        super().__init__(data or dataset(), batch_size=batch_size)
        self.epoch = self.position = 0

    def __iter__(self) -> Iterator[Any]:
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.epoch))
        for indices in order.split(self.batch_size)[self.position :]:
            self.position += 1
            yield self.collate_fn([self.dataset[i] for i in indices.tolist()])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def val_loader() -> DataLoader:
    """Two batches that are never trained on."""
    return DataLoader(dataset(16, seed=1), batch_size=8)


def trainer(callbacks: list[Callback], **options: Any) -> Trainer:
    """A silent Trainer of two epochs on one CPU; a callback that saves is kept, none is added."""
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": saves,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=callbacks, **{**defaults, **options})


def save_every_step(folder: Path) -> ModelCheckpoint:
    """Writes ``step=1.ckpt``, ``step=2.ckpt`` and so on."""
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def run(case: Case, model: LightningModule | None = None, *watchers: Callback, **options: Any) -> LightningModule:
    """Fits a model with the case's callbacks; watchers stand before them."""
    model = model or Net()
    case.prepare(model)
    trainer([*watchers, *case.callbacks()], **options).fit(model, Loader(), val_loader())
    return model


def masks_of(trainer: Trainer) -> dict[str, Tensor]:
    """The masks in force, by the names of the weights."""
    constraints = [
        c.constraint for c in trainer.callbacks if isinstance(getattr(c, "constraint", None), MaskConstraint)
    ]
    return {la.name: mask for c in constraints for la, mask in zip(c.layers, c.masks, strict=True)}


def scales_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of what quantizers have put into a state dict."""
    return {name: tensor.clone() for name, tensor in state.items() if is_of_quantizer(name)}


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what quantizers have put into it."""
    return {name: tensor for name, tensor in state.items() if not is_of_quantizer(name)}


def is_of_quantizer(name: str) -> bool:
    """Whether a parameter or buffer belongs to a quantizer."""
    return name.rpartition(".")[2].startswith("quant_")


def num_masked(masks: Mapping[str, Tensor]) -> int:
    """Number of masked weights of layers; channels mask norms as well."""
    return sum(int((~mask).sum()) for mask in masks.values() if mask.ndim > 1)


def num_zeros(model: nn.Module) -> int:
    """Number of zeros in the weights of the model's default targets."""
    return sum(int((target.parameter == 0).sum()) for target in lc.Targets().select(model))


def is_positive_zero(values: Tensor) -> bool:
    """Whether all values are zero to the last bit: -0.0 is not."""
    return bool((values == 0).all()) and not bool(values.signbit().any())


def assert_zeros(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Every masked entry is +0.0."""
    for name, mask in masks.items():
        assert is_positive_zero(tensors[name].detach()[~mask]), name


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Nested containers are the same, tensors to the last bit."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, Mapping):
        assert list(ours) == list(theirs), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    else:
        assert ours == theirs, path


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read as strictly as torch can."""
    return torch.load(path, weights_only=True)
