"""What is done at a call of a lowered model, in place of what was simulated there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_compress.quantization.backend import Backend, Bias, QParams, QuantizedLayer
from lightning_compress.quantization.insertion import FakeQuantizedCall, with_argument


class LoweredQuantizer:
    """Stands for a quantizer, and writes its grid in the form of a backend; of several tensors, for each."""

    def __init__(self, grid: QParams, backend: Backend) -> None:
        self.grid = grid
        self.backend = backend

    def __call__(self, module: nn.Module, x: Any) -> Any:
        """The same numbers, on the grid."""
        return tree_map_only(Tensor, self._write, x)

    def _write(self, x: Tensor) -> Tensor:
        return self.backend.activation(x, self.grid) if x.is_floating_point() else x


class LoweredCall(FakeQuantizedCall):
    """A call whose weight and bias are constants of integers."""

    layer: QuantizedLayer
    backend: Backend

    @classmethod
    def of(cls, action: FakeQuantizedCall | None, layer: QuantizedLayer, backend: Backend) -> LoweredCall:
        """What was simulated at the call, around the layer's constants."""
        folded = cls()
        vars(folded).update(vars(action) if action is not None else {}, layer=layer, backend=backend)
        return folded

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of the call on the constants."""
        args, kwargs = with_argument(args, kwargs, 1, "weight", lambda _: self.backend.weight(self.layer.weight))
        bias = self.backend.bias(self.layer.bias) if isinstance(self.layer.bias, Bias) else self.layer.bias
        if len(args) > 2:
            args = (*args[:2], bias, *args[3:])
        else:
            kwargs = {**kwargs, "bias": bias}
        return super().__call__(module, function, args, kwargs)


class FoldedBatchNorm(FakeQuantizedCall):
    """A batch norm that has been folded away."""

    @classmethod
    def of(cls, action: FakeQuantizedCall | None) -> FoldedBatchNorm:
        """What was simulated at the call, but for the norm itself."""
        bypassed = cls()
        vars(bypassed).update(vars(action) if action is not None else {})
        return bypassed

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What it was given."""
        return super().__call__(module, _first_argument, args, kwargs)


def _first_argument(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x
