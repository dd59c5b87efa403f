"""Log of the channels removed from a model: plain data that can be replayed on a fresh model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_compress.atomic_files import atomic_write
from lightning_compress.channels.groups import named_tensors
from lightning_compress.channels.log_format import format_log, parse_log
from lightning_compress.channels.replay_check import attribute_mismatch, block_mismatch, tensor_mismatch
from lightning_compress.channels.tensor_cut import TensorCut, cut_tensors_, replace_blocks_, set_attribute_
from lightning_compress.masked_norms import detach_complete_


@dataclass(frozen=True)
class RemovalLog:
    """Channels that :func:`lightning_compress.shrink` kept, as tuples, dicts, numbers and strings.

    Attributes:
        cuts: Kept indices of each tensor that lost channels, by the tensor's name in the state dict.
        attributes: Integer attributes of modules before and after, such as ``{"conv1.out_channels": (64, 32)}``.
        transposed: Names of weights with the output channels along the second dimension.
        blocks: Names of residual blocks that ``nn.Identity`` replaced.

    >>> import torch
    >>> import lightning_compress as lc
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> for tensor in net[0].parameters():
    ...     _ = nn.init.zeros_(tensor[:3])
    >>> small, log = lc.shrink(net, torch.randn(1, 3, 5, 5))
    >>> log.layers
    {'0': (3,)}
    >>> fresh = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    >>> log.replay_(fresh)
    >>> fresh.load_state_dict(small.state_dict())
    <All keys matched successfully>
    """

    cuts: Mapping[str, TensorCut] = field(default_factory=dict)
    attributes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    # Weak: the log must not keep models alive, and parameters compare by identity.
    _names: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "transposed", tuple(self.transposed))
        object.__setattr__(self, "blocks", tuple(self.blocks))

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Kept output channels by layer name, for layers that lost output channels."""
        weights = {name: cut for name, cut in self.cuts.items() if name.endswith("weight")}
        kept = {name: cut.kept.get(1 if name in self.transposed else 0) for name, cut in weights.items()}
        return {name.rpartition(".")[0]: channels for name, channels in kept.items() if channels is not None}

    def replay_(self, model: nn.Module) -> None:
        """Remove the same channels from a fresh model, in place; a model of the final shapes is left unchanged.

        Parameters are replaced: create optimizers afterwards.

        Args:
            model: Model of the same class and arguments as the one that was shrunk.

        Raises:
            ValueError: If tensors or attributes of the model have other names, shapes or values; the model is then
                unchanged.
        """
        tensors = named_tensors(model)
        mismatch = tensor_mismatch(tensors, {name: cut.shape for name, cut in self.cuts.items()})
        mismatch = mismatch or block_mismatch(model, self.blocks)
        self.remember(model.named_parameters())
        if mismatch and self._is_done(model):
            return
        mismatch = mismatch or attribute_mismatch(model, self.cuts, self.attributes)
        if mismatch:
            raise ValueError(f"The removal log belongs to another model: {mismatch}.")
        cut_tensors_(model, self.cuts)
        for path, (_, after) in self.attributes.items():
            set_attribute_(model, path, after)
        detach_complete_(model)
        replace_blocks_(model, self.blocks)
        self.remember(model.named_parameters())

    def _is_done(self, model: nn.Module) -> bool:
        """Return True for a model of the final shapes, without the blocks."""
        inside = tuple(f"{name}." for name in self.blocks)
        final = {name: cut.final_shape for name, cut in self.cuts.items() if not name.startswith(inside)}
        modules = dict(model.named_modules())
        replaced = all(isinstance(modules.get(name), nn.Identity) for name in self.blocks)
        return replaced and not tensor_mismatch(named_tensors(model), final)

    def then(self, later: RemovalLog) -> RemovalLog:
        """Return one log for this removal and a later one from the model that this one left."""
        composed = {name: self.cuts[name].compose(later.cuts[name]) for name in set(self.cuts) & set(later.cuts)}
        attributes = {**self.attributes}
        for path, (before, after) in later.attributes.items():
            attributes[path] = (self.attributes.get(path, (before, after))[0], after)
        names = WeakIdKeyDictionary()
        for log in (self, later):
            names.update(log._names)
        transposed = tuple(dict.fromkeys(self.transposed + later.transposed))
        blocks = tuple(dict.fromkeys(self.blocks + later.blocks))
        return RemovalLog({**later.cuts, **self.cuts, **composed}, attributes, transposed, blocks, names)

    def save(self, path: str | Path) -> None:
        """Write the log to a JSON file, atomically."""
        with atomic_write(path) as partial:
            partial.write_text(format_log(self.cuts, self.attributes, self.transposed, self.blocks))

    @staticmethod
    def load(path: str | Path) -> RemovalLog:
        """Read a file written by :meth:`save`.

        Raises:
            ValueError: If the file is not a removal log, of this version or an earlier one, or is damaged.
        """
        try:
            return RemovalLog(*parse_log(Path(path).read_text()))
        except ValueError as error:
            raise ValueError(f"{path} is not a removal log ({error}): write one with RemovalLog.save.") from error

    def remember(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Record the names of parameters for as long as the parameters exist."""
        for name, parameter in parameters:
            self._names[parameter] = name

    def name_of(self, parameter: Tensor) -> str | None:
        """Return the name of a parameter of a model before or after the removal, None if it is unknown."""
        return self._names.get(parameter)

    def __reduce__(self) -> Any:
        # Weak references cannot be pickled, and names of parameters are only valid within a process.
        return RemovalLog, (self.cuts, self.attributes, self.transposed, self.blocks)
