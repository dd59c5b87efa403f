"""Removal of indices from single tensors, and the attributes of modules that go with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.channels.groups import named_tensors
from lightning_compress.masked_norms import set_normalized_shape_


@dataclass(frozen=True)
class TensorCut:
    """Indices of a tensor that are kept.

    Attributes:
        shape: Shape before the removal.
        kept: Sorted indices that are kept, by dimension; dimensions without an entry keep all.
    """

    shape: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]

    @property
    def final_shape(self) -> tuple[int, ...]:
        """Shape after the removal."""
        return tuple(len(self.kept.get(dim, range(size))) for dim, size in enumerate(self.shape))

    def select(self, tensor: Tensor) -> Tensor:
        """Return the kept entries of a tensor of shape ``shape``, as a copy."""
        for dim, kept in self.kept.items():
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
        return tensor

    def compose(self, later: TensorCut) -> TensorCut:
        """Return the composition with a cut of the remaining tensor.

        >>> TensorCut((4,), {0: (0, 2, 3)}).compose(TensorCut((3,), {0: (1, 2)}))
        TensorCut(shape=(4,), kept={0: (2, 3)})
        """
        both = set(self.kept) & set(later.kept)
        composed = {dim: tuple(self.kept[dim][i] for i in later.kept[dim]) for dim in both}
        return TensorCut(self.shape, {**later.kept, **self.kept, **composed})


def cut_tensors_(model: nn.Module, cuts: Mapping[str, TensorCut]) -> None:
    """Replace parameters and buffers by their kept entries; a shared tensor is replaced under all of its names."""
    tensors = named_tensors(model)
    kept = {id(tensors[name]): cut.select(tensors[name].detach()) for name, cut in cuts.items()}
    for tensor in tensors.values():
        if id(tensor) in kept and isinstance(tensor, nn.Parameter) and not isinstance(kept[id(tensor)], nn.Parameter):
            kept[id(tensor)] = nn.Parameter(kept[id(tensor)], tensor.requires_grad)
    for name, tensor in tensors.items():
        if id(tensor) in kept:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, kept[id(tensor)])
            set_normalized_shape_(model.get_submodule(owner))


def get_attribute(model: nn.Module, path: str) -> int:
    """Return an attribute of a submodule by its dotted path, such as ``"conv1.out_channels"``."""
    owner, _, attribute = path.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def set_attribute_(model: nn.Module, path: str, value: int) -> None:
    """Set an attribute of a submodule by its dotted path, such as ``"conv1.out_channels"``."""
    owner, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def replace_blocks_(model: nn.Module, names: Iterable[str]) -> None:
    """Replace submodules by ``nn.Identity``, in the mode of those that they replace."""
    for name in names:
        model.set_submodule(name, nn.Identity().train(model.get_submodule(name).training))
