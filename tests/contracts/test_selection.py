"""Best is the best of the models that have reached their target."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import lightning_compress as lc
from tests.cases import Loader, Net, load, num_zeros, trainer, val_loader

ACCURACIES = (0.99, 0.4, 0.5, 0.6, 0.7, 0.65)  # the dense epoch 0 is the most accurate
HALFWAY = lc.Schedule(end=0.5, every=0.1)  # the target is reached in epoch 2


class Scripted(Net):
    """A model whose accuracies are known beforehand."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", ACCURACIES[self.current_epoch])


def best(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", monitor="val_acc", mode="max", **options)


def patient(patience: int = 1) -> EarlyStopping:
    return EarlyStopping("val_acc", mode="max", patience=patience)


def fit(*callbacks: Callback, pruning: lc.Pruning | None = None, **options: Any) -> Trainer:
    techniques = [pruning or lc.Pruning(0.9, schedule=HALFWAY)]
    run = trainer([*callbacks, *techniques], max_epochs=6)
    run.fit(Scripted(), Loader(), val_loader(), **options)
    return run


def test_a_plain_run_takes_the_dense_epoch(tmp_path: Path) -> None:
    chooser, stopper = best(tmp_path), patient()
    run = trainer([chooser, stopper], max_epochs=6)
    run.fit(Scripted(), Loader(), val_loader())
    assert Path(chooser.best_model_path).name == "epoch=0.ckpt"
    assert run.current_epoch == 2


def test_best_is_among_the_models_at_target(tmp_path: Path) -> None:
    chooser = best(tmp_path)
    fit(chooser)
    assert Path(chooser.best_model_path).name == "epoch=4.ckpt"
    assert float(chooser.best_model_score) == pytest.approx(0.7)
    model = Net()
    model.load_state_dict(load(tmp_path / "epoch=4.ckpt")["state_dict"])
    assert num_zeros(model) == 346


def test_no_best_is_written_before_the_target(tmp_path: Path) -> None:
    fit(best(tmp_path, save_top_k=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=3.ckpt", "epoch=4.ckpt", "epoch=5.ckpt"]


def test_early_stopping_counts_from_the_target_on() -> None:
    stopper = patient()
    run = fit(stopper)
    assert run.current_epoch == 6  # epoch 5 is the first that is worse than the best so far
    assert stopper.stopped_epoch == 5


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_callbacks_is_free(order: int, tmp_path: Path) -> None:
    chooser, stopper = best(tmp_path), patient()
    run = trainer([chooser, lc.Pruning(0.9, schedule=HALFWAY), stopper][::order], max_epochs=6)
    run.fit(Scripted(), Loader(), val_loader())
    assert Path(chooser.best_model_path).name == "epoch=4.ckpt"
    assert stopper.stopped_epoch == 5


def test_all_techniques_have_to_be_there(tmp_path: Path) -> None:
    chooser = best(tmp_path)
    late = lc.Pruning(0.5, targets=lc.Targets(include=("fc",)), schedule=lc.Schedule(end=0.99, every=0.1))
    fit(chooser, late, pruning=lc.Pruning(0.9, targets=lc.Targets(exclude=("fc",)), schedule=HALFWAY))
    assert Path(chooser.best_model_path).name == "epoch=5.ckpt"


def test_a_target_that_is_reached_at_once_holds_nothing_back(tmp_path: Path) -> None:
    chooser = best(tmp_path)
    fit(chooser, pruning=lc.Pruning(0.9, schedule=lc.Schedule(begin=0.0, curve="one_shot")))
    assert Path(chooser.best_model_path).name == "epoch=0.ckpt"


@pytest.mark.parametrize("epoch", [0, 1, 2, 3, 4])
def test_resumed_run_chooses_alike(epoch: int, tmp_path: Path) -> None:
    every_epoch = ModelCheckpoint(tmp_path, filename="every-{epoch}", save_top_k=-1)
    fit(best(tmp_path), patient(), every_epoch)
    chooser, stopper = best(tmp_path), patient()
    run = fit(chooser, stopper, ckpt_path=tmp_path / f"every-epoch={epoch}.ckpt")
    assert Path(chooser.best_model_path).name.startswith("epoch=4")
    assert (run.current_epoch, stopper.stopped_epoch, stopper.wait_count) == (6, 5, 1)


class Files(Callback):
    """Lists a folder after each epoch's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[str]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.seen.append(sorted(path.name for path in self.folder.glob("*.ckpt")))


@pytest.mark.parametrize(
    ("options", "first_epoch"),
    # ModelCheckpoint's own times are kept: without a metric yet, its fifth step passes.
    [({}, 0), ({"save_on_train_epoch_end": True}, 0), ({"every_n_train_steps": 5}, 1)],
)
def test_last_is_written_while_best_is_held_back(options: dict[str, Any], first_epoch: int, tmp_path: Path) -> None:
    files = Files(tmp_path)
    fit(files, best(tmp_path, save_last=True, **options))
    assert files.seen[:3] == [["last.ckpt"] if epoch > first_epoch else [] for epoch in range(3)]
    assert "last.ckpt" in files.seen[-1]


def test_last_of_a_run_without_validation(tmp_path: Path) -> None:
    files = Files(tmp_path)

    class Logged(Net):
        def on_train_epoch_end(self) -> None:
            self.log("val_acc", ACCURACIES[self.current_epoch])

    run = trainer([files, best(tmp_path, save_last=True), lc.Pruning(0.9, schedule=HALFWAY)], max_epochs=6)
    run.fit(Logged(), Loader())
    assert files.seen[:3] == [[], ["last.ckpt"], ["last.ckpt"]]


@pytest.mark.parametrize("techniques", [[], [lc.Pruning(0.9, schedule=HALFWAY)]])
def test_a_trial_run_writes_no_more_than_without_us(techniques: list[Callback], tmp_path: Path) -> None:
    run = trainer([best(tmp_path, save_last=True), *techniques], fast_dev_run=True)
    run.fit(Scripted(), Loader(), val_loader())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_resumes_from_a_last_that_was_written_while_held_back(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, run: Trainer, *args: Any) -> None:
            if run.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(best(tmp_path, save_last=True), Stop())
    chooser = best(tmp_path, save_last=True)
    fit(chooser, ckpt_path=tmp_path / "last.ckpt")
    assert Path(chooser.best_model_path).name == "epoch=4.ckpt"


def test_choosers_without_a_metric_are_left_alone(tmp_path: Path) -> None:
    fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    assert len(list(tmp_path.iterdir())) == 6


def test_callbacks_are_as_they_were_after_the_fit(tmp_path: Path) -> None:
    chooser, stopper = best(tmp_path, save_top_k=2), patient()
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(end="5ep"))
    trainer([chooser, stopper, pruning], max_epochs=6, limit_train_batches=1).fit(Scripted(), Loader(), val_loader())
    assert chooser.save_top_k == 2
    assert "_should_skip_check" not in vars(stopper)


def test_callbacks_are_as_they_were_after_an_exception(tmp_path: Path) -> None:
    class Failing(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("no")

    chooser, stopper = best(tmp_path, save_top_k=2), patient()
    with pytest.raises(RuntimeError, match="no"):
        trainer([chooser, stopper, lc.Pruning(0.9)]).fit(Failing(), Loader(), val_loader())
    assert chooser.save_top_k == 2
    assert "_should_skip_check" not in vars(stopper)
