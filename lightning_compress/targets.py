"""Which tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

# torch.compile wraps a submodule as `_orig_mod`; users write the names they see without it.
COMPILED = "_orig_mod."


@dataclass(frozen=True)
class Target:
    """One weight tensor of a model.

    Attributes:
        name: Name of the parameter, such as ``"net.conv1.weight"``, as the state dict spells it.
        layer: Name of the module that owns it, such as ``"net.conv1"``.
        module: That module.
        parameter: The tensor.
    """

    name: str
    layer: str
    module: nn.Module
    parameter: nn.Parameter


@dataclass(frozen=True)
class Targets:
    """Selects the weights of layers by name and type; biases, norms and frozen parameters are never selected.

    Globs are matched against the names of the modules that own the tensors, relative to the LightningModule, as its
    summary prints them; the name of a container selects all below it.

    Args:
        include: Globs of the layers to take.
        exclude: Globs of the layers to leave out.
        types: Layer types that are taken, subclasses included.
        module: Name of the deployable part of the LightningModule (``""``: all of it); nothing outside is taken.

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
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
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
        """The selected weights of ``model`` in the order of its modules, each tensor once.

        Raises:
            ValueError: If a glob or ``module`` matches nothing, if nothing is selected, or if a selected layer holds
                its weight in a form that cannot be constrained (parametrized, lazy, or masked by torch's own pruning).
        """
        candidates = list(self._candidates(model))
        names = sorted({target.layer for target in candidates})
        for glob in (*self.include, *self.exclude):
            if not any(matches(glob, name) for name in names):
                raise ValueError(
                    f"Targets: {glob!r} matches no layer{self._inside()}; the layers are {shorten(names) or 'none'}."
                )
        chosen = [t for t in candidates if self._takes(t.layer)]
        if not chosen:
            raise ValueError(f"Targets: every layer{self._inside()} is excluded; leave at least one.")
        for target in chosen:
            _check_form(target)
        return _unique(chosen)

    def _takes(self, layer: str) -> bool:
        included = any(matches(glob, layer) for glob in self.include)
        return included and not any(matches(glob, layer) for glob in self.exclude)

    def _inside(self) -> str:
        return f" inside {self.module!r}" if self.module else ""

    def _candidates(self, model: nn.Module) -> Iterator[Target]:
        prefix = f"{self.module}." if self.module else ""
        if self.module and self.module not in dict(model.named_modules()):
            raise ValueError(f"Targets: the model has no module {self.module!r}.")
        for spelled, module in model.named_modules():
            layer = spelled.replace(COMPILED, "")
            if not isinstance(module, self.types) or not f"{layer}.".startswith(prefix):
                continue
            for attribute, parameter in module.named_parameters(recurse=False):
                if "weight" in attribute and parameter.requires_grad and _has_matrix(parameter):
                    yield Target(f"{spelled}.{attribute}".lstrip("."), layer, module, parameter)
            if is_parametrized(module):
                yield Target(f"{spelled}.parametrizations", layer, module, nn.Parameter())


def matches(glob: str, layer: str) -> bool:
    """Whether a glob names a layer or a container above it.

    >>> matches("encoder", "encoder.0.fc"), matches("*.fc", "encoder.0.fc"), matches("enc", "encoder")
    (True, True, False)
    """
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:n]), glob) for n in range(1, len(parts) + 1))


def shorten(names: list[str], limit: int = 8) -> str:
    """Names for a message, the first few of them."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


def _has_matrix(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, UninitializedParameter) or parameter.ndim >= 2


def _check_form(target: Target) -> None:
    if is_parametrized(target.module):
        raise ValueError(
            f"{target.layer!r} is parametrized: call torch.nn.utils.parametrize.remove_parametrizations on it, "
            "or exclude it."
        )
    if isinstance(target.parameter, UninitializedParameter):
        raise ValueError(f"{target.layer!r} is lazy and has no weight yet: run the model once before the fit.")
    if target.name.endswith("_orig"):
        raise ValueError(
            f"{target.layer!r} carries a mask of torch.nn.utils.prune: call torch.nn.utils.prune.remove on it first."
        )


def _unique(targets: list[Target]) -> list[Target]:
    seen: dict[int, Target] = {}
    for target in targets:
        seen.setdefault(id(target.parameter), target)
    return list(seen.values())
