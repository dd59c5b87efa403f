"""Epochs, learning rates and distillation losses of a SparseML recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_compress.cli.sparseml.recipe_text import RecipeModifier
from lightning_compress.cli.sparseml.remarks import Remarks

EPOCHS = "EpochRangeModifier"
RATES = ("SetLearningRateModifier", "LearningRateFunctionModifier", "LearningRateModifier")
DISTILLATION = ("DistillationModifier", "PerLayerDistillationModifier")

_SCHEDULERS = "torch.optim.lr_scheduler"
_BY_HAND = "set model.lr_scheduler by hand"


def epochs(modifiers: Sequence[RecipeModifier]) -> dict[str, Any]:
    """Return ``trainer.max_epochs``, the last end of all epoch ranges; empty if there is none."""
    ends = [modifier.number("end_epoch", "end", default=-1) for modifier in modifiers]
    last = max(ends, default=-1)
    if not math.isfinite(last):
        raise ValueError(f"{EPOCHS}: end_epoch={last} must be finite")
    return {"max_epochs": math.ceil(last)} if last > 0 else {}


def learning_rate(modifiers: Sequence[RecipeModifier], max_epochs: int | None, remarks: Remarks) -> dict[str, Any]:
    """Return the optimizer's learning rate and its scheduler as keys of the model.

    Args:
        modifiers: Modifiers of the learning rate.
        max_epochs: Epochs of the run, if the recipe has them.
        remarks: Takes a sentence for each modifier without a counterpart.
    """
    phases = sorted(modifiers, key=lambda modifier: modifier.number("start_epoch", "start", default=0))
    if not phases:
        return {}
    first = phases[0]
    rate = first.number("learning_rate", "init_lr")
    if rate <= 0 and len(phases) == 1:
        raise ValueError(f"{first.name}: a learning rate of {rate:g} must be above 0")
    # A rate that is set and a schedule that begins in the same epoch are one phase.
    changing = [phase for phase in phases if phase.name != RATES[0]]
    constant = [phase for phase in phases if phase.name == RATES[0]]
    scheduler = None
    if len(changing) == 1 and len(constant) <= 1 and changing[0].number("start_epoch", "start", default=0) <= 0:
        rate = changing[0].number("init_lr")
        scheduler = _scheduler(changing[0], max_epochs, remarks)
    elif not changing and len(constant) == 1:
        scheduler = {"class_path": f"{_SCHEDULERS}.ConstantLR", "init_args": {"factor": 1.0}}
    else:
        rate = max(phase.number("learning_rate", "init_lr") for phase in phases)
        remarks.add(
            f"{len(phases)} phases of the learning rate have no counterpart: the largest one, {rate:g}, is the "
            f"optimizer's, with the scheduler of the model; {_BY_HAND} for another course."
        )
    if rate <= 0:
        remarks.add(f"{first.name}: a learning rate of {rate:g} is left out; set model.optimizer.lr by hand.")
        return {}
    optimizer = {"optimizer": {"init_args": {"lr": rate}}}
    return optimizer if scheduler is None else {**optimizer, "lr_scheduler": scheduler}


def _scheduler(modifier: RecipeModifier, max_epochs: int | None, remarks: Remarks) -> dict[str, Any] | None:
    first, last = modifier.number("init_lr"), modifier.number("final_lr", default=0)
    end = modifier.number("end_epoch", "end", default=-1)
    num_epochs = max(1, math.ceil(end)) if end > 0 else max_epochs or 1
    kind = str(modifier.arguments.get("lr_func") or modifier.arguments.get("lr_class"))
    given = modifier.arguments.get("lr_kwargs") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{modifier.name}: lr_kwargs={given!r} must be a mapping")
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("CosineAnnealingLR", {"T_max": num_epochs, "eta_min": last}),
        "linear": ("LinearLR", {"start_factor": 1.0, "end_factor": last / first, "total_iters": num_epochs})
        if first > 0
        else ("", {}),
        "StepLR": ("StepLR", {name: given[name] for name in ("step_size", "gamma") if name in given}),
        "MultiStepLR": ("MultiStepLR", {name: given[name] for name in ("milestones", "gamma") if name in given}),
        "ExponentialLR": ("ExponentialLR", {name: given[name] for name in ("gamma",) if name in given}),
        "CosineAnnealingWarmRestarts": (
            "CosineAnnealingWarmRestarts",
            {"T_0": math.ceil(float(given.get("cycle_epochs", num_epochs))), "eta_min": given.get("lr_min", 0.0)},
        ),
    }
    name, arguments = made.get(kind, ("", {}))
    if not name:
        remarks.add(f"{modifier.name}: {kind} has no counterpart; {_BY_HAND}.")
        return None
    return {"class_path": f"{_SCHEDULERS}.{name}", "init_args": arguments}


def distillation(modifiers: Sequence[RecipeModifier], remarks: Remarks) -> dict[str, Any]:
    """Return the losses of a :class:`~lightning_compress.DistillationModule` as keys of the model."""
    losses: dict[str, Any] = {}
    task_weight: dict[str, float] = {}
    for modifier in modifiers:
        if modifier.number("start_epoch", "start", default=0) > 0 or modifier.number("end_epoch", "end", default=0) > 0:
            remarks.add(f"{modifier.name}: start_epoch and end_epoch have no counterpart; the loss is used throughout.")
        if modifier.name == DISTILLATION[0]:
            hardness = modifier.number("hardness", default=0.5)
            if not 0 <= hardness <= 1:
                raise ValueError(f"{modifier.name}: hardness={hardness:g} must be in [0, 1]")
            arguments = {"temperature": modifier.number("temperature", default=2.0), "weight": hardness}
            losses["kd"] = {"class_path": "lightning_compress.KD", "init_args": arguments}
            task_weight = {"task_weight": round(1 - hardness, 12)}
            if modifier.arguments.get("distill_output_keys"):
                remarks.add(f"{modifier.name}: distill_output_keys has no counterpart; set model.output.")
        else:
            losses |= _features(modifier, remarks)
    return {"losses": losses, **task_weight} if losses else {}


def _features(modifier: RecipeModifier, remarks: Remarks) -> dict[str, Any]:
    student, teacher = modifier.texts("student_layer_names"), modifier.texts("teacher_layer_names")
    if not student or len(student) != len(teacher) or any(name.startswith("re:") for name in [*student, *teacher]):
        remarks.add(f"{modifier.name}: without pairs of layer names it has no counterpart; add a FitNet loss by hand.")
        return {}
    remarks.add(f"{modifier.name}: the loss is FitNet's, which does not normalize by the teacher's features.")
    pairs = [list(pair) for pair in zip(student, teacher, strict=True)]
    arguments = {"layers": pairs, "weight": modifier.number("gain", default=1.5)}
    return {"features": {"class_path": "lightning_compress.FitNet", "init_args": arguments}}
