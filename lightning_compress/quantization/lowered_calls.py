"""Actions at the calls of a lowered model, in place of fake-quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, QuantizedLayer
from lightning_compress.quantization.fake_quantized_call import FakeQuantizedCall, with_argument


class LoweredQuantizer:
    """Quantize and dequantize an activation, or each tensor of a tuple, with the operators of a backend."""

    def __init__(self, qparams: QParams, operators: BackendOperators) -> None:
        self.qparams = qparams
        self.operators = operators

    def __call__(self, module: nn.Module, x: Any) -> Any:
        """Return the dequantized values; tensors that are not floating-point stay."""
        return tree_map_only(Tensor, self._quantize, x)

    def _quantize(self, x: Tensor) -> Tensor:
        return self.operators.activation(x, self.qparams) if x.is_floating_point() else x


class LoweredCall(FakeQuantizedCall):
    """Call with constant quantized weight and bias."""

    layer: QuantizedLayer
    operators: BackendOperators

    @classmethod
    def of(cls, action: FakeQuantizedCall | None, layer: QuantizedLayer, operators: BackendOperators) -> LoweredCall:
        """Return the call with the constants of a layer and the activation quantizers of an action."""
        lowered = cls()
        vars(lowered).update(vars(action) if action is not None else {}, layer=layer, operators=operators)
        return lowered

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the result of the call on the constants."""
        args, kwargs = with_argument(args, kwargs, 1, "weight", lambda _: self.operators.weight(self.layer.weight))
        bias = self.operators.bias(self.layer.bias) if isinstance(self.layer.bias, Bias) else self.layer.bias
        # A folded batch norm gives a bias to layers that had none: it may be missing in the arguments.
        if len(args) > 2:
            args = (*args[:2], bias, *args[3:])
        else:
            kwargs = {**kwargs, "bias": bias}
        return super().__call__(module, function, args, kwargs)


class FoldedCall(FakeQuantizedCall):
    """Affine map that has been folded away: returns its input.

    Attributes:
        position: Position of the input among the arguments.
    """

    position: int

    @classmethod
    def of(cls, action: FakeQuantizedCall | None, position: int) -> FoldedCall:
        """Return the call with the activation quantizers of an action."""
        folded = cls()
        vars(folded).update(vars(action) if action is not None else {}, position=position)
        return folded

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the input."""
        return super().__call__(module, self._input, args, kwargs)

    def _input(self, *args: Any, **kwargs: Any) -> Any:
        return args[self.position]
