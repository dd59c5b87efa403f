"""Share of a model's weights that a technique covers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_compress.targets import COMPILED, shorten

# More than this share out of reach is most likely not intended.
_LARGEST_REST = 0.1
LEFT_OUT = "left out"


@dataclass(frozen=True)
class Coverage:
    """Numbers of weights: matrices and convolution kernels, shared ones once.

    Attributes:
        num_covered: Weights that a technique covers.
        rest: Names and numbers of the others by the reason, the largest first.

    >>> coverage = Coverage(10, {"Embedding": {"emb.weight": 30}})
    >>> f"{coverage.share:.1%}", coverage.is_small
    ('25.0%', True)
    """

    num_covered: int
    rest: dict[str, dict[str, int]]

    @property
    def num_weights(self) -> int:
        """Number of all weights."""
        return self.num_covered + sum(sum(names.values()) for names in self.rest.values())

    @property
    def share(self) -> float:
        """Covered fraction of the weights, in [0, 1]."""
        return self.num_covered / max(self.num_weights, 1)

    @property
    def is_small(self) -> bool:
        """True if much of the rest was not left out by the user."""
        unintended = sum(sum(names.values()) for reason, names in self.rest.items() if reason != LEFT_OUT)
        return unintended > _LARGEST_REST * self.num_weights

    def describe_rest(self) -> str:
        """Return the reasons that hold most of the rest, each with its share and its largest weights."""
        parts = []
        for reason, names in list(self.rest.items())[:3]:
            largest = sorted(names, key=lambda name: -names[name])
            parts.append(f"{reason} ({sum(names.values()) / self.num_weights:.1%}: {shorten(largest, limit=2)})")
        return ", ".join(parts)


def measure_coverage(
    model: nn.Module, covered: Collection[int], module: str, is_left_out: Callable[[str, nn.Module], bool]
) -> Coverage:
    """Count the weights of a model that are covered, and the others by the reason.

    Args:
        model: The model.
        covered: Ids of the covered parameters.
        module: Name of the deployable submodule, outside of which nothing is counted.
        is_left_out: Returns True for the name and the module of a layer that the user has left out.
    """
    num_covered, rest = 0, dict[str, dict[str, int]]()
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter) or parameter.ndim < 2:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        layer = name.rpartition(".")[0].replace(COMPILED, "")
        if module and not f"{layer}.".startswith(f"{module}."):
            continue
        if id(parameter) in covered:
            num_covered += parameter.numel()
            continue
        reason = type(owner).__name__
        if is_left_out(layer, owner):
            reason = LEFT_OUT
        elif not parameter.requires_grad:
            reason = "frozen layers"
        rest.setdefault(reason, {})[name] = parameter.numel()
    return Coverage(num_covered, dict(sorted(rest.items(), key=lambda item: -sum(item[1].values()))))
