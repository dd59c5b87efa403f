"""Selection of weight tensors by layer name and type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.layer_kinds import RECURRENT, TRANSPOSED_CONVOLUTIONS, find_norm_hook, is_conv1d

# torch.compile wraps a submodule as `_orig_mod`; users write layer names without it.
COMPILED = "_orig_mod."
_DEFAULT_TYPES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    *TRANSPOSED_CONVOLUTIONS,
    nn.MultiheadAttention,
)


@dataclass(frozen=True)
class Target:
    """One weight tensor of a model.

    Attributes:
        name: Name of the parameter in the state dict, such as ``"net.conv1.weight"``.
        layer: Name of the module that owns the parameter, such as ``"net.conv1"``.
        module: Module that owns the parameter.
        parameter: Weight tensor.
    """

    name: str
    layer: str
    module: nn.Module
    parameter: nn.Parameter


@dataclass(frozen=True)
class Targets:
    """Select weights by layer name and type; biases, norms and frozen parameters are never selected.

    Globs are matched against the names of the modules that own the tensors, relative to the LightningModule, as
    printed in its summary; the name of a container selects every layer inside it.

    Args:
        include: Globs of layer names to select.
        exclude: Globs of layer names to leave out; takes precedence over ``include``.
        types: Layer types to select, including their subclasses; by default linear layers, convolutions and attention,
            and for pruning of single weights and for clustering also recurrent layers and GPT-2's ``Conv1D``.
        module: Name of the submodule of the LightningModule that is deployed; layers outside it are not selected.
            ``""`` stands for the LightningModule itself.

    Raises:
        ValueError: If a string is given in place of a sequence of globs.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [target.name for target in Targets(exclude=("2",)).select(net)]
    ['0.weight']
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    types: tuple[type[nn.Module], ...] = _DEFAULT_TYPES
    module: str = ""

    def __post_init__(self) -> None:
        for field in ("include", "exclude", "types"):
            value = getattr(self, field)
            if isinstance(value, str):
                raise ValueError(f"Targets({field}={value!r}) takes a sequence: write {field}=({value!r},).")
            object.__setattr__(self, field, tuple(value))

    def select(self, model: nn.Module) -> list[Target]:
        """Return the selected weights of ``model`` in the order of its modules, each shared tensor once.

        Raises:
            ValueError: If a glob or ``module`` matches no layer, if no weight is selected, if all of them are frozen,
                or if the weight of a selected layer cannot be constrained: parametrized, normalized in a hook, lazy, or
                masked by ``torch.nn.utils.prune``.
        """
        return self._trainable(list(self._candidates(model, self._is_of_type)))

    def select_stored(self, model: nn.Module) -> list[Target]:
        """Return the selected weights, with those of layers that can be constrained only as stored (LSTM, ``Conv1D``).

        Raises:
            ValueError: As :meth:`select`.
        """
        return self._trainable(list(self._candidates(model, self._stores_weights)))

    def frozen(self, model: nn.Module) -> list[Target]:
        """Return the weights that :meth:`select_stored` would return as well if they were not frozen."""
        candidates = self._candidates(model, self._stores_weights)
        return _unique([t for t in candidates if self._is_selected(t.layer) and not t.parameter.requires_grad])

    def all_stored(self, model: nn.Module) -> list[Target]:
        """Return all weights that :meth:`select_stored` chooses from: frozen ones too, in spite of any glob."""
        return _unique(list(self._candidates(model, self._stores_weights)))

    def leaves_out(self, layer: str, module: nn.Module) -> bool:
        """Return True if globs, or types other than the default ones, leave out a layer."""
        return not self._is_selected(layer) or (self.types != _DEFAULT_TYPES and not self._is_of_type(module))

    def _trainable(self, candidates: list[Target]) -> list[Target]:
        names = sorted({target.layer for target in candidates})
        for glob in (*self.include, *self.exclude):
            if not any(matches(glob, name) for name in names):
                raise ValueError(
                    f"Targets: {glob!r} matches no layer{self._inside()}; the layers are {shorten(names) or 'none'}."
                )
        selected = [target for target in candidates if self._is_selected(target.layer)]
        if not selected:
            raise ValueError(f"Targets: every layer{self._inside()} is excluded; leave at least one.")
        trainable = [target for target in selected if target.parameter.requires_grad]
        if not trainable:
            frozen = shorten(sorted({target.layer for target in selected}))
            raise ValueError(
                f"Targets: all selected layers{self._inside()} are frozen ({frozen}): set requires_grad of those that "
                "are to be compressed, or merge adapters (LoRA) into them first."
            )
        for target in trainable:
            _check_can_be_constrained(target)
        return _unique(trainable)

    def _is_of_type(self, module: nn.Module) -> bool:
        return isinstance(module, self.types)

    def _stores_weights(self, module: nn.Module) -> bool:
        by_default = self.types == _DEFAULT_TYPES and (isinstance(module, RECURRENT) or is_conv1d(module))
        return self._is_of_type(module) or by_default

    def _is_selected(self, layer: str) -> bool:
        included = any(matches(glob, layer) for glob in self.include)
        return included and not any(matches(glob, layer) for glob in self.exclude)

    def _inside(self) -> str:
        return f" inside {self.module!r}" if self.module else ""

    def _candidates(self, model: nn.Module, is_kind: Callable[[nn.Module], bool]) -> Iterator[Target]:
        prefix = f"{self.module}." if self.module else ""
        if self.module and self.module not in dict(model.named_modules()):
            raise ValueError(f"Targets: the model has no module {self.module!r}.")
        for qualified_name, module in model.named_modules():
            layer = qualified_name.replace(COMPILED, "")
            if not is_kind(module) or not f"{layer}.".startswith(prefix):
                continue
            for attribute, parameter in module.named_parameters(recurse=False):
                if "weight" in attribute and _has_matrix(parameter):
                    yield Target(f"{qualified_name}.{attribute}".lstrip("."), layer, module, parameter)
            # A parametrized layer has no plain weight; it is listed so that the error can name it.
            if is_parametrized(module):
                trained = any(p.requires_grad for p in module.parametrizations.parameters())  # type: ignore[union-attr]
                listed = nn.Parameter(requires_grad=trained)
                yield Target(f"{qualified_name}.parametrizations", layer, module, listed)


def matches(glob: str, layer: str) -> bool:
    """Return True if a glob matches a layer name or the name of a container around the layer.

    >>> matches("encoder", "encoder.0.fc"), matches("*.fc", "encoder.0.fc"), matches("enc", "encoder")
    (True, True, False)
    """
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:n]), glob) for n in range(1, len(parts) + 1))


@contextmanager
def unfrozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Set ``requires_grad`` of frozen parameters inside the context, so that they can be selected as targets."""
    with requires_grad(parameters, True):
        yield


@contextmanager
def requires_grad(parameters: Iterable[nn.Parameter], value: bool) -> Iterator[None]:
    """Set ``requires_grad`` of parameters inside the context; afterwards it is as before."""
    changed = [parameter for parameter in parameters if parameter.requires_grad != value]
    for parameter in changed:
        parameter.requires_grad_(value)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not value)


def shorten(names: list[str], limit: int = 8) -> str:
    """Format names for a message, at most ``limit`` of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def _has_matrix(parameter: nn.Parameter) -> bool:
    # A layer without outputs, such as the head of a feature extractor, has a matrix without elements.
    return isinstance(parameter, UninitializedParameter) or (parameter.ndim >= 2 and parameter.numel() > 0)


def _check_can_be_constrained(target: Target) -> None:
    if is_parametrized(target.module):
        raise ValueError(
            f"{target.layer!r} is parametrized: call torch.nn.utils.parametrize.remove_parametrizations on it, "
            "or exclude it."
        )
    norm = find_norm_hook(target.module, target.name.rpartition(".")[2])
    if norm:
        raise ValueError(
            f"{target.layer!r} computes its weight in a hook of torch.nn.utils.{norm}: call "
            f"torch.nn.utils.remove_{norm} on it before the fit, or exclude it."
        )
    if isinstance(target.parameter, UninitializedParameter):
        raise ValueError(f"{target.layer!r} is lazy and has no weight yet: run the model once before the fit.")
    attribute, is_original, _ = target.name.rpartition(".")[2].rpartition("_orig")
    if is_original and f"{attribute}_mask" in target.module._buffers:
        raise ValueError(
            f"{target.layer!r} has a mask of torch.nn.utils.prune: call torch.nn.utils.prune.remove on it first."
        )
    if is_original:
        raise ValueError(
            f"{target.layer!r} computes its weight in a hook of torch.nn.utils.spectral_norm: call "
            "torch.nn.utils.remove_spectral_norm on it, or exclude it."
        )


def _unique(targets: list[Target]) -> list[Target]:
    unique: dict[int, Target] = {}
    for target in targets:
        unique.setdefault(id(target.parameter), target)
    return list(unique.values())
