"""Selection of weight tensors by layer name and type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

# torch.compile wraps a submodule as `_orig_mod`; users write layer names without it.
COMPILED = "_orig_mod."
# Their weights have the input channels first.
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
        types: Layer types to select, including their subclasses.
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
    types: tuple[type[nn.Module], ...] = (
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        *TRANSPOSED_CONVOLUTIONS,
        nn.MultiheadAttention,
    )
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
            ValueError: If a glob or ``module`` matches no layer, if no weight is selected, or if the weight of a
                selected layer cannot be constrained: parametrized, lazy, or masked by ``torch.nn.utils.prune``.
        """
        candidates = list(self._candidates(model))
        names = sorted({target.layer for target in candidates})
        for glob in (*self.include, *self.exclude):
            if not any(matches(glob, name) for name in names):
                raise ValueError(
                    f"Targets: {glob!r} matches no layer{self._inside()}; the layers are {shorten(names) or 'none'}."
                )
        selected = [target for target in candidates if self._is_selected(target.layer)]
        if not selected:
            raise ValueError(f"Targets: every layer{self._inside()} is excluded; leave at least one.")
        for target in selected:
            _check_can_be_constrained(target)
        return _unique(selected)

    def _is_selected(self, layer: str) -> bool:
        included = any(matches(glob, layer) for glob in self.include)
        return included and not any(matches(glob, layer) for glob in self.exclude)

    def _inside(self) -> str:
        return f" inside {self.module!r}" if self.module else ""

    def _candidates(self, model: nn.Module) -> Iterator[Target]:
        prefix = f"{self.module}." if self.module else ""
        if self.module and self.module not in dict(model.named_modules()):
            raise ValueError(f"Targets: the model has no module {self.module!r}.")
        for qualified_name, module in model.named_modules():
            layer = qualified_name.replace(COMPILED, "")
            if not isinstance(module, self.types) or not f"{layer}.".startswith(prefix):
                continue
            for attribute, parameter in module.named_parameters(recurse=False):
                if "weight" in attribute and parameter.requires_grad and _has_matrix(parameter):
                    yield Target(f"{qualified_name}.{attribute}".lstrip("."), layer, module, parameter)
            # A parametrized layer has no plain weight; it is listed so that the error can name it.
            if is_parametrized(module):
                yield Target(f"{qualified_name}.parametrizations", layer, module, nn.Parameter())


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
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


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
