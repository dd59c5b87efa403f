"""Propagation of channel labels through a run of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_compress.channels.activation_labels import ActivationLabels
from lightning_compress.channels.label_rules import RULES, opaque, pointwise
from lightning_compress.channels.operator_call import OperatorCall, SplitDim

# Work that a trace may take, counted so that the result does not depend on the machine: about 20 s and 1 GB.
MAX_CALLS = 200_000
MAX_LABELS = 2**26


class TooLargeError(Exception):
    """A model takes more operations or labels than a trace may."""


class LabelTracing(TorchDispatchMode):
    """A mode that computes the labels of the result of each operator.

    Args:
        activations: Labels of parameters and buffers, to which those of activations are added.
        modules: Modules of the model by name.
        norms: Names of the norms that can be narrowed.
    """

    def __init__(
        self, activations: ActivationLabels, modules: Mapping[str, nn.Module], norms: Collection[str] = ()
    ) -> None:
        super().__init__()
        self._norms = norms
        self.splits: list[SplitDim] = []
        self._activations = activations
        self._names = {module: name for name, module in modules.items()}
        self._running: list[str] = [""]
        self._num_calls = 0
        self.num_products = 0

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Labels are computed first: operations in place change the shapes and strides of their inputs.
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        module = self._running[-1]
        call = OperatorCall(func, args, kwargs or {}, outputs, module, self._names, module in self._norms)
        self._num_calls += 1
        self.num_products += call.num_products
        if self._num_calls > MAX_CALLS:
            raise TooLargeError
        self._propagate(call)
        return result

    @contextmanager
    def names_of_modules(self) -> Iterator[None]:
        """Keep track of the module that runs, for the reasons."""
        handles = [module.register_forward_pre_hook(self._enter, prepend=True) for module in self._names]
        handles += [module.register_forward_hook(self._leave, always_call=True) for module in self._names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _propagate(self, call: OperatorCall) -> None:
        inputs = call.tensors
        if not call.outputs or not all(output.layout == torch.strided for output in call.outputs):
            return opaque(self._activations, call)
        rule: Callable[[ActivationLabels, OperatorCall], None] = RULES.get(call.name, opaque)
        if call.name not in RULES and torch.Tag.pointwise in call.func.tags:
            rule = pointwise
        if any(self._activations.axes(tensor) for tensor in inputs):
            rule(self._activations, call)
            self.splits += call.splits
        self._activations.follow(call.outputs, inputs)
        return None

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(self._names[module])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()


@contextmanager
def plain_operators(model: nn.Module) -> Iterator[None]:
    """Run a model with the operators that labels can follow, not with fused ones."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    mkldnn = torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mkldnn, torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
