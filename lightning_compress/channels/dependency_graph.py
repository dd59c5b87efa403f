"""Dependencies between the channels of layers, from torch-pruning's dependency graph (Fang et al. 2023)."""

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


def dependency_groups(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[Member]]:
    """Return the modules of each dependency group, the root layer first.

    Groups that contain the output of the model are left out. A module is listed once for each path that leads to it,
    since two paths may connect different channels.

    Args:
        model: A copy of the model; its modes and ``requires_grad`` flags are changed.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
    """
    import torch_pruning as tp  # imported late: it imports timm if that is installed, which takes seconds

    # torch-pruning follows grad_fn, which frozen parameters do not have.
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    names: dict[Any, str] = {owned: name for name, owned in (*model.named_parameters(), *model.named_modules())}
    graph = tp.DependencyGraph()
    with torch.enable_grad(), warnings.catch_warnings(), _keep_all_paths():
        warnings.simplefilter("ignore")
        graph.build_dependency(model, (), forward_fn=lambda *_: _output_tensors(model(*args, **kwargs)), verbose=False)
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
def _keep_all_paths() -> Iterator[None]:
    """Keep torch-pruning from merging the paths to a module, which drops all but one channel at each position."""
    from torch_pruning.dependency.group import Group

    merge = Group.add_and_merge
    Group.add_and_merge = Group.add_dep
    try:
        yield
    finally:
        Group.add_and_merge = merge


def _output_tensors(output: Any) -> list[Tensor]:
    """Return the output tensors as results of an operation of their own.

    The graph recognizes an output only if its ``grad_fn`` differs from that of the last layer.
    """
    return [leaf * 1.0 for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
