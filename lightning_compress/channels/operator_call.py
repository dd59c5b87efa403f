"""A call of an ATen operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, eq=False)
class SplitDim:
    """A dimension that an operator split into parts of equal sizes.

    Attributes:
        module: Name of the module that ran.
        labels: Labels along the dimension, in the shape of its parts.
    """

    module: str
    labels: Tensor


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """A call of an ATen operator.

    Attributes:
        func: The operator.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Tensors that it returned.
        module: Name of the innermost module that ran.
        module_names: Names of all modules.
        is_narrowed: True in a norm over channels that can be narrowed with them.
        splits: Dimensions that it splits, filled in by its rule.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    module: str
    module_names: Mapping[nn.Module, str]
    is_narrowed: bool = False
    splits: list[SplitDim] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the operator without its overload and the mark of operators in place."""
        namespace, _, name = self.func._schema.name.partition("::")
        name = name if name.endswith("__") else name.removesuffix("_")
        return name if namespace == "aten" else f"{namespace}::{name}"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Values of the arguments by name, defaults included."""
        schema = self.func._schema.arguments
        values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        positional = [argument.name for argument in schema if not argument.kwarg_only]
        return {**values, **dict(zip(positional, self.args, strict=False)), **self.kwargs}

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Tensors among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    @property
    def num_products(self) -> int:
        """Number of multiply-accumulates."""
        if self.name == "convolution":
            dim = 1 if self.arguments["transposed"] else 0
            return self.outputs[0].numel() * self.args[1].numel() // max(1, self.args[1].shape[dim])
        if self.name in ("mm", "bmm", "addmm", "baddbmm"):
            return self.outputs[0].numel() * self.tensors[-1].shape[-2]
        return 0

    @property
    def place(self) -> str:
        """The module that ran, for a reason."""
        module = next((module for module, name in self.module_names.items() if name == self.module), None)
        leaf = module is not None and not any(True for _ in module.children())
        return f"{self.module!r}, and {type(module).__name__}" if leaf else f"{self.module!r}, and its {self.name}"
