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
        layers: Weight matrices and convolution kernels (parameters with two or more dimensions), shared ones once.
        weights: Total of ``layers``.
        parameters: Total of all parameters, including biases and norms.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    >>> _ = net[0].weight.data[0].zero_()
    >>> found = report(net)
    >>> isinstance(found, Report), [(layer.name, layer.sparsity) for layer in found.layers]
    (True, [('0.weight', 0.5), ('1.weight', 0.0)])
    """

    layers: tuple[Count, ...]
    weights: Count
    parameters: Count

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
        for count in (self.weights, self.parameters):
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
    counts = [(p.ndim, Count(name, p.numel(), _num_zeros(p))) for name, p in model.named_parameters()]
    layers = [count for ndim, count in counts if ndim >= 2]
    return Report(tuple(layers), _sum("all weights", layers), _sum("all parameters", [count for _, count in counts]))


def _num_zeros(tensor: Tensor) -> int:
    # A sharded tensor counts only the elements of this rank.
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.numel() - int(full.count_nonzero())


def _sum(name: str, counts: list[Count]) -> Count:
    return Count(name, sum(c.num_weights for c in counts), sum(c.num_zeros for c in counts))


def _cells(count: Count) -> tuple[str, str, str, str]:
    return count.name, f"{count.num_weights:,}", f"{count.num_zeros:,}", f"{count.sparsity:.2%}"
