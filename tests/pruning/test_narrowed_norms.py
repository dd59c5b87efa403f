"""Fits that prune the embedding width: contracts of masks, and norms that skip masked channels in every stage."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.masked_norms import masked_norms
from lightning_compress.profiling import count_macs
from tests.cases import RAMP, Loader, assert_same, load, placed, save_every_step, trainer
from tests.channels.nets import images, transformer

WIDTH = lc.Channels(of="macs", width=True)
NORMS = {f"net.{name}" for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")}


def val_loader() -> DataLoader:
    return DataLoader(TensorDataset(images(4), torch.arange(4)), batch_size=4)


class Task(LightningModule):
    """Trains a small vision transformer, and keeps what it predicts in validation."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = transformer() if net is None else net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(self.validated, batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def loader(num: int = 20) -> DataLoader:
    return Loader(TensorDataset(images(num), torch.arange(num) % 4), batch_size=4)


def pruning(sparsity: float = 0.5, **options: Any) -> lc.Pruning:
    return lc.Pruning(sparsity, **{"pattern": WIDTH, "schedule": RAMP, **options})


def fit(model: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    run = trainer([*callbacks], **options)
    run.fit(model, loader(), val_loader())
    return run


def removed(model: Task) -> nn.Module:
    return lc.shrink(model.eval().net, images())[0]


@pytest.mark.parametrize("score", [lc.Magnitude(), lc.Taylor(), lc.LAMP(), lc.Random()], ids=lambda score: str(score))
def test_half_of_the_macs_in_every_dimension(score: Any) -> None:
    model = Task()
    fit(model, pruning(score=score))
    assert set(masked_norms(model)) == NORMS
    assert list(model.state_dict()) == list(Task().state_dict())
    small = removed(model)
    torch.testing.assert_close(small(images(5)), model.net(images(5)), rtol=1e-5, atol=1e-6)
    assert not masked_norms(small)
    weights = [sum(count_macs(net, images()).weights.values()) for net in (small, model.net)]
    assert 0.3 < weights[0] / weights[1] <= 0.5


def test_magnitudes_take_about_the_same_of_streams_and_hidden_units() -> None:
    model = Task(lc_vit())
    fit(model, pruning())
    small = removed(model)
    width, hidden = small.norm.weight.numel() / 24, small.blocks[0].mlp.fc1.out_features / 48
    assert 0.4 < width < 0.95
    assert 0.4 < hidden < 0.95


def lc_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=6, patch_size=3, embed_dim=24, depth=2, num_heads=3, num_classes=4, mlp_ratio=2)


def test_kept_widths_are_a_multiple() -> None:
    model = Task(lc_vit())
    fit(model, pruning(pattern=lc.Channels(of="macs", width=True, round_to=4)))
    small = removed(model)
    assert small.norm.normalized_shape[0] % 4 == 0
    assert small.blocks[0].mlp.fc1.out_features % 4 == 0


def state_of(folder: Path) -> dict[str, Any]:
    checkpoint = load(folder / "step=10.ckpt")
    technique = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("Pruning"))
    return {"technique": technique, **{key: checkpoint[key] for key in ("state_dict", "optimizer_states")}}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    model = Task()
    fit(model, pruning(score=lc.Taylor()), save_every_step(tmp_path / "whole"))
    expected = state_of(tmp_path / "whole")
    for step in (1, 5, 8):
        run = trainer([pruning(score=lc.Taylor()), save_every_step(tmp_path / f"from{step}")])
        again = Task()
        run.fit(again, loader(), val_loader(), ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert_same(state_of(tmp_path / f"from{step}"), expected)
        assert torch.equal(again.eval().net(images()), model.eval().net(images()))


def test_a_fresh_model_validates_a_checkpoint_as_it_was_trained(tmp_path: Path) -> None:
    model = Task()
    fit(model, pruning(), save_every_step(tmp_path))
    expected = model.validated
    fresh = Task()
    run = trainer([pruning()])
    run.validate(fresh, val_loader(), ckpt_path=tmp_path / "step=10.ckpt")
    torch.testing.assert_close(fresh.validated, expected)
    torch.testing.assert_close(removed(fresh)(images(4)), expected, rtol=1e-5, atol=1e-6)
    plain = Task()
    trainer([]).validate(plain, val_loader(), ckpt_path=tmp_path / "step=10.ckpt")
    assert (plain.validated - expected).abs().max() > 1e-3, "or else the hooks were not needed"
    small, _ = lc.shrink(plain.net, images(), width=True)
    torch.testing.assert_close(small.eval()(images(4)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
def test_an_average_computes_as_it_does_after_the_removal(order: int) -> None:
    model, ema = Task(), EMAWeightAveraging(decay=0.5)
    seen: list[tuple[Tensor, Tensor]] = []

    class Watch(Callback):
        def on_train_end(self, run: Trainer, pl_module: LightningModule) -> None:
            average = copy.deepcopy(ema._average_model.module).eval()
            seen.append((average.net(images()), removed(average)(images())))

    fit(model, Watch(), *placed(ema, [pruning()], order))
    torch.testing.assert_close(*seen[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(removed(model)(images()), model.net(images()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0][0], model.net(images()))  # the average is what a fit leaves


def test_copies_and_pickles_of_a_model_that_was_fitted() -> None:
    model = Task()
    fit(model, pruning())
    expected = model.eval().net(images())
    for copied in (copy.deepcopy(model.net), pickle.loads(pickle.dumps(model.net)), lc.finalize(model, module="net")):
        assert torch.equal(copied(images()), expected)


def test_a_second_fit_and_the_smaller_model_train_on(tmp_path: Path) -> None:
    model, technique = Task(), pruning()
    fit(model, technique)
    zeros = {name: parameter == 0 for name, parameter in model.named_parameters()}
    fit(model, technique)
    assert all(not parameter[zeros[name]].any() for name, parameter in model.named_parameters())
    small, log = lc.shrink(model.net, images())
    log.save(tmp_path / "log.json")
    again = Task()
    fit(again, lc.Shrunk(tmp_path / "log.json", module="net"), pruning(0.2))
    assert again.net.norm.normalized_shape == small.norm.normalized_shape
    torch.testing.assert_close(removed(again)(images()), again.net(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(precision: Any) -> None:
    model = Task()
    fit(model, pruning(), precision=precision)
    model.float()
    torch.testing.assert_close(removed(model)(images()), model.net(images()), rtol=1e-5, atol=1e-6)


def test_by_default_there_are_no_hooks() -> None:
    model = Task()
    fit(model, pruning(pattern=lc.Channels(of="macs"), sparsity=0.3))
    assert masked_norms(model) == {}


def test_scales_that_are_zero_from_the_beginning() -> None:
    model = Task()
    nn.init.zeros_(model.net.blocks[1].norm2.weight)
    with pytest.raises(ValueError, match=r"scale and shift of 'blocks\.1\.norm2' are zero in 12 of 12 channels.*init"):
        fit(model, pruning())


def test_quantization_in_the_same_run_or_before_the_removal() -> None:
    model = Task()
    with pytest.raises(ValueError, match="does not support QuantizationAwareTraining in the same run: remove"):
        fit(model, pruning(), lc.QuantizationAwareTraining())
    fit(model, pruning())
    with pytest.raises(ValueError, match=r"QuantizationAwareTraining: 5 norms, such as 'net\.blocks\.0\.norm1', skip"):
        fit(model, lc.QuantizationAwareTraining())


def test_a_stream_keeps_its_width_if_a_layer_is_left_out() -> None:
    model = Task()
    with pytest.warns(UserWarning, match=r"width=True\): there are no channels of norms that can be removed"):
        fit(model, pruning(0.2, targets=lc.Targets(exclude=("net.patch_embed.proj",))))
    assert masked_norms(model) == {}


def test_a_frozen_embedding_keeps_its_width() -> None:
    model = Task()
    model.net.pos_embed.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"width=True\): there are no channels of norms"):
        fit(model, pruning(0.2))
