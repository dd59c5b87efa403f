"""Comparison with real runs of Lightning's ModelPruning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from pytorch_lightning.callbacks import ModelPruning as OtherModelPruning
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc

EPOCHS = 4


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.norm(self.stem(x)))))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


LAYERS = ("stem", "body.0", "body.3", "head")
SIZES = {"stem": 72, "body.0": 1152, "body.3": 640, "head": 30}


def fit(module: pl.LightningModule, callback: pl.Callback, *, epochs: int = EPOCHS) -> pl.Trainer:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(12, 1, 4, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator))
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=4))
    return trainer


def pairs(module: nn.Module, *layers: str, name: str = "weight") -> list[tuple[nn.Module, str]]:
    return [(module.get_submodule(layer), name) for layer in layers]


def zeros(module: nn.Module) -> dict[str, int]:
    return {layer: int((module.get_submodule(layer).weight == 0).sum()) for layer in LAYERS}


def old_zeros(fields: dict[str, Any], layers: tuple[str, ...] = LAYERS) -> dict[str, int]:
    module = Module()
    fit(module, ModelPruning(parameters_to_prune=pairs(module, *layers), **fields))
    return zeros(module)


def new_zeros(fields: dict[str, Any], layers: tuple[str, ...] = LAYERS) -> tuple[lc.Pruning, dict[str, int]]:
    module = Module()
    old = ModelPruning(parameters_to_prune=pairs(module, *layers), **fields)
    new = lc.from_model_pruning(old, module, num_epochs=EPOCHS)
    fit(module, new)
    return new, zeros(module)


GLOBAL = {"use_global_unstructured": True, "use_lottery_ticket_hypothesis": False}
LOCAL = {"use_global_unstructured": False, "use_lottery_ticket_hypothesis": False}


@pytest.mark.parametrize("method", ["l1_unstructured", "random_unstructured"])
@pytest.mark.parametrize("amount", [0.3, 0.07, 120])
def test_global_pruning_ends_as_sparse(method: str, amount: float | int) -> None:
    fields = {"pruning_fn": method, "amount": amount, **GLOBAL}
    new, ours = new_zeros(fields)
    theirs = old_zeros(fields)
    rounding = 0 if isinstance(amount, int) else EPOCHS / 2
    assert abs(sum(ours.values()) - sum(theirs.values())) <= rounding
    assert sum(ours.values()) == round(sum(SIZES.values()) * new.sparsity)
    assert new.scope == "global"


@pytest.mark.parametrize(
    ("fields", "unit"),
    [
        ({"pruning_fn": "l1_unstructured", "amount": 0.3}, dict.fromkeys(LAYERS, 1)),
        ({"pruning_fn": "random_unstructured", "amount": 0.3}, dict.fromkeys(LAYERS, 1)),
        ({"pruning_fn": "l1_unstructured", "amount": 5}, None),
        ({"pruning_fn": "ln_structured", "amount": 0.25, "pruning_norm": 2, "pruning_dim": 0}, "rows"),
        ({"pruning_fn": "ln_structured", "amount": 2, "pruning_norm": 1, "pruning_dim": 0}, None),
        ({"pruning_fn": "random_structured", "amount": 2, "pruning_dim": 0}, None),
    ],
)
def test_pruning_of_each_layer_ends_as_sparse(fields: dict[str, Any], unit: Any) -> None:
    layers = LAYERS[1:3] if fields.get("pruning_dim") == 0 else LAYERS
    new, ours = new_zeros({**fields, **LOCAL}, layers)
    theirs = old_zeros({**fields, **LOCAL}, layers)
    assert new.scope == "layer"
    if unit == "rows":
        unit = {layer: SIZES[layer] // len(Module().get_submodule(layer).weight) for layer in layers}
    for layer in layers:
        assert abs(ours[layer] - theirs[layer]) <= (EPOCHS / 2 + 1) * unit[layer] if unit else ours == theirs
    assert all(ours[layer] == 0 for layer in LAYERS if layer not in layers)


def test_the_way_there_is_the_same_too() -> None:
    def watch(callback_of: Any) -> list[int]:
        counts: list[int] = []

        class Watched(Module):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
                if batch_idx == 0:
                    counts.append(sum(int((self.get_submodule(layer).weight == 0).sum()) for layer in LAYERS))

        module = Watched()
        fit(module, callback_of(module))
        return [*counts, sum(zeros(module).values())]

    def old(module: nn.Module) -> ModelPruning:
        return ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, *LAYERS), amount=0.3, **GLOBAL)

    theirs = watch(old)
    ours = watch(lambda module: lc.from_model_pruning(old(module), module, num_epochs=EPOCHS))
    assert theirs[0] == ours[0] == 0
    assert ours == pytest.approx(theirs, abs=EPOCHS / 2)


def test_structured_pruning_removes_whole_channels() -> None:
    fields = {"pruning_fn": "ln_structured", "amount": 2, "pruning_norm": 2, "pruning_dim": 0, **LOCAL}
    module = Module()
    old = ModelPruning(parameters_to_prune=pairs(module, "body.0"), **fields)
    new = lc.from_model_pruning(old, module, num_epochs=EPOCHS)
    assert new.sparsity == {"body.0": 0.5}
    assert new.pattern == lc.Channels()
    assert new.score == lc.Magnitude(2)
    fit(module, new)
    assert int((module.body[0].weight == 0).flatten(1).all(1).sum()) == 8


@pytest.mark.parametrize("cls", [ModelPruning, OtherModelPruning])
def test_either_namespace(cls: type) -> None:
    module = Module()
    old = cls("l1_unstructured", parameters_to_prune=pairs(module, "head"), amount=0.5)
    new = lc.from_model_pruning(old, module, num_epochs=2)
    assert isinstance(new, lc.Pruning)
    assert new.sparsity == 0.75
    assert new.targets.include == ("head",)
    assert new.rewind == lc.RewindWeights(0)
    assert new.schedule == lc.Schedule(begin=0, end="2ep", every="1ep", curve="exponential")
    assert new.score == lc.Magnitude()
    assert new.pattern == lc.Unstructured()


def test_pruning_classes_of_torch_are_supported_and_custom_ones_are_not() -> None:
    class Mine(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

    module = Module()
    only_weights = {"parameter_names": ["weight"], "parameters_to_prune": pairs(module, "head")}
    old = ModelPruning(prune.RandomUnstructured, **only_weights)
    assert lc.from_model_pruning(old, module, num_epochs=2).score == lc.Random()
    with pytest.raises(ValueError, match=r"ModelPruning's Mine\(\) is not supported"):
        lc.from_model_pruning(ModelPruning(Mine, **only_weights), module, num_epochs=2)


def test_everything_by_default_but_biases_and_norms_stay_dense_with_a_warning() -> None:
    module = Module()
    with pytest.warns(
        UserWarning, match=r"biases, norms or frozen weights, which stay dense: 'norm\.weight', 'stem\.b"
    ):
        new = lc.from_model_pruning(ModelPruning("l1_unstructured", amount=0.1), module, num_epochs=2)
    assert tuple(target.layer for target in new.targets.select(module)) == LAYERS
    assert new.targets == lc.Targets()


def test_weights_alone_need_no_warning() -> None:
    module = Module()
    old = ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, "stem", "head"), amount=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = lc.from_model_pruning(old, module, num_epochs=2)
    assert [target.layer for target in new.targets.select(module)] == ["stem", "head"]


def test_layers_of_other_types_are_selected() -> None:
    module = Module()
    module.embedding = nn.Embedding(5, 4)
    old = ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, "embedding", "head"), amount=0.1)
    new = lc.from_model_pruning(old, module, num_epochs=2)
    assert [target.name for target in new.targets.select(module)] == ["head.weight", "embedding.weight"]


def test_frozen_layers_stay_dense_with_a_warning() -> None:
    module = Module()
    module.stem.requires_grad_(False)
    old = ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, "stem", "head"), amount=0.1)
    with pytest.warns(UserWarning, match=r"'stem\.weight'"):
        new = lc.from_model_pruning(old, module, num_epochs=2)
    assert new.targets.include == ("head",)


def test_a_filter_of_a_subclass_is_applied() -> None:
    class Filtered(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
            return [(module, name) for module, name in parameters_to_prune if isinstance(module, nn.Linear)]

    old = Filtered("l1_unstructured", parameter_names=["weight"], amount=0.1)
    new = lc.from_model_pruning(old, Module(), num_epochs=2)
    assert new.targets.include == ("body.3", "head")


def test_the_lottery_ticket_rewinds_the_same_weights() -> None:
    def old(module: nn.Module) -> ModelPruning:
        return ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, *LAYERS), amount=0.5)

    start, theirs, ours = Module(), Module(), Module()
    # One rewind only: after it, ModelPruning's copy of the initial weights shares memory with the parameters on the
    # CPU, and training changes both.
    fit(theirs, old(theirs), epochs=1)
    fit(ours, lc.from_model_pruning(old(ours), ours, num_epochs=2), epochs=2)
    for layer in LAYERS:
        initial = start.get_submodule(layer).weight
        for module in (theirs, ours):
            weight = module.get_submodule(layer).weight
            assert torch.equal(weight, torch.where(weight == 0, 0.0, initial))
    assert torch.equal(ours.head.bias, start.head.bias)
    assert not torch.equal(theirs.head.bias, start.head.bias)


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"amount": lambda epoch: 0.1}, r"amount=<function>.*Schedule"),
        ({"apply_pruning": lambda epoch: True}, "apply_pruning=<function>"),
        ({"use_lottery_ticket_hypothesis": lambda epoch: True}, "use_lottery_ticket_hypothesis=<function>"),
        ({"apply_pruning": False}, "prunes nothing"),
        ({"amount": 0}, "prunes nothing"),
        ({"resample_parameters": True}, "resample_parameters"),
        ({"amount": 1.0}, r"sparsity=1\.0 is the fraction of zeros"),
        ({"amount": 500}, "removes 2000 weights in 4 epochs, out of 1894 in all layers"),
        ({"pruning_fn": "l1_unstructured", "amount": 20, **LOCAL}, "80 weights in 4 epochs, out of 72 in 'stem'"),
        ({"pruning_fn": "ln_structured", "pruning_norm": 2, "pruning_dim": 1, **LOCAL}, "pruning_dim=1"),
        ({"pruning_fn": "random_structured", "pruning_dim": 1, **LOCAL}, "pruning_dim=1"),
        ({"pruning_fn": "ln_structured", "pruning_norm": 3, "pruning_dim": 0, **LOCAL}, r"ln_structured\(n=3, dim=0\)"),
        (
            {"pruning_fn": "ln_structured", "pruning_norm": float("inf"), "pruning_dim": 0, **LOCAL},
            r"ln_structured\(n=inf, dim=0\)",
        ),
    ],
)
def test_unsupported_options(fields: dict[str, Any], advice: str) -> None:
    module = Module()
    old = ModelPruning(**{"pruning_fn": "l1_unstructured", "parameters_to_prune": pairs(module, *LAYERS), **fields})
    with pytest.raises(ValueError, match=advice):
        lc.from_model_pruning(old, module, num_epochs=EPOCHS)


def test_unsupported_callbacks() -> None:
    module = Module()
    old = ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, "head", name="bias"))
    with pytest.raises(ValueError, match=r"prunes only 'head\.bias';"):
        lc.from_model_pruning(old, module, num_epochs=2)
    with pytest.raises(ValueError, match="a Linear that is not part of the model"):
        lc.from_model_pruning(old, Module(), num_epochs=2)
    with pytest.raises(ValueError, match="num_epochs=0"):
        lc.from_model_pruning(old, module, num_epochs=0)
    with pytest.raises(ValueError, match="expects a ModelPruning callback, not a Callback"):
        lc.from_model_pruning(pl.Callback(), module, num_epochs=2)


def test_transposed_convolutions_have_other_channels() -> None:
    module = Module()
    module.up = nn.ConvTranspose2d(4, 4, 2)
    fields = {"pruning_fn": "ln_structured", "pruning_norm": 2, "pruning_dim": 0, **LOCAL}
    old = ModelPruning(parameters_to_prune=pairs(module, "up"), **fields)
    with pytest.raises(ValueError, match="transposed convolution"):
        lc.from_model_pruning(old, module, num_epochs=2)


# Checkpoints.


def checkpoint(path: Path, *, permanent: bool, pruning: dict[str, Any] | None = None) -> Module:
    """Writes a checkpoint in the middle of a run of ModelPruning; returns the module as it was then, masks and all."""
    module = Module()
    module.register_buffer("face_mask", torch.ones(3))  # a buffer of the user's own whose name looks like a mask's

    class Save(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(path)
                trainer.should_stop = True

    fields = {"amount": 0.4, "use_lottery_ticket_hypothesis": False, **(pruning or {})}
    old = ModelPruning(
        "l1_unstructured", parameters_to_prune=pairs(module, *LAYERS), make_pruning_permanent=permanent, **fields
    )
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(4, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 0]))
    pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[old, Save()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(data, batch_size=4))
    return module


def plain_module() -> Module:
    module = Module()
    module.register_buffer("face_mask", torch.zeros(3))
    return module


def stored(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def masked_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masked") / "masked.ckpt"
    checkpoint(path, permanent=False)
    return path


def test_masks_in_a_checkpoint_become_zeros(masked_checkpoint: Path) -> None:
    state = stored(masked_checkpoint)
    assert "head.weight_orig" in state
    assert "head.weight" not in state
    module = plain_module()
    assert lc.load_model_pruning_checkpoint(masked_checkpoint, module) is module
    for layer in LAYERS:
        weight = module.get_submodule(layer).weight
        orig, mask = state[f"{layer}.weight_orig"], state[f"{layer}.weight_mask"]
        assert torch.equal(weight, orig * mask)
        assert not torch.signbit(weight[mask == 0]).any()
    assert (orig[mask == 0] != 0).all()
    assert torch.equal(module.norm.running_mean, state["norm.running_mean"])
    assert torch.equal(module.face_mask, torch.ones(3))
    assert sum(zeros(module).values()) == pytest.approx(1894 * (1 - 0.6**2), abs=1)


def test_fixed_goes_on_from_there(masked_checkpoint: Path) -> None:
    module = lc.load_model_pruning_checkpoint(masked_checkpoint, plain_module())
    before = {layer: module.get_submodule(layer).weight.detach().clone() for layer in LAYERS}
    fit(module, lc.Fixed(), epochs=1)
    for layer in LAYERS:
        assert torch.equal(module.get_submodule(layer).weight == 0, before[layer] == 0)
        assert not torch.equal(module.get_submodule(layer).weight, before[layer])


def test_a_permanent_checkpoint_is_loaded_as_it_is(tmp_path: Path) -> None:
    module = Module()
    old = ModelPruning("l1_unstructured", parameters_to_prune=pairs(module, *LAYERS), amount=0.4, **GLOBAL)
    trainer = fit(module, old, epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lc.load_model_pruning_checkpoint(str(tmp_path / "last.ckpt"), Module())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())
    assert sum(zeros(loaded).values()) == pytest.approx(1894 * (1 - 0.6**2), abs=1)


def test_a_permanent_checkpoint_in_the_middle_of_a_run(tmp_path: Path) -> None:
    module = Module()

    class Save(ModelPruning):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(module, Save("l1_unstructured", parameters_to_prune=pairs(module, *LAYERS), amount=0.4, **GLOBAL))
    assert "head.weight" in stored(tmp_path / "middle.ckpt")
    loaded = lc.load_model_pruning_checkpoint(tmp_path / "middle.ckpt", Module())
    assert sum(zeros(loaded).values()) == pytest.approx(1894 * (1 - 0.6**2), abs=1)


def test_a_checkpoint_of_another_model_changes_nothing(masked_checkpoint: Path) -> None:
    module = plain_module()
    module.extra = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not match the model: 'extra\.bias' is only in the model"):
        lc.load_model_pruning_checkpoint(masked_checkpoint, module)
    other = plain_module()
    other.head = nn.Linear(10, 4)
    with pytest.raises(ValueError, match=r"'head\.\w+' has shape \(3.*\) in the checkpoint, not \(4"):
        lc.load_model_pruning_checkpoint(masked_checkpoint, other)
    with pytest.raises(ValueError, match=r"'face_mask' is only in the checkpoint"):
        lc.load_model_pruning_checkpoint(masked_checkpoint, Module())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_a_prefix_is_named(masked_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its keys lack the prefix 'model\.'"):
        lc.load_model_pruning_checkpoint(masked_checkpoint, nn.ModuleDict({"model": plain_module()}))
    state = {f"model.{name}": value for name, value in stored(masked_checkpoint).items()}
    torch.save({"state_dict": state}, tmp_path / "prefixed.ckpt")
    with pytest.raises(ValueError, match=r"its keys begin with 'model\.'"):
        lc.load_model_pruning_checkpoint(tmp_path / "prefixed.ckpt", plain_module())


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        lc.load_model_pruning_checkpoint(tmp_path / "none.ckpt", Module())
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        lc.load_model_pruning_checkpoint(tmp_path / "text.ckpt", Module())
    torch.save({"weights": 1}, tmp_path / "dict.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        lc.load_model_pruning_checkpoint(tmp_path / "dict.ckpt", Module())
    torch.save({"state_dict": Module()}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        lc.load_model_pruning_checkpoint(tmp_path / "pickle.ckpt", Module())
