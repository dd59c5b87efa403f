"""Discovery of the channel groups of a model, each verified by a trial removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, zip_longest
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_compress.channels.groups import ChannelGroup, first_names
from lightning_compress.channels.labeled_groups import LabeledGroups
from lightning_compress.channels.removal_check import RemovalCheck, make_removal_check

_DIFFERENT = "the model computes a different output after the removal of some of its channels"
_TOO_LARGE = "the model takes too many operations to be traced"
_UNDECIDED = "too many trial removals would be needed to verify its channels"


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, width: bool = False
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the channel groups of a model, and the layers that cannot lose channels.

    Groups follow from a run of the model, in which each tensor carries the indices of the parameters that its channels
    come from. They are verified: on a copy with random weights, some channels are set to zero and then removed; both
    copies must compute the same output and run in training mode. Groups that fail, for instance because of a literal
    shape in the model's code, are left out.

    Args:
        model: The model, which is only copied.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        width: Also find the channels that LayerNorms and RMSNorms normalize over, such as the embedding of a
            transformer.

    Returns:
        The groups in the order of the model's modules, and by layer name the reason why a layer keeps all of its
        channels.

    Raises:
        ValueError: If the model cannot be copied or run, or returns no tensors.
    """
    check = make_removal_check(model, args, dict(kwargs), width=width)
    layers = dict(_layers(check.model))
    if not check.trace.is_complete:
        return [], dict.fromkeys(layers, _TOO_LARGE)
    labeled = LabeledGroups(check.model, check.trace.labels, check.trace.splits, check.norms)
    candidates = [group for group in labeled.groups() if not _computed_weight(group)]
    removable = _removable(check, [group for group in candidates if group.num_channels > 1])
    made = {part.tensor for group in removable for part in group.output_slices}
    failed = {part.tensor: group for group in candidates for part in group.output_slices}
    reasons: dict[str, str] = {}
    for name, (tensor, dim) in layers.items():
        if tensor not in made and not labeled.is_output(tensor, dim):
            reasons[name] = labeled.reason(tensor, dim) or _reason(failed.get(tensor), check)
    return removable, {**reasons, **_computed_weights(check.model)}


def _removable(check: RemovalCheck, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Return the groups that pass the trials, some of them in another form; in the order of the groups."""
    found: dict[int, ChannelGroup] = {}
    for forms in zip_longest(*map(_forms, groups)):
        rest = {i: form for i, form in enumerate(forms) if form is not None and i not in found}
        passed = check.removable(list(rest.values()), list(found.values()))
        found |= {i: group for i, group in rest.items() if group in passed}
    return [found[i] for i in sorted(found)]


def _forms(group: ChannelGroup) -> Iterator[ChannelGroup]:
    """Yield the group as found, and in other forms that may be the right one."""
    # With parameters that shift activations among those to be zeroed: embeddings of positions, where there are norms.
    shifts = tuple(part for part in group.carried_slices if part.is_parameter)
    others = tuple(part for part in group.carried_slices if not part.is_parameter)
    shifted = replace(group, output_slices=group.output_slices + shifts, carried_slices=others)
    if shifts and group.norms:
        group, shifted = shifted, group
    yield group
    # Another attribute may have the same value by chance, such as the width of a head.
    names = sorted({path.rpartition(".")[2] for path in group.attributes_per_channel})
    kept = [*combinations(names, len(names) - 1), *combinations(names, 1)] if len(names) > 1 else []
    for some in dict.fromkeys([*kept, ()] if names else []):
        amounts = {p: n for p, n in group.attributes_per_channel.items() if p.rpartition(".")[2] in some}
        yield replace(group, attributes_per_channel=amounts)
    if shifts:
        yield shifted


def _layers(model: nn.Module) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the layers with the name of the weight and the dimension along which it produces channels."""
    names = first_names(model)
    for name, module in model.named_modules():
        weight = f"{name}.weight".lstrip(".")
        if isinstance(module, (_ConvNd, nn.Linear)) and weight in names:
            yield name, (names[weight], 1 if isinstance(module, _ConvTransposeNd) else 0)


def _reason(group: ChannelGroup | None, check: RemovalCheck) -> str:
    if group is None:
        return "no other layer reads its channels"
    return _UNDECIDED if check.is_exhausted else _DIFFERENT


def _computed_weight(group: ChannelGroup) -> bool:
    return any(".parametrizations." in f".{part.tensor}" for part in group.slices)


def _computed_weights(model: nn.Module) -> dict[str, str]:
    return {
        name: f"the weight of {name!r} is computed from other tensors"
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and "weight" not in module._parameters
    }
