"""The sparsity report of a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_compress.reporting.printed import Printed
from lightning_compress.targets import Targets

# Printed wherever sparsity is reported without a runtime or a file format that makes use of it.
SPARSITY_NOTE = (
    "Sparsity alone makes neither the model faster nor its checkpoint smaller: dense kernels multiply by zeros and "
    "dense files store them."
)


@dataclass(frozen=True)
class Count:
    """Number of weights and zeros of a tensor or of a set of tensors.

    Attributes:
        name: Name of the parameter or of the set.
        num_weights: Number of elements.
        num_zeros: Number of elements that are exactly zero.
    """

    name: str
    num_weights: int
    num_zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]; 0.0 if there are no weights."""
        return self.num_zeros / self.num_weights if self.num_weights else 0.0


@dataclass(frozen=True)
class Report(Printed):
    """Sparsity of a model, per layer and in total; printed as a table.

    Attributes:
        layers: Weights of the layers that :class:`Targets` selects by default for pruning, frozen ones too; shared ones
            once.
        weights: Total of ``layers``.
        parameters: Total of all parameters, including biases and norms.
        rest: Total of the other matrices, such as embeddings.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    >>> _ = net[0].weight.data[0].zero_()
    >>> found = report(net)
    >>> isinstance(found, Report), [(layer.name, layer.sparsity) for layer in found.layers]
    (True, [('0.weight', 0.5), ('1.weight', 0.0)])
    """

    layers: tuple[Count, ...]
    weights: Count
    parameters: Count
    rest: Count = Count("other matrices", 0, 0)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title="Sparsity")
        table.add_column("layer", overflow="fold")
        for column in ("weights", "zeros", "sparsity"):
            table.add_column(column, justify="right")
        for count in self.layers:
            table.add_row(*_cells(count))
        table.add_section()
        for count in (self.weights, *([self.rest] if self.rest.num_weights else []), self.parameters):
            table.add_row(*_cells(count), style="bold")
        yield table
        if self.weights.num_zeros:
            yield SPARSITY_NOTE


def report(model: nn.Module, example_inputs: Any = None) -> Report:
    """Count the weights and zeros of a model or submodule.

    Args:
        model: Any module; it is not modified.
        example_inputs: Not used yet; reserved for measurements that run the model.

    Returns:
        Report with exact counts; printing it gives a table.

    >>> net = nn.Linear(4, 2)
    >>> _ = net.weight.data[0].zero_()
    >>> report(net).weights
    Count(name='all weights', num_weights=8, num_zeros=4)
    """
    counts = [(parameter, count_weights(name, parameter)) for name, parameter in model.named_parameters()]
    selected = _layer_weights(model)
    layers = [count for parameter, count in counts if id(parameter) in selected]
    rest = [count for parameter, count in counts if id(parameter) not in selected and parameter.ndim >= 2]
    parameters = _sum("all parameters", [count for _, count in counts])
    return Report(tuple(layers), _sum("all weights", layers), parameters, _sum("other matrices", rest))


def count_weights(name: str, parameter: Tensor) -> Count:
    """Count the elements and the zeros of a tensor.

    >>> count_weights("weight", Tensor([0.0, 1.0]))
    Count(name='weight', num_weights=2, num_zeros=1)
    """
    return Count(name, parameter.numel(), _num_zeros(parameter))


def _layer_weights(model: nn.Module) -> set[int]:
    """Return the ids of the weights of layers, as targets define them; parametrized ones in their original form."""
    targets = Targets().all_stored(model)
    parametrized = (t.module.parametrizations for t in targets if t.name.endswith(".parametrizations"))
    originals = (p for parametrizations in parametrized for p in parametrizations.parameters() if p.ndim >= 2)  # type: ignore[union-attr]
    return {id(target.parameter) for target in targets} | {id(parameter) for parameter in originals}


def _num_zeros(tensor: Tensor) -> int:
    # A sharded tensor counts only the elements of this rank.
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.numel() - int(full.count_nonzero())


def _sum(name: str, counts: list[Count]) -> Count:
    return Count(name, sum(c.num_weights for c in counts), sum(c.num_zeros for c in counts))


def _cells(count: Count) -> tuple[str, str, str, str]:
    return count.name, f"{count.num_weights:,}", f"{count.num_zeros:,}", f"{count.sparsity:.2%}"
