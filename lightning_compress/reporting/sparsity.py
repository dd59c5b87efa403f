"""Weights and zeros, layer by layer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_compress.reporting.printed import Printed

# Said wherever zeros are reported without what would make use of them.
ZEROS_ALONE = (
    "Zeros alone make neither the model faster nor its checkpoint smaller: dense kernels multiply by them and dense "
    "files store them."
)


@dataclass(frozen=True)
class Count:
    """Zeros among some weights.

    Attributes:
        name: What they are.
        num_weights: How many there are.
        num_zeros: How many are exactly zero.
    """

    name: str
    num_weights: int
    num_zeros: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in [0, 1]."""
        return self.num_zeros / self.num_weights if self.num_weights else 0.0


@dataclass(frozen=True)
class Report(Printed):
    """What a model is; prints as a table.

    Attributes:
        layers: Weight matrices and kernels (tensors of two or more dimensions), shared ones once.
        weights: All of those together.
        parameters: All parameters, biases and norms included.
    """

    layers: tuple[Count, ...]
    weights: Count
    parameters: Count

    def to_json(self) -> str:
        """The same as JSON, for programs."""
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
            yield ZEROS_ALONE


def report(model: nn.Module, example_inputs: Any = None) -> Report:
    """Counts the weights and zeros of a model, or of a part of one, as they are now.

    Args:
        model: Any module; it is left as it was.
        example_inputs: Reserved for what has to run the model.

    >>> net = nn.Linear(4, 2)
    >>> _ = net.weight.data[0].zero_()
    >>> report(net).weights
    Count(name='all weights', num_weights=8, num_zeros=4)
    """
    counts = [(p.ndim, Count(name, p.numel(), _num_zeros(p))) for name, p in model.named_parameters()]
    layers = [count for ndim, count in counts if ndim >= 2]
    return Report(tuple(layers), _sum("all weights", layers), _sum("all parameters", [count for _, count in counts]))


def _num_zeros(tensor: Tensor) -> int:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.numel() - int(whole.count_nonzero())


def _sum(name: str, counts: list[Count]) -> Count:
    return Count(name, sum(c.num_weights for c in counts), sum(c.num_zeros for c in counts))


def _cells(count: Count) -> tuple[str, str, str, str]:
    return count.name, f"{count.num_weights:,}", f"{count.num_zeros:,}", f"{count.sparsity:.2%}"
