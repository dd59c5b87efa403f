"""Contract 5: completed steps are counted once, however they come about."""

import contextlib
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import lightning_compress as lc
from lightning_compress.trainer.compression_callback import techniques
from tests.cases import (
    CASES,
    DYNAMIC,
    RAMP,
    Case,
    Loader,
    Net,
    TwoPlayers,
    assert_zeros,
    dataset,
    every_case,
    main_cases,
    masks_of,
    mine_only,
    num_masked,
    num_zeros,
    scales_of,
    trainer,
    val_loader,
)

BY_STEPS = lc.Schedule(begin=1, end=7, every=2)


class Events(Callback):
    """Notes after each batch how many steps the technique has counted and how many weights are masked."""

    def __init__(self) -> None:
        self.after_step: dict[int, int] = {}

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        steps = techniques(run)[0].steps
        self.after_step.setdefault(steps, num_masked(masks_of(run)))
        assert self.after_step[steps] == num_masked(masks_of(run)), "a mask changed without a step"


class Sparse(Callback):
    """Asserts zeros after every batch and in every validation."""

    def __init__(self) -> None:
        self.num_looks = 0

    def observe(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        assert_zeros(dict(model.named_parameters()), masks_of(run))
        self.num_looks += 1

    on_train_batch_end = on_validation_batch_end = observe


def events(case_or_callbacks: list[Callback], model: LightningModule | None = None, **options: Any) -> dict[int, int]:
    log = Events()
    trainer([log, Sparse(), *case_or_callbacks], **options).fit(model or Net(), Loader(), val_loader())
    return log.after_step


CUBIC = {1: 0, 2: 0, 3: 243, 4: 243, 5: 333, 6: 333, 7: 346, 8: 346, 9: 346, 10: 346}


def test_steps_and_sparsities_of_a_schedule_in_steps() -> None:
    # 346 (1 - (1 - x)^3) with x = 0, 1/3, 2/3 and 1 after steps 1, 3, 5 and 7
    assert events([lc.Pruning(0.9, schedule=BY_STEPS)]) == CUBIC


@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 10}, {"max_steps": 10}])
def test_bounds_of_the_run_are_free(options: dict[str, int]) -> None:
    assert events([lc.Pruning(0.9, schedule=RAMP)], **options) == {
        1: 0, 2: 146, 3: 146, 4: 303, 5: 303, 6: 344, 7: 346, 8: 346, 9: 346, 10: 346,
    }  # fmt: skip


@main_cases(CASES)
def test_accumulation_counts_steps_not_batches(case: Case) -> None:
    def masked(batches_per_step: int) -> dict[int, int]:
        log = Events()
        model = Net(frozen_norms=True)  # in which the parts of a batch do not see each other
        case.prepare(model)
        loader = DataLoader(dataset(40), batch_size=8 // batches_per_step)
        options = {"accumulate_grad_batches": batches_per_step}
        trainer([log, Sparse(), *case.callbacks()], **options).fit(model, loader)
        return {step: num for step, num in log.after_step.items() if step}

    assert masked(4) == masked(1)


def test_accumulation_with_a_rest_lands() -> None:
    log = Events()
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(end=1.0, every=1))
    trainer([log, pruning], accumulate_grad_batches=4).fit(model := Net(), Loader())
    assert max(log.after_step) == 4  # five batches an epoch make two steps
    assert pruning.reached
    assert num_zeros(model) == 346


def test_the_last_update_lands_with_the_last_step() -> None:
    for end in (1.0, 10, "2ep"):
        model = Net()
        trainer([lc.Pruning(0.9, schedule=lc.Schedule(begin=0.0, end=end, every=3))]).fit(model, Loader())
        assert num_zeros(model) == 346


@pytest.mark.parametrize("max_steps", [3, 7])
def test_a_run_that_ends_by_steps_within_an_epoch_lands(max_steps: int) -> None:
    model = Net()
    trainer([lc.Pruning(0.9)], max_steps=max_steps).fit(model, Loader())
    assert num_zeros(model) == 346


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, num_samples: int = 40) -> None:
        self.num_samples = num_samples

    def __iter__(self) -> Any:
        return iter(dataset(self.num_samples))


@pytest.mark.parametrize("schedule", [RAMP, BY_STEPS, lc.Schedule(end=7, every=0.2)])
def test_stream_without_length_and_max_steps(schedule: lc.Schedule) -> None:
    model = Net()
    trainer([Sparse(), lc.Pruning(0.9, schedule=schedule)], max_steps=10, max_epochs=-1).fit(
        model, DataLoader(Stream(), batch_size=8)
    )
    assert num_zeros(model) == 346


def test_stream_without_length_and_epochs() -> None:
    model = Net()
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(begin=0, end="2ep", every="1ep"))
    trainer([Sparse(), pruning], max_epochs=4).fit(model, DataLoader(Stream(), batch_size=8))
    assert num_zeros(model) == 346


@pytest.mark.parametrize("end", [0.7, "2ep"])
def test_stream_without_length_whose_end_is_not_known(end: float | str) -> None:
    model = Net()
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(end=end))
    with pytest.raises(ValueError, match="without a length"):
        trainer([pruning], max_epochs=2).fit(model, DataLoader(Stream(), batch_size=8))
    assert torch.equal(model.conv1.weight, Net().conv1.weight)


def test_run_without_end() -> None:
    class Enough(Callback):
        def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
            run.should_stop = run.global_step >= 10

    model = Net()
    trainer([lc.Pruning(0.9, schedule=BY_STEPS), Enough()], max_epochs=-1).fit(model, Loader())
    assert num_zeros(model) == 346


def test_trial_run() -> None:
    trainer([lc.Pruning(0.9), lc.CompressionMonitor()], fast_dev_run=True).fit(Net(), Loader(), val_loader())


def test_a_warning_when_the_run_ends_early() -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, run: Trainer, *args: Any) -> None:
            run.should_stop = True

    with pytest.warns(UserWarning, match="the run ended before the target was reached"):
        trainer([lc.Pruning(0.9), Stop()], max_epochs=3).fit(Net(), Loader())


class Clipped(Net):
    """Knows the norm of the gradients that are clipped."""

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        gradients = {name: p.grad for name, p in self.named_parameters()}
        assert_zeros(gradients, masks_of(self.trainer))
        masks = masks_of(self.trainer)
        total = torch.cat([g[masks[name]] if name in masks else g.flatten() for name, g in gradients.items()]).norm()
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        after = torch.cat([p.grad.flatten() for p in self.parameters()]).norm()
        torch.testing.assert_close(after, total.clamp(max=gradient_clip_val))
        self.num_clips = getattr(self, "num_clips", 0) + int(total > gradient_clip_val)


@every_case
def test_clipping_sees_projected_gradients(case: Case) -> None:
    model = Clipped()
    case.prepare(model)
    trainer([Sparse(), *case.callbacks()], gradient_clip_val=0.05).fit(model, Loader())
    assert model.num_clips > 5


@pytest.mark.parametrize("raw", [False, True], ids=["manual_backward", "backward"])
@main_cases(CASES)
def test_manual_optimization_with_two_optimizers(case: Case, raw: bool) -> None:
    model = TwoPlayers(raw=raw)
    case.prepare(model)
    log, callbacks = Events(), mine_only(case)
    run = trainer([log, Sparse(), *callbacks])
    if "manual" in case.refused:
        with pytest.raises(ValueError, match=case.refused["manual"]):
            run.fit(model, Loader())
        return
    run.fit(model, Loader(), val_loader())
    assert max(log.after_step) == 10  # of 30 steps the Trainer counts
    assert run.global_step == 30
    assert abs(log.after_step[10] - case.zeros) <= case.within
    assert (model.discriminator.weight != 0).all()
    assert all((scale != 0).all() for name, scale in scales_of(model.state_dict()).items() if name.endswith("_scale"))


def test_manual_schedule_in_steps_counts_the_owners_steps() -> None:
    pruning = lc.Pruning(0.9, schedule=BY_STEPS, targets=lc.Targets(exclude=("discriminator",)))
    assert events([pruning], TwoPlayers()) == CUBIC


class TwoOwners(Net):
    """Its weights are in two optimizers, of which the one with fewer steps twice as often."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        few = [*self.conv2.parameters(), *self.fc.parameters()]
        return [torch.optim.Adam(few, lr=0.01), torch.optim.SGD(self.conv1.parameters(), lr=0.1, momentum=0.9)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        few, many = self.optimizers()
        for optimizers in ((few,), (few, many)):
            self.zero_grad()
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()


@pytest.mark.parametrize("score", [lc.Magnitude(), lc.Taylor()], ids=lambda score: type(score).__name__)
def test_steps_of_the_optimizer_with_most_weights_count(score: Any) -> None:
    assert events([lc.Pruning(0.9, score=score, schedule=BY_STEPS)], TwoOwners()) == CUBIC


def test_manual_clipping_sees_projected_gradients() -> None:
    pruning = lc.Pruning(0.9, schedule=BY_STEPS, targets=lc.Targets(exclude=("discriminator",)))
    trainer([pruning]).fit(TwoPlayers(clip=0.01), Loader())


def test_manual_optimization_with_growth_reads_dense_gradients() -> None:
    pruning = lc.Pruning(0.8, growth=lc.RigL(), schedule=DYNAMIC, targets=lc.Targets(exclude=("discriminator",)))
    model = TwoPlayers()
    regrown = Regrown()
    trainer([regrown, Sparse(), pruning]).fit(model, Loader())
    assert regrown.num_grown > 20


class Regrown(Callback):
    """Counts weights that came back."""

    num_grown = 0
    before: dict[str, Tensor] | None = None

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        masks = masks_of(run)
        if self.before is not None:
            self.num_grown += sum(int((masks[name] & ~self.before[name]).sum()) for name in masks)
        self.before = masks


class Overflowing(Net):
    """Its gradients overflow in some batches."""

    def __init__(self, fused: bool, bad: tuple[int, ...] = (1, 3)) -> None:
        super().__init__()
        self.fused, self.bad = fused, bad

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.global_batch in self.bad else loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.global_batch = self.trainer.current_epoch * 5 + batch_idx

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, fused=self.fused)


class Scaled(MixedPrecision):
    """Mixed precision whose arithmetic stays float32, since what is tested is the scaler."""

    def __init__(self) -> None:
        super().__init__(
            "16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2, growth_factor=4.0)
        )

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_steps_that_a_scaler_skips_are_not_counted(fused: bool) -> None:
    log = Events()
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(begin=1, end=7, every=2))
    trainer([log, Sparse(), pruning], plugins=[Scaled()]).fit(model := Overflowing(fused), Loader())
    assert log.after_step == {step: CUBIC[step] for step in range(1, 9)}
    assert num_zeros(model) == 346
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("score", [lc.Taylor(), lc.Movement()], ids=["Taylor", "Movement"])
def test_scores_under_a_scaler_are_those_without(score: Any, fused: bool) -> None:
    def masks(**options: Any) -> dict[str, Tensor]:
        pruning = lc.Pruning(0.9, score=score, schedule=BY_STEPS)
        keep = Keep()
        trainer([keep, pruning], **options).fit(Overflowing(fused, bad=()), Loader())
        return keep.masks

    plain, scaled = masks(), masks(plugins=[Scaled()])
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


class Keep(Callback):
    """Keeps the last masks."""

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        self.masks = masks_of(run)


def test_gradients_that_overflowed_do_not_count_in_scores() -> None:
    keep = Keep()
    pruning = lc.Pruning(0.9, score=lc.Movement(), schedule=BY_STEPS)
    trainer([keep, pruning], plugins=[Scaled()]).fit(model := Overflowing(fused=True), Loader())
    assert num_zeros(model) == 346
    assert num_masked(keep.masks) == 346


def test_skipped_last_step_still_lands() -> None:
    pruning = lc.Pruning(0.9, schedule=lc.Schedule(end=1.0, every=1))
    trainer([pruning], plugins=[Scaled()]).fit(model := Overflowing(fused=False, bad=(9,)), Loader())
    assert pruning.reached
    assert num_zeros(model) == 346


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@main_cases(CASES)
def test_precisions(case: Case, precision: str) -> None:
    model = Net()
    case.prepare(model)
    log = Keep()
    trainer([log, Sparse(), *case.callbacks()], precision=precision).fit(model, Loader(), val_loader())
    assert abs(num_masked(log.masks) - case.zeros) <= case.within


def test_an_optimizer_that_calls_its_closure_again() -> None:
    class Quasi(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    assert events([lc.Pruning(0.9, schedule=BY_STEPS)], Quasi()) == CUBIC


class Langevin(torch.optim.SGD):
    """Moves every weight at random, whatever its gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        return loss


@every_case
def test_an_optimizer_that_moves_weights_without_a_gradient(case: Case) -> None:
    class Noisy(Net):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            assert_zeros(dict(self.named_parameters()), masks_of(self.trainer))

        def configure_optimizers(self) -> Any:
            torch.optim.SGD(self.parameters())  # PyTorch hooks into the step of a class with its first instance
            return Langevin(self.parameters(), lr=0.1)

    model, log = Noisy(), Events()
    case.prepare(model)
    trainer([Sparse(), log, *case.callbacks()]).fit(model, Loader(), val_loader())
    assert max(log.after_step) == 10, "the step of the parent class counts no step of its own"


class Stumbling(Langevin):
    """Raises in its third step."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory")
        return super().step(closure)


class Patient(Net):
    """Goes on after a step that raised."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return Stumbling(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.zero_grad()
        self.manual_backward(self.loss(batch))
        with contextlib.suppress(RuntimeError):
            optimizer.step()


def test_a_step_that_raised_does_not_stop_the_others() -> None:
    model, log = Patient(), Events()
    trainer([Sparse(), log, lc.Pruning(0.9, schedule=BY_STEPS)]).fit(model, Loader())
    assert max(log.after_step) == 9
    assert num_zeros(model) == 346


def test_quantization_counts_the_steps_after_one_that_raised() -> None:
    model = Patient()
    quantization = lc.QuantizationAwareTraining(example_inputs=torch.randn(2, 4, 6, 6))
    trainer([quantization]).fit(model, Loader())
    assert quantization.steps == 9
