"""Second moments of the inputs and output gradients of layers, by which errors of weights change the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import call_model

_MAX_INPUTS = 8192  # of a layer, above which the matrix of its inputs would take too much memory
_MAX_PATCHES = 64  # of each image, drawn at random


class LayerStatistics:
    """Statistics of one layer, accumulated over batches.

    The loss changes by about the sum over rows ``o`` of ``gradients[o] * e[o] @ inputs @ e[o]`` for an error ``e`` of
    the weights (K-FAC; Martens and Grosse 2015, arXiv:1503.05671).

    Args:
        module: Layer. Only ``Linear`` and ungrouped ``Conv2d`` have correlations; others have the mean square of
            their inputs.
        weight: Its weight of shape ``(rows, ...)``.
    """

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self._module = module
        self._size = weight[0].numel()
        is_convolution = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        is_plain = is_convolution and not isinstance(getattr(module, "padding", None), str)
        self._has_correlations = (is_plain or isinstance(module, nn.Linear)) and self._size <= _MAX_INPUTS
        size = self._size if self._has_correlations else 1
        self._inputs = torch.zeros(size, size, dtype=torch.float64)
        self._gradients: Tensor = torch.zeros(len(weight), dtype=torch.float64)
        self._num_inputs = self._num_gradients = 0
        self._generator = torch.Generator().manual_seed(0)  # so that a resumed run draws the same

    @property
    def inputs(self) -> Tensor:
        """Mean outer product of the inputs, of shape ``(inputs, inputs)``."""
        mean = self._inputs / max(self._num_inputs, 1)
        return mean if self._has_correlations else mean.clamp_min(1e-12) * torch.eye(self._size, dtype=torch.float64)

    @property
    def gradients(self) -> Tensor:
        """Mean squared gradient of each row of outputs, summed over positions, of shape ``(rows,)``."""
        return self._gradients / max(self._num_gradients, 1)

    def observe(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Accumulate a call of the layer; a forward hook."""
        given = next((argument for argument in arguments if isinstance(argument, Tensor)), None)
        if given is not None and given.is_floating_point():
            self._observe_inputs(given.detach())
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._observe_gradients)

    def _observe_inputs(self, given: Tensor) -> None:
        if not self._has_correlations:
            self._inputs += given.double().square().mean().cpu()
            self._num_inputs += 1
            return
        rows = given.reshape(-1, self._size) if isinstance(self._module, nn.Linear) else self._patches(given)
        self._inputs += (rows.T @ rows).double().cpu()
        self._num_inputs += len(rows)

    def _patches(self, images: Tensor) -> Tensor:
        conv = self._module
        assert isinstance(conv, nn.Conv2d)
        images = images if images.ndim == 4 else images[None]
        assert not isinstance(conv.padding, str)
        patches = nn.functional.unfold(
            images, conv.kernel_size, dilation=conv.dilation, padding=conv.padding, stride=conv.stride
        )
        chosen = torch.randperm(patches.shape[2], generator=self._generator)[:_MAX_PATCHES]
        return patches[:, :, chosen.to(images.device)].transpose(1, 2).reshape(-1, self._size)

    def _observe_gradients(self, gradient: Tensor) -> None:
        # Channels are the last dimension of linear layers, and the second of all others.
        squares = gradient.detach().double().square()
        dim = squares.ndim - 1 if isinstance(self._module, nn.Linear) else min(1, squares.ndim - 1)
        if squares.shape[dim] == len(self._gradients):
            self._gradients += squares.movedim(dim, 0).flatten(1).sum(dim=1).cpu()
        else:
            self._gradients += squares.sum().cpu() / len(self._gradients)
        self._num_gradients += len(gradient)


def observe_layers(
    model: nn.Module, layers: Sequence[tuple[nn.Module, Tensor]], batches: Iterable[Any]
) -> list[LayerStatistics]:
    """Return the statistics of layers over batches of inputs.

    Args:
        model: Model in eval mode; its gradients are deleted.
        layers: Modules and their weights.
        batches: Inputs, as the model takes them.
    """
    statistics = [LayerStatistics(module, weight) for module, weight in layers]
    with watch_layers([module for module, _ in layers], statistics):
        for batch in batches:
            outputs = list(_floating(call_model(model, batch)))
            # Random signs: the expected square of the gradient is that of the outputs, without labels or a loss.
            loss = sum((output * torch.randn_like(output).sign()).sum() for output in outputs)
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
            model.zero_grad(set_to_none=True)
    return statistics


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floating(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _floating(item)


@contextmanager
def watch_layers(modules: Sequence[nn.Module], statistics: Sequence[LayerStatistics]) -> Iterator[None]:
    """Accumulate the calls of modules in the context."""
    with ExitStack() as stack:
        for module, own in zip(modules, statistics, strict=True):
            stack.callback(module.register_forward_hook(own.observe).remove)
        yield
