"""Common names and argument order of torch functions, their methods and their in-place forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Functions with a weight, and the dimension of its output channels: transposed convolutions store (in, out, ...).
CHANNEL_AXIS = {
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
    "linear": 0,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
}


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


def name_of_call(function: Any, args: Any, kwargs: Any) -> str:
    """Return the canonical name of the function of a call.

    Padding with zeros, or with values of the tensor, only moves values; with another constant it has a name of its own,
    and so have powers with an exponent below 1, which are roots and inverses, and sums with a factor.

    >>> name_of_call(torch.nn.functional.pad, (torch.ones(2), (1, 1)), {"value": 5.0})
    'constant_pad'
    """
    name = canonical(function)
    if name == "pow":
        exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
        return "root" if isinstance(exponent, (int, float)) and exponent < 1 else name
    if name in ("add", "sub") and kwargs.get("alpha", 1) != 1:
        return f"scaled_{name}"
    if name == "pad" and (args[3] if len(args) > 3 else kwargs.get("value")):
        return "constant_pad"
    return name


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
    """Return True if an argument is a floating-point tensor, or a list that begins with one.

    >>> is_floating(("ij,jk->ik", torch.ones(2, 2), torch.ones(2, 2))), is_floating((torch.ones(2).long(), 1))
    (True, False)
    """
    # Batch norm counts its batches with an int64 addition, in training only: it must not shift the counters.
    for argument in args:
        first = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(first, Tensor) and first.is_floating_point():
            return True
    return False
