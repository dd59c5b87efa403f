"""Which channels depend on each other, as torch-pruning's dependency graph shows it (Fang et al. 2023)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from lightning_compress.channels.members import Member


def coupled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[Member]]:
    """Modules whose channels go together, the root layer first; layers that make the network's output are left out.

    A module is listed once for each way that leads to it, since two ways may tie different channels together.

    Args:
        model: A copy of the network; its modes and what requires a gradient are changed.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.
    """
    import torch_pruning as tp  # here, since it imports timm where there is one

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    names: dict[Any, str] = {owned: name for name, owned in (*model.named_parameters(), *model.named_modules())}
    graph = tp.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings(), _every_way():
        warnings.simplefilter("ignore")
        graph.build_dependency(model, (), forward_fn=lambda *_: _tensors(model(*args, **kwargs)), verbose=False)
        groups = list(graph.get_all_groups(root_module_types=[_ConvNd, nn.Linear]))
    return [
        [
            Member(
                names.get(item.dep.target.module, ""),
                item.dep.target.module,
                graph.is_out_channel_pruning_fn(item.dep.handler),
                torch.tensor(item.idxs),
                torch.tensor(item.root_idxs),
            )
            for item in group
            if item.dep.target.module in names or isinstance(item.dep.target.module, nn.Parameter)
        ]
        for group in groups
        if not any(item.dep.target.type == tp.ops.OPTYPE.OUTPUT for item in group)
    ]


@contextlib.contextmanager
def _every_way() -> Iterator[None]:
    """Keeps torch-pruning from merging the ways to a module, where it drops all but one channel for each position."""
    from torch_pruning.dependency.group import Group

    merge = Group.add_and_merge
    Group.add_and_merge = Group.add_dep
    try:
        yield
    finally:
        Group.add_and_merge = merge


def _tensors(output: Any) -> list[Tensor]:
    """The outputs, as results of an operation of their own: the graph tells only such from the layers before them."""
    return [leaf * 1.0 for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
