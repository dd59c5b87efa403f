"""Constraints that are replaced on a schedule."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_compress.schedules import Progress, Schedule
from lightning_compress.targets import Targets
from lightning_compress.trainer.constrained import C, ConstraintCallback
from lightning_compress.trainer.progress import check_time_fits, check_times_come, progress


class ScheduledConstraintCallback(ConstraintCallback[C]):
    """Replaces its constraint at the times of a schedule, the last of which always comes.

    Args:
        targets: The constrained tensors.
        schedule: When the constraint is replaced, and how far along it then is.
    """

    def __init__(self, targets: Targets, schedule: Schedule) -> None:
        super().__init__(targets)
        self.schedule = schedule
        self._tick = -1
        self._landed = False
        self._starting = False

    @property
    def reached(self) -> bool:
        """Whether the constraint is what it is to be in the end."""
        return self._landed

    @property
    def times(self) -> dict[str, int | float | str]:
        """The times that matter, by their names: what is done at one stroke has no more than a beginning."""
        names = ("begin",) if self.schedule.curve == "one_shot" else ("begin", "end", "every")
        return {name: getattr(self.schedule, name) for name in names}

    @abstractmethod
    def advance(self, trainer: Trainer, now: Progress) -> None:
        """Does what is due at this moment of the run, if anything is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses early what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            for name, time in self.times.items():
                check_time_fits(trainer, name, time)

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Begins with a free constraint, or where the state left off."""
        assert self.constraint is not None
        state = state or {}
        self.steps, self._tick, self._landed = state.get("steps", 0), state.get("tick", -1), state.get("landed", False)
        if "constraint" in state:
            self.constraint.load_state_dict(state["constraint"])
        self._starting = True
        check_times_come(trainer, self.times)

    def state_dict(self) -> dict[str, Any]:
        """The constraint, and where in the schedule it is."""
        if self.constraint is None:
            return super().state_dict()
        return {**super().state_dict(), "tick": self._tick, "landed": self._landed}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Does what is due before the first step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._starting and self._tick < 0:
            self.advance(trainer, progress(trainer, self.steps, in_step=False, in_batch=False))
        self._starting = False

    def after_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Does what is due after a step of the optimizer whose steps are counted."""
        if optimizer is self.clock:
            self.advance(trainer, progress(trainer, self.steps, in_step=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lands the last update where the run ends without a step that could have done so."""
        now = progress(trainer, self.steps, in_step=False)
        if not self._landed and now.fraction == 1.0:
            self.advance(trainer, now)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
