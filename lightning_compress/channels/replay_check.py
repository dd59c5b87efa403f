"""Comparison of a removal log with the model that it is replayed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lightning_compress.channels.groups import named_tensors
from lightning_compress.channels.module_sizes import module_sizes
from lightning_compress.channels.tensor_cut import TensorCut


def tensor_mismatch(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe the first tensor that is missing or has another shape; empty if there is none."""
    for name, shape in shapes.items():
        if name not in tensors:
            return f"the model has no tensor {name!r}{_prefix_hint(name, tensors)}"
        if tuple(tensors[name].shape) != shape:
            return f"{name!r} has shape {tuple(tensors[name].shape)} instead of {shape}"
    return ""


def block_mismatch(model: nn.Module, blocks: Iterable[str]) -> str:
    """Describe the first block that is missing or has no layers; empty if there is none."""
    modules = dict(model.named_modules())
    for name in blocks:
        if name not in modules:
            return f"the model has no module {name!r}"
        if not any(True for _ in modules[name].parameters()):
            return f"{name!r} has no parameters, hence is no residual block"
    return ""


def attribute_mismatch(
    model: nn.Module, cuts: Mapping[str, TensorCut], attributes: Mapping[str, tuple[int, int]]
) -> str:
    """Describe the first attribute that is missing or does not fit the cuts; empty if there is none.

    Args:
        model: Model of the shapes before the removal.
        cuts: Cuts of its tensors.
        attributes: Values before and after, by path.
    """
    modules = dict(model.named_modules())
    for path, (before, _) in attributes.items():
        owner, _, attribute = path.rpartition(".")
        if owner not in modules or not hasattr(modules[owner], attribute):
            return f"the model has no attribute {path!r}"
        # Removal sets integers that a constructor has set: no methods, properties, flags or classes.
        if type(vars(modules[owner]).get(attribute)) is not int:
            return f"{path!r} is no integer attribute"
        if getattr(modules[owner], attribute) != before:
            return f"{path!r} is {getattr(modules[owner], attribute)} instead of {before}"
    sizes, cut_modules = _sizes_after(model, cuts)
    for path, size in sizes.items():
        owner, _, attribute = path.rpartition(".")
        before, after = attributes.get(path, (getattr(modules[owner], attribute),) * 2)
        if after != size and (owner in cut_modules or path in attributes):
            return f"{path!r} becomes {after} although its tensor has {size} channels then"
    return ""


def _sizes_after(model: nn.Module, cuts: Mapping[str, TensorCut]) -> tuple[dict[str, int], set[str]]:
    """Return the size attributes after the removal by path, and the names of the modules that lose channels."""
    tensors = named_tensors(model)
    # By identity: a shared weight is in the log under its first name only.
    shapes = {id(tensors[name]): cut.final_shape for name, cut in cuts.items()}
    sizes: dict[str, int] = {}
    cut_modules = set()
    for name, module in model.named_modules():
        shape = shapes.get(id(getattr(module, "weight", None)))
        if shape is not None:
            cut_modules.add(name)
        sizes |= {f"{name}.{attribute}".lstrip("."): size for attribute, size in module_sizes(module, shape).items()}
    return sizes, cut_modules


def _prefix_hint(name: str, present: Iterable[str]) -> str:
    """Return a hint if a tensor is present under the same name with a longer or shorter prefix."""
    longer = next((other.removesuffix(name) for other in present if other.endswith(f".{name}")), "")
    shorter = next((name.removesuffix(other) for other in present if name.endswith(f".{other}")), "")
    if longer:
        return f" but {longer + name!r}: pass its submodule {longer[:-1]!r}"
    if shorter:
        return f" but {name.removeprefix(shorter)!r}: pass the module that contains it as {shorter[:-1]!r}"
    return ""
