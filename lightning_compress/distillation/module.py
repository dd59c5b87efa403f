"""A student that learns from labels and from a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.distillation import teacher_averaging
from lightning_compress.distillation.batch_formats import labels_of
from lightning_compress.distillation.dry_run import dry_run
from lightning_compress.distillation.image_conversion import Normalization
from lightning_compress.distillation.keyed import KeyedSample
from lightning_compress.distillation.logits import KD
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss
from lightning_compress.distillation.objective import Objective
from lightning_compress.distillation.ramp import Ramp
from lightning_compress.distillation.student_capture import StudentCapture
from lightning_compress.distillation.students import arguments_of, check_student, make_student
from lightning_compress.distillation.teacher import MeanTeacher, Peer, Teacher
from lightning_compress.distillation.teacher_accuracy import accuracy
from lightning_compress.distillation.teacher_ensemble import TeacherEnsemble
from lightning_compress.distillation.teacher_loading import as_teachers, is_network
from lightning_compress.distillation.wrapped_module import adopt_hooks, training_step
from lightning_compress.serialization import from_plain, to_plain
from lightning_compress.trainer.example_inputs import training_batch
from lightning_compress.trainer.progress import check_time_fits, progress

_COMBINE = {"mean": teacher_averaging.mean, "confidence": teacher_averaging.confidence}
_KEY = "distillation"


class DistillationModule(LightningModule):
    """Trains a student on its own loss and on what a frozen teacher makes of the same inputs.

    The student is a LightningModule, ``self.student``, whose ``training_step`` gives the task's loss as ever; in it the
    student's inputs, logits and features are seen, the teacher is run on the same inputs, and the losses of
    distillation are added. All other hooks and steps are the student's. The teacher is no part of this module: it is
    in no checkpoint, optimizer, average or count, and nothing makes it train.

    Args:
        student: A LightningModule; or, trained as a :class:`ClassificationModule`, a timm name, a network, or a
            checkpoint (``.ckpt``) of such a module.
        teacher: A timm name, a network, a :class:`Teacher`, a :class:`MeanTeacher` (the average of the student itself),
            a :class:`Peer` (which learns along), or several of those. ``None`` is for evaluation only.
        losses: Losses of distillation by the name under which they are logged, as ``train/<name>``. A loss of features
            names modules of the student's network (of the LightningModule, if that is what the student is) and of the
            teacher's (of the first, if there are several). By default ``{"kd": KD()}``.
        task_weight: Weight of the student's own loss.
        output: Name of the student's module that returns the logits; by default the student itself if its
            ``training_step`` calls it, else the only child that is called. What the student, or else that child, is
            called with is what the teachers get.
        combine: With several teachers: the ``"mean"`` of their probabilities, or one in which each sample trusts those
            with the smaller loss on its label (``"confidence"``).
        normalization: How the images are normalised, for teachers that want it otherwise; by default as the timm
            configuration of the student says.
        cache: Directory in which the teachers' logits are kept, memory-mapped, by the keys that a training dataset in
            :class:`Keyed` gives its samples; used by every run whose teacher has the same weights and precision.
        num_classes: Number of classes of a student that is a timm name or a network; by default the teacher's.
        optimizer: Makes the optimizer of such a student; by default that of :class:`ClassificationModule`.
        lr_scheduler: Makes its scheduler; by default a cosine, step by step.
        model_kwargs: Further arguments of a student that is a timm name.

    Raises:
        ValueError: For a student or a teacher that cannot be built, modules that are not there, logits of different
            sizes, and a student that optimizes by hand or is built late.
    """

    def __init__(
        self,
        student: str | nn.Module | Mapping[str, Any],
        teacher: str | nn.Module | Teacher | MeanTeacher | Peer | Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        losses: Mapping[str, LogitLoss | FeatureLoss] | None = None,
        task_weight: float | Ramp = 1.0,
        output: str | None = None,
        combine: Literal["mean", "confidence"] = "mean",
        normalization: Normalization | None = None,
        cache: str | Path | None = None,
        num_classes: int | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if combine not in _COMBINE:
            raise ValueError(f"combine={combine!r} is unknown: write 'mean' or 'confidence'.")
        teachers, losses = as_teachers(from_plain(teacher)), from_plain(dict(losses or {})) or {"kd": KD()}
        images = from_plain(normalization)
        self.task_weight: float | Ramp = from_plain(task_weight)
        self.student = make_student(student, teachers, num_classes, optimizer, lr_scheduler, model_kwargs)
        check_student(self.student)
        self.objective = Objective(losses, _COMBINE[combine])
        if cache is not None and self.objective.of_features:
            raise ValueError("cache=... keeps logits only: leave it out, or the losses of features.")
        self.weights = {name: loss.weight for name, loss in losses.items()}
        network = self.student if isinstance(student, LightningModule) else self.student.get_submodule("model")
        ours, theirs = self.objective.layers
        self._sight = StudentCapture(self.student, network, ours, output)
        adopt_hooks(self, self.student)
        self._cached = cache is not None
        self._keys: Tensor | None = None
        self._after_steps: RemovableHandle | None = None
        self.example_input_array = self.student.example_input_array
        self.save_hyperparameters(
            {
                # What load_from_checkpoint builds the module of: no network, and no function.
                "student": arguments_of(self.student),
                "teacher": None if any(map(is_network, teachers)) else to_plain(teachers),
                "losses": to_plain(losses),
                "task_weight": to_plain(self.task_weight),
                "output": output,
                "combine": combine,
                "normalization": to_plain(images),
            }
        )
        self._faculty = TeacherEnsemble(
            teachers,
            student=self.student,
            network=network,
            layers=theirs,
            images=images,
            cache=None if cache is None else Path(cache),
        )

    @property
    def teacher(self) -> nn.Module:
        """The network of the first teacher; it is no submodule."""
        return self._faculty.ready()[0].network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The student's own loss and the losses of distillation, weighted."""
        teachers = self._faculty.ready()
        with self._sight.open():
            output = training_step(self.student, batch, batch_idx)
            task = output["loss"] if isinstance(output, dict) else output
            if task is None:
                return None
            call, logits = self._sight.call()
            weights = {name: self._now(weight) for name, weight in self.weights.items()}
            values = self.objective(call, logits, self._sight.features, teachers, labels_of(batch), self._keys, weights)
        total = self._now(self.task_weight) * task
        for name, value in values.items():
            self.log(f"train/{name}", value.detach())
            total = total + weights[name] * value
        return {**output, "loss": total} if isinstance(output, dict) else total

    def setup(self, stage: str) -> None:
        """Loads the teachers, and tries a step on a copy, which shows shapes of features and what is not trained."""
        self.student.setup(stage)
        if stage != "fit":
            return
        for ramp in (self.task_weight, *self.weights.values()):
            if isinstance(ramp, Ramp):
                check_time_fits(self.trainer, "begin", ramp.schedule.begin)
                check_time_fits(self.trainer, "end", ramp.schedule.end)
        self._faculty.ready()
        try:
            batch = training_batch(self.trainer, self)
        except ValueError:
            if self.objective.of_features:
                raise
            return
        dry_run(self, batch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Takes the keys off samples that have them."""
        self._keys = None
        if isinstance(batch, KeyedSample):
            batch, self._keys = batch
        elif self._cached and self.trainer.training:
            raise ValueError("cache=... needs samples with keys: wrap the training dataset as lc.Keyed(dataset).")
        return self.student.on_before_batch_transfer(batch, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """The student's, whose ``self.parameters()`` include the adapters of features here."""
        self.student.add_module("distillation_adapters", self.objective.adapters)
        try:
            return self.student.configure_optimizers()
        finally:
            del self.student.distillation_adapters

    def on_fit_start(self) -> None:
        """Refuses adapters that nothing trains; teachers that learn, too, do so after the student's steps."""
        self.student.on_fit_start()
        if any(teacher.learns for teacher in self._faculty.ready()):
            self._after_steps = self.trainer.optimizers[0].register_step_post_hook(self._faculty.step)
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        for name, parameter in self.objective.adapters.named_parameters():
            if id(parameter) not in trained:
                raise ValueError(
                    f"The adapter {name!r} is in no optimizer: let the student's configure_optimizers take "
                    "self.parameters(), which includes the adapters there."
                )

    def on_fit_end(self) -> None:
        """Teachers learn no more."""
        self.student.on_fit_end()
        if self._after_steps is not None:
            self._after_steps.remove()
            self._after_steps = None

    def on_train_start(self) -> None:
        """Logs how good the teachers are, as ``teacher/val_acc``, unless the run goes on from a checkpoint."""
        self.student.on_train_start()
        if self.global_step == 0:
            for index, teacher in enumerate(self._faculty.ready()):
                found = None if teacher.learns else accuracy(self.trainer, self, teacher)
                if found is not None:
                    self.log(f"teacher/val_acc{f'_{index}' if index else ''}", found)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes who the teachers are, what those that learn have learned, and which adapters there are."""
        self.student.on_save_checkpoint(checkpoint)
        checkpoint[_KEY] = {**self._faculty.record(), "adapters": self.objective.shapes}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the adapters that are in the checkpoint.

        Raises:
            ValueError: If the student learned from another teacher.
        """
        self.student.on_load_checkpoint(checkpoint)
        stored = checkpoint.get(_KEY, {"teachers": [], "states": [], "adapters": {}})
        self._faculty.restore(stored)
        self.objective.restore(stored["adapters"])

    def _now(self, weight: float | Ramp) -> float:
        if not isinstance(weight, Ramp):
            return weight
        if self.trainer.train_dataloader is None:
            return weight.first  # a step that is tried before the fit
        return weight.at(progress(self.trainer, self.global_step, in_step=False, in_batch=False))
