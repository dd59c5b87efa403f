"""What was removed from a network, as plain data that can be replayed on a fresh one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_compress.atomic_files import written
from lightning_compress.channels.groups import named_tensors

_VERSION = 1


@dataclass(frozen=True)
class TensorCut:
    """What is left of a tensor.

    Attributes:
        shape: Its shape before.
        kept: The positions that are kept, by dimension; a dimension that is not listed stays whole.
    """

    shape: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]

    @property
    def left(self) -> tuple[int, ...]:
        """Its shape afterwards."""
        return tuple(len(self.kept.get(dim, range(size))) for dim, size in enumerate(self.shape))

    def select(self, tensor: Tensor) -> Tensor:
        """The kept part of a tensor of the shape before, in memory of its own."""
        for dim, kept in self.kept.items():
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
        return tensor

    def then(self, later: TensorCut) -> TensorCut:
        """Both cuts in one."""
        both = set(self.kept) & set(later.kept)
        twice = {dim: tuple(self.kept[dim][i] for i in later.kept[dim]) for dim in both}
        return TensorCut(self.shape, {**later.kept, **self.kept, **twice})


@dataclass(frozen=True)
class RemovalLog:
    """Which channels of a network were kept: tuples, dicts, numbers and strings, and no tensors.

    Attributes:
        cuts: What is left of each tensor that lost something, by the name in the state dict.
        attributes: Integers of modules before and after, such as ``{"conv1.out_channels": (64, 32)}``.
        transposed: Names of weights whose output channels lie along their second dimension.
    """

    cuts: Mapping[str, TensorCut] = field(default_factory=dict)
    attributes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    _names: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "transposed", tuple(self.transposed))

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """The output channels that each layer kept, for layers that lost some."""
        weights = {name: cut for name, cut in self.cuts.items() if name.endswith("weight")}
        made = {name: cut.kept.get(1 if name in self.transposed else 0) for name, cut in weights.items()}
        return {name.rpartition(".")[0]: kept for name, kept in made.items() if kept is not None}

    def replay_(self, model: nn.Module) -> None:
        """Removes the same from a fresh network of the original shape; one that has the final shape is left alone.

        Parameters are replaced: make optimizers afterwards.

        Args:
            model: The network, of the class and arguments of the one that was shrunk.

        Raises:
            ValueError: If it is another network, before anything is changed.
        """
        tensors = named_tensors(model)
        before = self._mismatch(tensors, {name: cut.shape for name, cut in self.cuts.items()})
        self.remember(model.named_parameters())
        if before and not self._mismatch(tensors, {name: cut.left for name, cut in self.cuts.items()}):
            return
        if before:
            raise ValueError(f"The removal log is of another network: {before}.")
        cut_(model, self.cuts)
        for path, (_, after) in self.attributes.items():
            set_(model, path, after)
        self.remember(model.named_parameters())

    def then(self, later: RemovalLog) -> RemovalLog:
        """This removal and a later one, of what this one left, as one from the original shape."""
        twice = {name: self.cuts[name].then(later.cuts[name]) for name in set(self.cuts) & set(later.cuts)}
        attributes = {**self.attributes}
        for path, (before, after) in later.attributes.items():
            attributes[path] = (self.attributes.get(path, (before, after))[0], after)
        names = WeakIdKeyDictionary()
        for log in (self, later):
            names.update(log._names)
        transposed = tuple(dict.fromkeys(self.transposed + later.transposed))
        return RemovalLog({**later.cuts, **self.cuts, **twice}, attributes, transposed, names)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all."""
        cuts = {name: {"shape": cut.shape, "kept": cut.kept} for name, cut in self.cuts.items()}
        with written(path) as partial:
            data = {"tensors": cuts, "attributes": self.attributes, "transposed": self.transposed}
            partial.write_text(json.dumps({"version": _VERSION, **data}))

    @staticmethod
    def load(path: str | Path) -> RemovalLog:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: If it is another file.
        """
        try:
            return _parse(json.loads(Path(path).read_text()))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is no removal log of this version: write one with RemovalLog.save.") from error

    def remember(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Notes the names of a network's parameters, for as long as they live."""
        for name, parameter in parameters:
            self._names[parameter] = name

    def name_of(self, parameter: Tensor) -> str | None:
        """The name of a parameter of a network that was shrunk by this log, or is the result."""
        return self._names.get(parameter)

    def _mismatch(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
        """The first tensor that is not there, or not of its shape."""
        for name, shape in shapes.items():
            if name not in tensors:
                return f"it has no {name!r}{_prefix(name, tensors)}"
            if tuple(tensors[name].shape) != shape:
                return f"{name!r} has shape {tuple(tensors[name].shape)} and had {shape}"
        return ""

    def __reduce__(self) -> Any:
        return RemovalLog, (self.cuts, self.attributes, self.transposed)


def cut_(model: nn.Module, cuts: Mapping[str, TensorCut]) -> None:
    """Replaces tensors by what is left of them, a shared one everywhere alike."""
    tensors = named_tensors(model)
    small = {id(tensors[name]): cut.select(tensors[name].detach()) for name, cut in cuts.items()}
    small = {
        key: nn.Parameter(small[key], tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small[key]
        for key, tensor in ((id(tensor), tensor) for tensor in tensors.values())
        if key in small
    }
    for name, tensor in tensors.items():
        if id(tensor) in small:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, small[id(tensor)])


def get(model: nn.Module, path: str) -> int:
    """An attribute of a module by its dotted path."""
    owner, _, attribute = path.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def set_(model: nn.Module, path: str, value: int) -> None:
    """Sets an attribute of a module by its dotted path."""
    owner, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def _prefix(name: str, there: Iterable[str]) -> str:
    """A hint for a name that is there with something before it, or the other way round."""
    longer = next((other.removesuffix(name) for other in there if other.endswith(f".{name}")), "")
    shorter = next((name.removesuffix(other) for other in there if name.endswith(f".{other}")), "")
    if longer:
        return f" but {longer + name!r}: give it its part {longer[:-1]!r}"
    return f" but {name.removeprefix(shorter)!r}: give it the module that has it as {shorter[:-1]!r}" if shorter else ""


def _parse(data: Any) -> RemovalLog:
    if data["version"] != _VERSION:
        raise ValueError(data["version"])
    cuts = {
        name: TensorCut(tuple(cut["shape"]), {int(dim): tuple(kept) for dim, kept in cut["kept"].items()})
        for name, cut in data["tensors"].items()
    }
    for cut in cuts.values():
        for dim, kept in cut.kept.items():
            if not kept or list(kept) != sorted(set(kept) & set(range(cut.shape[dim]))):
                raise ValueError(kept)
    attributes = {path: (before, after) for path, (before, after) in data["attributes"].items()}
    return RemovalLog(cuts, attributes, data.get("transposed", ()))
