"""The key ``pruning`` for the pruning modifiers of a SparseML recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_compress.cli.sparseml.epoch_times import epoch_time
from lightning_compress.cli.sparseml.parameter_globs import layer_globs
from lightning_compress.cli.sparseml.recipe_text import RecipeModifier
from lightning_compress.cli.sparseml.remarks import Remarks

PRUNING = (
    "GMPruningModifier", "MagnitudePruningModifier", "GlobalMagnitudePruningModifier", "MovementPruningModifier",
    "OBSPruningModifier", "MFACPruningModifier", "RigLPruningModifier", "StructuredPruningModifier",
)  # fmt: skip
"""Modifiers that have a target sparsity."""

CONSTANT = "ConstantPruningModifier"
"""Modifier that keeps the zeros of a loaded model."""

_PUBLIC = "lightning_compress"
_CURVES = {"linear": "linear", "cubic": "cubic", "cubic_spline": "cubic", "cosine": "cosine"}


@dataclass(frozen=True)
class PruningPlan:
    """Arguments of one modifier, as the key ``pruning`` has them.

    Attributes:
        sparsities: Glob to sparsity.
        schedule: Arguments of the schedule.
        options: All other keys.
    """

    sparsities: dict[str, float]
    schedule: dict[str, Any]
    options: dict[str, Any]


def pruning(modifiers: Sequence[RecipeModifier], module: str, remarks: Remarks) -> dict[str, Any]:
    """Return the key ``pruning``, of all modifiers that share a schedule; empty if there are none.

    Args:
        modifiers: Modifiers listed in :data:`PRUNING`.
        module: Name of the submodule of the LightningModule that has the layers.
        remarks: Takes a sentence for each part without a counterpart.

    Raises:
        ValueError: If an argument is missing or invalid.
    """
    merged: PruningPlan | None = None
    for modifier in modifiers:
        plan = _plan(modifier, module, remarks)
        if not plan.sparsities:
            continue
        if merged is None:
            merged = plan
        elif (plan.schedule, plan.options) == (merged.schedule, merged.options):
            merged = replace(merged, sparsities={**plan.sparsities, **merged.sparsities})
        else:
            remarks.add(
                f"{modifier.name} from epoch {modifier.number('start_epoch', 'start', default=0):g}: a second schedule "
                "or pattern has no counterpart in one run; train it as a stage of its own, with the key after."
            )
    if merged is None:
        return {}
    values = set(merged.sparsities.values())
    if len(values) == 1:
        globs = [glob for glob in merged.sparsities if glob != "*"]
        include = {"include": globs} if len(globs) == len(merged.sparsities) else {}
        sparsity: Any = values.pop()
    else:
        # The first glob that matches applies.
        sparsity = dict(sorted(merged.sparsities.items(), key=lambda item: item[0] == "*"))
        include = {"include": list(sparsity)}
    targets = {"targets": {**include, "module": module}}
    return {"sparsity": sparsity, **merged.options, "schedule": merged.schedule, **targets}


def constant_pruning(modifiers: Sequence[RecipeModifier], module: str, remarks: Remarks) -> list[dict[str, Any]]:
    """Return the callback that keeps the zeros of a loaded model, as an item of ``trainer.callbacks``."""
    globs = [glob for modifier in modifiers for glob in _globs(modifier, modifier.texts(*_NAMES), module, remarks)]
    if not globs:
        return []
    if any(modifier.number("start_epoch", "start", default=0) > 0 for modifier in modifiers):
        remarks.add(f"{CONSTANT}: start_epoch has no counterpart; the zeros are kept from the start of the fit.")
    targets = {"include": [*dict.fromkeys(globs)], "module": module}
    return [{"class_path": f"{_PUBLIC}.Fixed", "init_args": {"targets": targets}}]


_NAMES = ("params", "targets")


def _plan(modifier: RecipeModifier, module: str, remarks: Remarks) -> PruningPlan:
    begin = modifier.number("start_epoch", "start", default=0)
    end = modifier.number("end_epoch", "end", default=-1)
    options = _options(modifier, remarks)
    sparsities = _sparsities(modifier, module, remarks)
    if not sparsities:
        return PruningPlan({}, {}, options)
    if sparsity := _fixed_sparsity(options):
        if {*sparsities.values()} != {sparsity}:
            remarks.add(f"{modifier.name}: the sparsity of the pattern is {sparsity:g}, whatever final_sparsity says.")
        sparsities = dict.fromkeys(sparsities, sparsity)
    curve = _CURVES.get(str(_first(modifier, "inter_func", "update_scheduler", default="cubic")))
    if curve is None:
        curve = "cubic"
        remarks.add(f"{modifier.name}: {_first(modifier, 'inter_func', 'update_scheduler')!r} has no counterpart, the "
                    "curve is cubic.")  # fmt: skip
    initial = modifier.arguments.get("init_sparsity", 0)
    if initial == "__FROM_PARAM__":
        remarks.add(f"{modifier.name}: init_sparsity=__FROM_PARAM__ has no counterpart; the ramp begins at 0.")
    elif "growth" in options or {modifier.number("init_sparsity", default=0)} == {*sparsities.values()}:
        curve = "one_shot"
    elif modifier.number("init_sparsity", default=0) > 0:
        remarks.add(f"{modifier.name}: init_sparsity={initial} has no counterpart; the ramp begins at 0.")
    if modifier.arguments.get("leave_enabled") is False:
        remarks.add(f"{modifier.name}: leave_enabled=False has no counterpart; the zeros are kept to the end.")
    curve = curve if end > max(begin, 0) else "one_shot"
    every = modifier.number("update_frequency", "update", default=-1)
    schedule = {
        "begin": epoch_time(begin),
        # One step is the smallest interval, as after every batch.
        "end": epoch_time(end) if end > max(begin, 0) else 1.0,
        "every": epoch_time(every) if every > 0 else 1,
        "curve": curve,
    }
    return PruningPlan(sparsities, schedule, options)


def _first(modifier: RecipeModifier, *names: str, default: Any = None) -> Any:
    return next((modifier.arguments[name] for name in names if modifier.arguments.get(name) is not None), default)


def _options(modifier: RecipeModifier, remarks: Remarks) -> dict[str, Any]:
    options = _pattern(modifier)
    name = modifier.name
    is_global = name == "GlobalMagnitudePruningModifier" or bool(
        _first(modifier, "global_sparsity", "apply_globally", default=name == "OBSPruningModifier")
    )
    if name == "MovementPruningModifier":
        options["score"] = {"class_path": f"{_PUBLIC}.Movement"}
    elif name in ("OBSPruningModifier", "MFACPruningModifier"):
        remarks.add(f"{name}: second-order scores have no counterpart; weights are ranked by magnitude.")
    elif name == "RigLPruningModifier":
        fraction = modifier.number("init_update_fraction", default=0.3)
        options["growth"] = {"class_path": f"{_PUBLIC}.RigL", "init_args": {"fraction": fraction}}
        if "kernel" in str(modifier.arguments.get("sparsity_strategy", "erdos_renyi_kernel")):
            options["distribution"] = {"class_path": f"{_PUBLIC}.ERK"}
    kind = options.get("pattern", {}).get("class_path", "").rpartition(".")[2]
    # NM has the same sparsity in every layer, and channels are ranked with those that they are added to.
    if kind not in ("NM", "Channels") and "distribution" not in options:
        options["scope"] = "global" if is_global else "layer"
    return options


def _fixed_sparsity(options: dict[str, Any]) -> float | None:
    """Return the sparsity that an N:M pattern has in every layer, or ``None`` for other patterns."""
    arguments = options.get("pattern", {}).get("init_args", {})
    return 1 - arguments["n"] / arguments["m"] if "m" in arguments else None


def _pattern(modifier: RecipeModifier) -> dict[str, Any]:
    default = "filter" if modifier.name == "StructuredPruningModifier" else "unstructured"
    given = _first(modifier, "mask_type", "mask_structure", default=default)
    if given in ("unstructured", "0:0"):
        return {}
    made: tuple[str, dict[str, Any]] | None = None
    if given in ("filter", "channel"):
        made = "Channels", {}
    elif given == "block4":
        made = "Block", {"shape": [1, 4]}
    elif isinstance(given, list) and len(given) == 2 and all(type(side) is int and side > 0 for side in given):
        made = "Block", {"shape": given}
    elif isinstance(given, str) and given.count(":") == 1 and given.replace(":", "").isdigit():
        num_pruned, size = map(int, given.split(":"))
        made = "NM", {"n": size - num_pruned, "m": size}
    if made is None:
        raise ValueError(f"{modifier.name}: the mask type {given!r} is not known")
    return {"pattern": {"class_path": f"{_PUBLIC}.{made[0]}", "init_args": made[1]}}


def _sparsities(modifier: RecipeModifier, module: str, remarks: Remarks) -> dict[str, float]:
    given = modifier.arguments.get("final_sparsity", modifier.arguments.get("sparsity"))
    if isinstance(given, dict):
        parts = [RecipeModifier(modifier.name, {"final_sparsity": s, "params": names}) for s, names in given.items()]
    else:
        parts = [modifier]
    found: dict[str, float] = {}
    for part in parts:
        sparsity = part.number("final_sparsity", "sparsity")
        if not 0 <= sparsity < 1:
            raise ValueError(f"{modifier.name}: final_sparsity={sparsity:g} must be in [0, 1)")
        names = part.texts(*_NAMES) or ["__ALL_PRUNABLE__"]
        found |= dict.fromkeys(_globs(modifier, names, module, remarks), sparsity)
    return found


def _globs(modifier: RecipeModifier, names: Sequence[str], module: str, remarks: Remarks) -> list[str]:
    found = []
    for name in names:
        globs = ["*"] if name in ("Linear", "Conv2d") else layer_globs(name, module)
        if name in ("Linear", "Conv2d"):
            remarks.add(f"{modifier.name}: the layer type {name} stands for all linear layers and convolutions.")
        if not globs:
            remarks.add(f"{modifier.name}: {name!r} has no glob; add its layers to targets.include by hand.")
        found += globs
    return found
