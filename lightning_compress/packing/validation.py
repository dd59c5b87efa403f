"""Comparison of the names and shapes of a packed file with those of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_compress.packing.entry import Entry
from lightning_compress.packing.tensors import uncompiled_name

_MAX_LISTED = 3


def keys_of_model(model: nn.Module) -> dict[str, str]:
    """Return the keys of a model's state dict by their uncompiled names."""
    return {uncompiled_name(key): key for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def check_match(entries: Sequence[Entry], model: nn.Module) -> None:
    """Check that a file and a model have the same tensors.

    Raises:
        ValueError: If names or shapes differ, or if tensors of the model are on the meta device.
    """
    state = {uncompiled_name(key): value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    by_name = {entry.name: entry for entry in entries}
    if set(by_name) != set(state):
        raise ValueError(_difference(sorted(by_name), sorted(state)))
    for name, tensor in state.items():
        entry = by_name[name]
        shape = by_name[entry.shared_with].shape if entry.shared_with is not None else entry.shape
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name!r} has shape {shape} in the file and {tuple(tensor.shape)} in the model")
        if tensor.is_meta:
            raise ValueError(f"{name!r} of the model is on the meta device; call model.to_empty(device='cpu') first")


def _difference(in_file: list[str], in_model: list[str]) -> str:
    # The most frequent cause: a submodule was saved and the whole model is loaded, or the other way around.
    for longer, shorter, owner, other, verb in (
        (in_file, in_model, "file", "model", "save"),
        (in_model, in_file, "model", "file", "load into"),
    ):
        prefix = _common_prefix(longer, shorter)
        if prefix:
            submodule = prefix.removesuffix(".")
            return (
                f"the names of the {owner} are those of the {other} with the prefix {prefix!r}; {verb} the submodule "
                f"{submodule!r} instead"
            )
    missing, unexpected = sorted(set(in_model) - set(in_file)), sorted(set(in_file) - set(in_model))
    return f"its names do not match the model; missing: {_listed(missing)}; unexpected: {_listed(unexpected)}"


def _common_prefix(longer: list[str], shorter: list[str]) -> str:
    """Return the prefix by which all of the longer names differ from the shorter ones, or an empty string."""
    if not shorter or len(longer) != len(shorter):
        return ""
    candidate = next((name.removesuffix(shorter[0]) for name in longer if name.endswith(f".{shorter[0]}")), "")
    return candidate if candidate and sorted(candidate + name for name in shorter) == longer else ""


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(name[:200] for name in names[:_MAX_LISTED]) + more
