"""LightningModule that trains a student on its own loss and on distillation losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_setattr
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.arguments import reason
from lightning_compress.distillation.dry_run import ComparisonError, dry_run, warn_unused_parameters
from lightning_compress.distillation.frozen_network import TeacherError
from lightning_compress.distillation.image_conversion import Normalization
from lightning_compress.distillation.keyed import KeyedSample
from lightning_compress.distillation.logit_averaging import average_by_confidence, average_uniformly
from lightning_compress.distillation.logits import KD
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss
from lightning_compress.distillation.objective import Objective
from lightning_compress.distillation.ramp import Ramp
from lightning_compress.distillation.student_capture import StudentCapture
from lightning_compress.distillation.students import build_student, check_student, student_hparams
from lightning_compress.distillation.teacher import MeanTeacher, Peer, Teacher
from lightning_compress.distillation.teacher_accuracy import teacher_accuracy
from lightning_compress.distillation.teacher_ensemble import TeacherEnsemble
from lightning_compress.distillation.teacher_loading import as_teachers, is_plain
from lightning_compress.distillation.wrapped_module import adopt_hooks, has_number
from lightning_compress.models.checkpoint_loading import CheckedModule
from lightning_compress.module_copies import copy_module
from lightning_compress.serialization import from_plain, to_plain
from lightning_compress.sharded_modules import is_sharded, mesh_of
from lightning_compress.trainer.batches import first_training_batch, training_step
from lightning_compress.trainer.loaders import ADVICE
from lightning_compress.trainer.progress import check_time_fits, progress
from lightning_compress.trainer.queries import averaged_models, is_a

_COMBINE = {"mean": average_uniformly, "confidence": average_by_confidence}
_CHECKPOINT_KEY = "distillation"
_DRY_RUN_SAMPLES = 4


class DistillationModule(CheckedModule):
    """Train a student on its own loss and on distillation losses from one or several teachers.

    The student is a LightningModule, ``self.student``. In its ``training_step``, which computes the task loss, forward
    hooks record its inputs, logits and features; the teachers are run on the same inputs, and the weighted
    distillation losses are added to the task loss. All other hooks and steps are the student's. A frozen teacher is
    not a submodule: it is in no checkpoint, optimizer, average of the weights or parameter count, and stays in eval
    mode.

    Args:
        student: A LightningModule; or a timm name, a network, arguments or a checkpoint (``.ckpt``) of a
            :class:`ClassificationModule`, which then trains it.
        teacher: A timm name, a network, a :class:`Teacher`, a :class:`MeanTeacher` (average of the student's weights),
            a :class:`Peer` (trained together with the student), or a list of those. ``None`` for evaluation only.
        losses: Distillation losses by name, logged as ``train/<name>``, a weight that changes as
            ``train/<name>_weight``; by default ``{"kd": KD()}``. The layers of a feature loss are modules of the
            student's network (of the LightningModule if the student was given as one) and of the first teacher.
        task_weight: Factor of the student's own loss, or a :class:`Ramp`.
        output: Name of the student's submodule that returns the logits. By default the student itself if its
            ``training_step`` calls it, else its only child that is called. The teachers get the inputs of the student
            or of that child, unless :class:`Teacher` has ``inputs``. Logits may be of samples ``(N, C)``, tokens ``(N,
            L, C)`` or pixels ``(N, C, H, W)``; losses are those of all positions, without padding and ignored labels.
        class_dim: Dimension of the classes, where logits have three or more. By default the last of three and the
            second of more, unless only another one fits the labels.
        combine: Combination of several teachers: ``"mean"`` of their probabilities, or ``"confidence"``, a mean
            weighted per sample by their losses on the label.
        normalization: Normalization of the images, for teachers with another one; by default that of the student's
            timm configuration.
        cache: Directory of memory-mapped teacher logits, by the keys of a training dataset wrapped in :class:`Keyed`;
            shared by all runs with the same teacher weights and precision. Only with logit losses.
        num_classes: Number of classes of a student given as a timm name or network; by default the teacher's.
        optimizer: Function from parameters to the optimizer of such a student; by default that of
            :class:`ClassificationModule`.
        lr_scheduler: Function from the optimizer to its scheduler; by default a cosine schedule over the run.
        model_kwargs: Further arguments of a student given as a timm name.

    Attributes:
        student: The student's LightningModule.
        objective: The losses with their adapters.

    Raises:
        ValueError: If the student or a teacher cannot be built, a named module does not exist, logits differ in shape,
            or the student uses manual optimization.

    >>> import lightning_compress as lc
    >>> student = lc.ClassificationModule("lenet300_100", 10)
    >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    >>> module = lc.DistillationModule(student, teacher, losses={"kd": lc.KD(temperature=2.0)}, task_weight=0.5)
    >>> sum(p.numel() for p in module.parameters())
    266610
    """

    def __init__(
        self,
        student: str | nn.Module | Mapping[str, Any],
        teacher: str | nn.Module | Teacher | MeanTeacher | Peer | Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        losses: Mapping[str, LogitLoss | FeatureLoss] | None = None,
        task_weight: float | Ramp = 1.0,
        output: str | None = None,
        class_dim: int | None = None,
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
            raise ValueError(f"combine={combine!r} is not supported: it must be 'mean' or 'confidence'.")
        # load_from_checkpoint passes the hyperparameters, which are plain data.
        teachers, losses = as_teachers(from_plain(teacher)), from_plain(dict(losses or {})) or {"kd": KD()}
        student_normalization = from_plain(normalization)
        self.task_weight: float | Ramp = from_plain(task_weight)
        self.student = build_student(student, teachers, num_classes, optimizer, lr_scheduler, model_kwargs)
        check_student(self.student)
        self.objective = Objective(losses, _COMBINE[combine], class_dim)
        if cache is not None and self.objective.feature_losses:
            raise ValueError("cache=... stores logits only: leave it out, or leave out the feature losses.")
        self.weights = {name: loss.weight for name, loss in losses.items()}
        network = self.student if isinstance(student, LightningModule) else self.student.get_submodule("model")
        student_layers, teacher_layers = self.objective.layers
        self._capture = StudentCapture(self.student, network, student_layers, output)
        adopt_hooks(self, self.student)
        self._is_cached = cache is not None
        self._keys: Tensor | None = None
        self._step_hook: RemovableHandle | None = None
        self.example_input_array = self.student.example_input_array
        self.save_hyperparameters(
            {
                # Plain data only: networks and functions cannot be loaded with weights_only=True.
                "student": student_hparams(self.student),
                "teacher": to_plain(teachers) if all(map(is_plain, teachers)) else None,
                "losses": to_plain(losses),
                "task_weight": to_plain(self.task_weight),
                "output": output,
                "class_dim": class_dim,
                "combine": combine,
                "normalization": to_plain(student_normalization),
            }
        )
        self._teachers = TeacherEnsemble(
            teachers,
            student=self.student,
            network=network,
            layers=teacher_layers,
            student_normalization=student_normalization,
            cache=None if cache is None else Path(cache),
        )

    @property
    def teacher(self) -> nn.Module:
        """Network of the first teacher, which is not a submodule."""
        return self._teachers.build()[0].network

    def __getattr__(self, name: str) -> Any:
        """Return a number of the student, such as the learning rate that Lightning's Tuner looks for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not has_number(vars(self).get("_modules", {}).get("student"), name):
                raise
            return lightning_getattr(self.student, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, or a number of the student."""
        is_own = name in vars(self) or hasattr(type(self), name) or "_teachers" not in vars(self)  # in __init__
        if is_own or not has_number(self.student, name):
            super().__setattr__(name, value)
        else:
            lightning_setattr(self.student, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the student."""
        return self.student(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Run the student's ``training_step`` and add the weighted distillation losses to its loss."""
        teachers = self._teachers.build()
        with self._capture.record():
            output = training_step(self.student, batch, batch_idx)
            task = output.get("loss") if isinstance(output, dict) else output
            if task is None:  # Lightning's sign to skip the batch
                return output
            weights = {name: self._current_weight(weight) for name, weight in self.weights.items()}
            try:
                values = self.objective(self._capture.step(batch, self._keys), teachers, weights)
            except TeacherError:
                raise
            except ValueError as error:
                raise ComparisonError(str(error)) from error
        task_weight = self._current_weight(self.task_weight)
        total = task_weight * task
        # A constant weight is a key of the configuration, not a series.
        if isinstance(self.task_weight, Ramp):
            self.log("train/task_weight", task_weight)
        for name, value in values.items():
            self.log(f"train/{name}", value.detach())
            if isinstance(self.weights[name], Ramp):
                self.log(f"train/{name}_weight", weights[name])
            total = total + weights[name] * value
        return {**output, "loss": total} if isinstance(output, dict) else total

    def setup(self, stage: str) -> None:
        """Build the teachers, and build the adapters in a dry run of one training step."""
        self.student.setup(stage)
        if stage != "fit":
            return
        for ramp in (self.task_weight, *self.weights.values()):
            if isinstance(ramp, Ramp):
                check_time_fits(self.trainer, "begin", ramp.schedule.begin)
                check_time_fits(self.trainer, "end", ramp.schedule.end)
        self._teachers.build()
        self._dry_run()

    def configure_model(self) -> None:
        """Let the student make and shard its layers, shard the adapters with them, and teachers by themselves.

        Raises:
            ValueError: Under ModelParallelStrategy for a student that does not shard its layers.
        """
        self.student._device_mesh = self._device_mesh
        self.student.configure_model()
        if self.objective.failure is not None:  # the student may not have had its layers before
            self.objective.failure = None
            self._dry_run()
        if self._device_mesh is not None:
            for teacher in self._teachers.built:
                teacher.configure_model(self._device_mesh)
        mesh = mesh_of(self.student)
        if mesh is not None:
            self.objective.shard_adapters(mesh)
        elif self._trainer is not None and is_a(self.trainer.strategy, "ModelParallelStrategy"):
            raise ValueError(
                f"The student {type(self.student).__name__} is not sharded: call fully_shard in its configure_model, "
                "or use 'ddp'."
            )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Separate the keys from samples of a :class:`Keyed` dataset."""
        self._keys = None
        if isinstance(batch, KeyedSample):
            batch, self._keys = batch
        elif self._is_cached and self.trainer.training:
            raise ValueError("cache=... needs samples with keys: wrap the training dataset as lc.Keyed(dataset).")
        return self.student.on_before_batch_transfer(batch, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """Return the student's optimizers, with the adapters among the student's ``self.parameters()``."""
        # A submodule of the student only during this call, so that no key of its state dict changes.
        self.student.add_module("distillation_adapters", self.objective.adapters)
        try:
            return self.student.configure_optimizers()
        finally:
            del self.student.distillation_adapters

    def on_fit_start(self) -> None:
        """Register the update of teachers, and check that an optimizer holds every adapter.

        Raises:
            ValueError: If an adapter is in no optimizer.
        """
        self.student.on_fit_start()
        if any(teacher.is_updated for teacher in self._teachers.build()):
            self._step_hook = self.trainer.optimizers[0].register_step_post_hook(self._teachers.step)
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        optimized = {id(parameter) for group in groups for parameter in group["params"]}
        for name, parameter in self.objective.adapters.named_parameters():
            if id(parameter) not in optimized:
                raise ValueError(
                    f"The adapter {name!r} is in no optimizer: let the student's configure_optimizers take "
                    "self.parameters(), which includes the adapters there."
                )

    def on_fit_end(self) -> None:
        """Stop the update of teachers."""
        self.student.on_fit_end()
        if self._step_hook is not None:
            self._step_hook.remove()
            self._step_hook = None

    def on_train_start(self) -> None:
        """Log the accuracies of the teachers as ``teacher/val_acc``, unless the run is resumed."""
        self.student.on_train_start()
        if self.global_step == 0:
            class_dim = self.objective.logit_losses.class_dim
            for index, teacher in enumerate(self._teachers.build()):
                accuracy = None if teacher.is_updated else teacher_accuracy(self.trainer, self, teacher, class_dim)
                if accuracy is not None:
                    self.log(f"teacher/val_acc{f'_{index}' if index else ''}", accuracy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the identities and states of the teachers and the shapes of the adapters."""
        self.student.on_save_checkpoint(checkpoint)
        checkpoint[_CHECKPOINT_KEY] = {**self._teachers.state_dict(), "adapters": self.objective.shapes}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the teachers, and build the adapters before their parameters are loaded.

        Raises:
            ValueError: If the checkpoint was written with another teacher.
        """
        self.student.on_load_checkpoint(checkpoint)
        stored = checkpoint.get(_CHECKPOINT_KEY, {"teachers": [], "states": [], "adapters": {}})
        self._teachers.load_state_dict(stored)
        missing = [key for key in stored["adapters"] if key not in self.objective.adapters]
        if missing and is_sharded(self.student) and self.trainer.state.fn == "fit":
            raise ValueError(
                f"The adapter {missing[0]!r} could not be built before the student was sharded "
                f"({self.objective.failure}): call objective.build_adapters({stored['adapters']}) before the fit."
            )
        self.objective.build_adapters(stored["adapters"])

    def _dry_run(self) -> None:
        try:
            batch = first_training_batch(self.trainer, self, _DRY_RUN_SAMPLES)
            self._keys = None  # nothing is cached yet
            copy = dry_run(self, batch)
        except ComparisonError:
            raise
        except Exception as error:
            # There may be no data before the fit, the step may need more of the Trainer than there is, or the teacher
            # a GPU.
            self.objective.failure = reason(error).removesuffix(f": {ADVICE.rstrip('.')}")
            return
        self.objective.failure = None
        warn_unused_parameters(copy.student)
        copy.objective.zero_grad(set_to_none=True)
        self.objective.adopt_adapters(copy.objective)
        # Weight averaging copied the module before the adapters existed.
        for average in averaged_models(self.trainer):
            average.objective.adopt_adapters(copy_module(copy.objective))  # type: ignore[union-attr, operator]

    def _current_weight(self, weight: float | Ramp) -> float:
        if not isinstance(weight, Ramp):
            return weight
        if self.trainer.train_dataloader is None:
            return weight.first  # in the dry run, before the Trainer knows the length of the run
        return weight.at(progress(self.trainer, self.global_step, in_step=False, in_batch=False))
