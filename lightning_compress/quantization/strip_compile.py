"""Removal of ``torch.compile`` wrappers."""

from __future__ import annotations

from torch import nn


def strip_compile(model: nn.Module) -> nn.Module:
    """Remove ``torch.compile`` from a model and its submodules in place; return the model itself.

    >>> import torch
    >>> strip_compile(nn.Sequential(torch.compile(nn.ReLU())))
    Sequential(
      (0): ReLU()
    )
    """
    model = getattr(model, "_orig_mod", model)
    model._compiled_call_impl = None
    # Not named_children(), which yields a shared module under its first name only.
    for name, child in list(model._modules.items()):
        if child is not None:
            setattr(model, name, strip_compile(child))
    return model
