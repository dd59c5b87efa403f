"""The key ``quantization`` for the quantization modifiers of a SparseML recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.cli.sparseml.epoch_times import epoch_time
from lightning_compress.cli.sparseml.parameter_globs import layer_globs
from lightning_compress.cli.sparseml.recipe_text import RecipeModifier
from lightning_compress.cli.sparseml.remarks import Remarks

QUANTIZATION = "QuantizationModifier"

_TYPES = {
    **{name: f"torch.nn.{name}" for name in ("Linear", "Conv1d", "Conv2d", "Conv3d")},
    "QATLinear": "torch.nn.Linear",
}
_DEFAULT: dict[str, Any] = {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}
_SCHEMES: dict[str, dict[str, Any]] = {
    "default": _DEFAULT,
    "deepsparse": _DEFAULT,
    "tensorrt": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8, "symmetric": True}},
}
_WITHOUT = ("reduce_range", "num_calibration_steps", "post_oneshot_calibration", "exclude_module_types",
            "activation_qconfig_kwargs", "weight_qconfig_kwargs")  # fmt: skip


def quantization(modifiers: Sequence[RecipeModifier], module: str, remarks: Remarks) -> dict[str, Any]:
    """Return the key ``quantization`` for the first modifier; empty if there is none.

    Args:
        modifiers: Modifiers named :data:`QUANTIZATION`, in the form of any version.
        module: Name of the submodule of the LightningModule that has the layers.
        remarks: Takes a sentence for each part without a counterpart.

    Raises:
        ValueError: If an argument is invalid.
    """
    if not modifiers:
        return {}
    first, *others = modifiers
    if others:
        remarks.add(f"{QUANTIZATION}: {len(others) + 1} of them have no counterpart; the first one is taken.")
    for name in _WITHOUT:
        if first.arguments.get(name):
            remarks.add(f"{QUANTIZATION}: {name} has no counterpart and is left out.")
    scheme, overrides = _scheme(first, remarks)
    specs = {
        "weights": _spec(first, scheme.get("weights"), is_weight=True),
        "activations": _spec(first, scheme.get("input_activations"), is_weight=False),
    }
    config: dict[str, Any] = {
        key: _with_overrides(first, key, spec, overrides, module, remarks) for key, spec in specs.items()
    }
    if config["weights"] is None and config["activations"] is None:
        remarks.add(f"{QUANTIZATION}: neither weights nor activations are quantized; it is left out.")
        return {}
    return {**config, "schedule": _schedule(first), "targets": _targets(first, module, remarks)}


def _scheme(modifier: RecipeModifier, remarks: Remarks) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the scheme of all layers, and those of layers by type or name."""
    given, arguments = modifier.arguments.get("scheme"), modifier.arguments
    overrides = _mapping(modifier, "scheme_overrides", arguments.get("scheme_overrides"))
    if groups := _mapping(modifier, "config_groups", arguments.get("config_groups")):
        schemes = [_mapping(modifier, name, group) for name, group in groups.items()]
        overrides = {
            target: scheme for scheme in schemes for target in RecipeModifier(QUANTIZATION, scheme).texts("targets")
        }
        given = overrides.pop("Linear", None) or overrides.pop("Conv2d", None)
        if given is None:
            return {}, overrides
    for name in ("Linear", "Conv2d"):
        if given is None and name in overrides:
            given = overrides.pop(name)
    if given is None:
        activations = {"num_bits": int(modifier.number("activation_bits", default=8))}
        activations |= {"symmetric": True} if arguments.get("tensorrt") else {}
        quantized = [arguments.get(f"quantize_{kind}_activations", True) for kind in ("linear", "conv")]
        if any(quantized) and not all(quantized):
            remarks.add(f"{QUANTIZATION}: activations of one layer type alone have no counterpart; set activations.")
        weights = {"num_bits": int(modifier.number("weight_bits", default=8))}
        return {"weights": weights, "input_activations": activations if any(quantized) else None}, overrides
    if isinstance(given, str):
        if given not in _SCHEMES:
            raise ValueError(f"{modifier.name}: scheme={given!r} must be one of {', '.join(_SCHEMES)}")
        return _SCHEMES[given], overrides
    return {**_DEFAULT, **_mapping(modifier, "scheme", given)}, overrides


def _mapping(modifier: RecipeModifier, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, (dict, type(None))):
        raise ValueError(f"{modifier.name}: {name}={value!r} must be a mapping")
    return {str(key): item for key, item in (value or {}).items()}


def _spec(modifier: RecipeModifier, given: Any, *, is_weight: bool) -> dict[str, Any] | None:
    """Return the arguments of an ``Int`` for weights or activations, or ``None`` for FP32."""
    arguments = _mapping(modifier, "weights" if is_weight else "input_activations", given)
    if given is None:
        return None
    bits = RecipeModifier(modifier.name, arguments).number("num_bits", default=8)
    if bits != int(bits) or not 2 <= bits <= 8:
        raise ValueError(f"{modifier.name}: num_bits={bits:g} must be a whole number from 2 to 8")
    spec: dict[str, Any] = {"bits": int(bits)}
    # Symmetric weights and affine activations are the defaults.
    symmetric = arguments.get("symmetric")
    if isinstance(symmetric, bool) and symmetric != is_weight:
        spec["symmetric"] = symmetric
    strategy = arguments.get("strategy")
    if is_weight and strategy == "tensor":
        spec["granularity"] = "tensor"
    elif is_weight and strategy == "group":
        spec["granularity"] = int(RecipeModifier(modifier.name, arguments).number("group_size", default=128))
    return spec


def _with_overrides(
    modifier: RecipeModifier, key: str, spec: Any, overrides: Mapping[str, Any], module: str, remarks: Remarks
) -> Any:
    """Return a specification for all layers, or one for each glob if some layers have their own."""
    own = "weights" if key == "weights" else "input_activations"
    found: dict[str, Any] = {}
    for name, scheme in overrides.items():
        globs = [] if _is_type(name) else layer_globs(name, module)
        if not globs:
            remarks.add(f"{QUANTIZATION}: the scheme of {name} has no counterpart and is left out.")
        given = _mapping(modifier, name, scheme).get(own, _DEFAULT[own])
        found |= dict.fromkeys(globs, _spec(modifier, given, is_weight=key == "weights"))
    return {**found, "*": spec} if found else spec


def _is_type(name: str) -> bool:
    """Return True for the name of a class, such as ``"LlamaRMSNorm"``."""
    return "." not in name and not name.startswith("re:") and name[:1].isupper()


def _schedule(modifier: RecipeModifier) -> dict[str, Any]:
    start = modifier.number("start_epoch", "start", default=-1)
    freeze = modifier.number("disable_quantization_observer_epoch", default=-1)
    batch_norm = modifier.number("freeze_bn_stats_epoch", default=-1)
    return {
        # Ranges must be observed before they are frozen.
        "observe": 0.0 if 0 < freeze <= start else epoch_time(start),
        "fake_quantize": epoch_time(start),
        "freeze_observers": epoch_time(freeze) if freeze > 0 else 1.0,
        "freeze_batch_norm": epoch_time(batch_norm) if batch_norm > 0 else 1.0,
    }


def _targets(modifier: RecipeModifier, module: str, remarks: Remarks) -> dict[str, Any]:
    targets: dict[str, Any] = {"module": module}
    include = [glob for name in modifier.texts("submodules") for glob in layer_globs(name, module)]
    exclude: list[str] = []
    others: list[str] = []
    types = dict(_TYPES)
    for name in modifier.texts("ignore"):
        if not _is_type(name):
            globs = layer_globs(name, module)
            exclude += globs
            if not globs:
                remarks.add(f"{QUANTIZATION}: {name!r} has no glob; add its layers to targets.exclude by hand.")
        elif name in types:
            types = {kind: path for kind, path in types.items() if path != _TYPES[name]}
        else:
            others.append(name)
    if others:
        remarks.add(f"{QUANTIZATION}: ignore={', '.join(others)} has no counterpart: layers are selected by name.")
    if include:
        targets["include"] = include
    if exclude:
        targets["exclude"] = exclude
    if len(types) < len(_TYPES):
        targets["types"] = [*dict.fromkeys(types.values())]
    return targets
