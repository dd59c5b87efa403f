"""Common names and argument order of torch functions, their methods and their in-place forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


# Dynamo of torch 2.14 cannot trace the string operations on the name.
@torch.compiler.assume_constant_result
def canonical(function: Any) -> str:
    """Return the common name of a function, its method and its in-place form.

    >>> canonical(torch.Tensor.relu_), canonical(torch.nn.functional.relu), canonical(torch.Tensor.__iadd__)
    ('relu', 'relu', 'add')
    """
    name = getattr(function, "__name__", "").strip("_")
    if name == "get":
        return _PROPERTIES.get(getattr(getattr(function, "__self__", None), "__name__", ""), name)
    return _SAME.get(name, name)


_SAME = {"iadd": "add", "imul": "mul", "concat": "cat", "concatenate": "cat", "rmul": "mul", "radd": "add"}
_PROPERTIES = {"T": "transpose", "mT": "transpose", "H": "transpose", "mH": "transpose", "data": "detach"}


def positional(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Move the tensor operands of a call from keyword to positional arguments.

    >>> positional((), {"other": 2, "input": 1, "alpha": 3})
    ((1, 2), {'alpha': 3})
    """
    for index, names in enumerate((("input", "tensors", "query"), ("other",))):
        for name in names:
            if name in kwargs and len(args) == index:
                args = (*args, kwargs[name])
                kwargs = {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def is_floating(args: Any) -> bool:
    """Return True if the first argument is a floating-point tensor, or a list of them."""
    first = args[0] if args else None
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    # Batch norm counts its batches with an int64 addition, in training only: it must not shift the counters.
    return isinstance(first, Tensor) and first.is_floating_point()
