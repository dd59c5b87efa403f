"""Whether a file and a model have the same tensors, and what is different if not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_compress.packing.entry import Entry
from lightning_compress.packing.tensors import plain_name

_FEW = 3


def keys_of_model(model: nn.Module) -> dict[str, str]:
    """Keys of a model's state dict by the plain names of its tensors."""
    return {plain_name(key): key for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def check_match(entries: Sequence[Entry], model: nn.Module) -> None:
    """Compares names and shapes.

    Raises:
        ValueError: If they differ, or if the model has no memory for values yet.
    """
    state = {plain_name(key): value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    by_name = {entry.name: entry for entry in entries}
    if set(by_name) != set(state):
        raise ValueError(_difference(sorted(by_name), sorted(state)))
    for name, tensor in state.items():
        entry = by_name[name]
        shape = by_name[entry.same].shape if entry.same is not None else entry.shape
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name!r} has shape {shape} in the file and {tuple(tensor.shape)} in the model")
        if tensor.is_meta:
            raise ValueError(f"{name!r} of the model is on the meta device; call model.to_empty(device='cpu') first")


def _difference(in_file: list[str], in_model: list[str]) -> str:
    for longer, shorter, whose, others in (
        (in_file, in_model, "the file", "the model"),
        (in_model, in_file, "the model", "the file"),
    ):
        prefix = _prefix(longer, shorter)
        if prefix:
            part = prefix.removesuffix(".")
            what = "save" if whose == "the file" else "load into"
            return (
                f"all names of {whose} are those of {others} with {prefix!r} before them; {what} its part {part!r} "
                "instead of the whole"
            )
    missing, surplus = sorted(set(in_model) - set(in_file)), sorted(set(in_file) - set(in_model))
    return (
        f"its names are not the model's: it lacks {_listed(missing)}, and has {_listed(surplus)}, which the model lacks"
    )


def _prefix(longer: list[str], shorter: list[str]) -> str:
    """What all of the longer names have before the shorter ones, or nothing."""
    if not shorter or len(longer) != len(shorter):
        return ""
    candidate = next((name.removesuffix(shorter[0]) for name in longer if name.endswith(f".{shorter[0]}")), "")
    return candidate if candidate and sorted(candidate + name for name in shorter) == longer else ""


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(name[:200] for name in names[:_FEW]) + more
