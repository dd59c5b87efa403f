"""Where quantizers go, so that an integer runtime finds no island of floats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.quantization.call_patcher import CallSite
from lightning_compress.quantization.tracing import Graph, Node

# Functions that read a weight, and the dimension of the weight's output channels.
CHANNEL_AXIS = {
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
    "linear": 0,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
    "conv_transpose3d": 1,
}
# Functions of several tensors.
_JOINING = {"add", "sub", "mul", "cat"}
_AVERAGING = {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"}
# Activations that integer runtimes clip for: they take no quantized input, and need none.
CLIPPING = {"relu", "relu6", "hardtanh", "clamp"}
_CURVED = {"hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu", "elu", "prelu"}
# What passes values through and leaves them as they are, so that a scale goes through as well.
PASSING = {
    "max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices", "adaptive_max_pool2d",
    "flatten", "reshape", "view", "view_as", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze",
    "chunk", "split", "unbind", "tensor_split", "narrow", "getitem", "expand", "expand_as", "contiguous", "clone",
    "dropout", "dropout1d", "dropout2d", "feature_dropout", "pad", "pixel_shuffle", "pixel_unshuffle", "unflatten",
    "channel_shuffle", "roll", "to", "float", "type_as", "select", "index_select", "repeat", "t", "detach", "stack",
}  # fmt: skip
# Looks at a tensor's form, not at its values.
_FORMAL = {"dim", "size", "get", "numel", "is_floating_point", "data_ptr", "stride", "is_contiguous", "type", "len"}
_NORMS = {"batch_norm"}
# Attention's products, and what may stand between them and the softmax.
_PRODUCTS = {"matmul", "rmatmul", "bmm", "baddbmm", "einsum"}
_SCORING = _JOINING | PASSING | {"div", "truediv", "masked_fill", "tanh", "clamp", "max", "maximum"}

_NAME = re.compile(
    r"(?P<function>[a-z]\w*?)(?:_(?P<occurrence>\d+))?(?:_call_(?P<repeat>\d+))?(?:_(?P<role>input_\d+|weight|inner))?"
)


@dataclass(frozen=True, order=True)
class QuantizationPoint:
    """A tensor that is quantized.

    Attributes:
        module: Name of the module in which it is.
        call: The function call that makes or reads it.
        role: ``"output"``, ``"input_<operand>"``, ``"weight"``, or ``"inner"``: what a function makes on its way, such
            as SiLU's sigmoid. A layer's own weight belongs to all its calls.
    """

    module: str
    call: CallSite
    role: str = "output"

    @property
    def name(self) -> str:
        """Of the quantizer in its module: ``"weight"``, ``"relu"``, ``"add_1"``, ``"relu_call_1"``, ``"cat_input_0"``.

        >>> QuantizationPoint("layer1", CallSite("add", 1), "input_0").name
        'add_1_input_0'
        """
        if self.call.function == "":
            return self.role
        occurrence = f"_{self.call.occurrence}" if self.call.occurrence else ""
        repeat = f"_call_{self.call.repeat}" if self.call.repeat else ""
        role = "" if self.role == "output" else f"_{self.role}"
        return f"{self.call.function}{occurrence}{repeat}{role}"

    @classmethod
    def named(cls, module: str, name: str) -> QuantizationPoint:
        """The place of a name.

        >>> QuantizationPoint.named("", "conv2d_1_weight")
        QuantizationPoint(module='', call=CallSite(function='conv2d', occurrence=1, repeat=0), role='weight')
        """
        if name == "weight":
            return cls(module, CallSite(""), "weight")
        found = _NAME.fullmatch(name)
        assert found is not None, name
        call = CallSite(found["function"], int(found["occurrence"] or 0), int(found["repeat"] or 0))
        return cls(module, call, found["role"] or "output")


def weight_place(node: Node) -> QuantizationPoint:
    """The place of the weight that a call reads."""
    return QuantizationPoint(node.module, CallSite("") if node.weight == "weight" else node.call, "weight")


class Placement:
    """Finds the places of a graph.

    Args:
        graph: One run of the model.
        is_target: Whether the weight of a module is to be quantized.
    """

    def __init__(self, graph: Graph, is_target: dict[str, bool]) -> None:
        self.graph = graph
        self.users = {
            value: [n for n in nodes if n.call.function not in _FORMAL] for value, nodes in graph.users().items()
        }
        self._is_target = is_target
        self._wanted: dict[int, bool] = {}
        self._scores = self._find_scores()

    def weights(self) -> list[Node]:
        """The calls that read a weight that is a target."""
        return [node for node in self.graph.nodes if self._reads_target(node)]

    def activations(self) -> list[QuantizationPoint]:
        """Places of activations, each once, in the order of the run."""
        places: dict[QuantizationPoint, None] = {}
        for node in self.graph.nodes:
            if not self.is_integer(node):
                self._place_output(node, places)
                continue
            if node.call.function not in CLIPPING:
                for k, value in enumerate(self.data_operands(node)):
                    if not self._is_rounded_behind(self.origin(value)):
                        places[QuantizationPoint(node.module, node.call, f"input_{k}")] = None
            if node.call.function == "silu":
                places[QuantizationPoint(node.module, node.call, "inner")] = None
            self._place_output(node, places)
        return list(places)

    def left_in_float(self) -> list[Node]:
        """Calls that compute in floats: what is not a target, and functions that integers are not made for."""
        return [
            node
            for node in self.graph.nodes
            if not self.is_integer(node)
            and node.call.function not in PASSING | _FORMAL
            and not self.is_folded(node)
            and any(len(shape) > 0 for shape in node.shapes)
        ]

    def is_integer(self, node: Node) -> bool:
        """Whether a call is to compute with integers.

        What is read from the tensor that it was written into is not: nothing rounds it there.
        """
        name = node.call.function
        if name in CHANNEL_AXIS:
            return self._reads_target(node)
        if name in _JOINING:
            joins = len(self.data_operands(node)) > 1 or name == "cat"
            return joins and node.outputs[0] not in self._scores | self.graph.written
        if name in _CURVED and node.outputs[0] in self.graph.written:
            return False
        return name in _AVERAGING or name in _CURVED or name in CLIPPING

    def is_folded(self, node: Node) -> bool:
        """Whether a call is a batch norm right behind a target, into which it will be folded."""
        maker = self.graph.maker.get(node.operands[0]) if node.operands else None
        return node.call.function in _NORMS and maker is not None and self.folds_into(maker) is node

    def folds_into(self, node: Node) -> Node | None:
        """The batch norm that is all that reads a target's output."""
        if node.call.function not in CHANNEL_AXIS or not self._reads_target(node):
            return None
        users = self.users.get(node.outputs[0], [])
        return users[0] if len(users) == 1 and users[0].call.function in _NORMS else None

    def data_operands(self, node: Node) -> list[int]:
        """Operands that are activations or take part like one, not weights; tensors of no dimension are none."""
        if node.call.function in _JOINING:
            return [v for v, shape in zip(node.operands, node.shapes, strict=True) if len(shape) > 0]
        return list(node.operands[:1])

    def origin(self, value: int) -> int:
        """The value from which another comes unchanged."""
        while (maker := self.graph.maker.get(value)) is not None and maker.call.function in PASSING and maker.operands:
            value = maker.operands[0]
        return value

    def _find_scores(self) -> set[int]:
        """Scores and masks of attention: between floats, and with masks of -1e38 there is no grid for them."""
        scores: set[int] = set()
        for node in self.graph.nodes:
            if node.call.function == "scaled_dot_product_attention":
                scores |= self._cone(node.operands[3:])  # behind query, key and value
            elif node.call.function == "softmax":
                cone = self._cone(node.operands[:1])
                makers = [self.graph.maker[value] for value in cone if value in self.graph.maker]
                if any(maker.call.function in _PRODUCTS for maker in makers) or self._is_multiplied(node.outputs[0]):
                    scores |= cone
        return scores

    def _cone(self, values: Sequence[int]) -> set[int]:
        """Some values, and what they are made of by what may stand between a product and a softmax."""
        cone: set[int] = set()
        remaining = list(values)
        while remaining:
            value = remaining.pop()
            maker = self.graph.maker.get(value)
            if value not in cone and maker is not None and maker.call.function in _SCORING:
                remaining += maker.operands
            cone.add(value)
        return cone

    def _is_multiplied(self, value: int) -> bool:
        users = self.users.get(value, [])
        return any(
            node.call.function in _PRODUCTS
            or (node.call.function in PASSING and any(map(self._is_multiplied, node.outputs)))
            for node in users
        )

    def _place_output(self, node: Node, places: dict[QuantizationPoint, None]) -> None:
        value = node.outputs[0]
        if node.call.function in PASSING | _FORMAL or not self._is_rounded_behind(value):
            return
        if not self._is_clipped_or_folded(value, node) and (self._computes_integers(node) or self._is_wanted(value)):
            places[QuantizationPoint(node.module, node.call)] = None

    def _is_rounded_behind(self, value: int) -> bool:
        """Whether the call that makes a value is where it can be rounded; if not, each reader does that."""
        maker = self.graph.maker.get(value)
        return maker is not None and maker.is_tensor and value not in self.graph.written

    def _computes_integers(self, node: Node) -> bool:
        """Whether a call's inputs are integers, so that its output should be."""
        if node.call.function in CLIPPING or self.is_folded(node):
            maker = self.graph.maker.get(node.operands[0])
            return (
                maker is not None
                and (self.is_folded(maker) or self.is_integer(maker))
                and self._computes_integers(maker)
            )
        return self.is_integer(node)

    def _is_clipped_or_folded(self, value: int, node: Node) -> bool:
        users = self.users.get(value, [])
        if len(users) != 1:
            return False
        if users[0].call.function in CLIPPING:
            # A float function before a clip needs none in between either.
            return node.call.function not in CLIPPING
        return self.is_folded(users[0])

    def _is_wanted(self, value: int) -> bool:
        """Whether some reader of a value computes with integers."""
        if value not in self._wanted:
            self._wanted[value] = False
            self._wanted[value] = any(self._wants(node, value) for node in self.users.get(value, []))
        return self._wanted[value]

    def _wants(self, node: Node, value: int) -> bool:
        if node.call.function in PASSING:
            return any(self._is_wanted(output) for output in node.outputs)
        if node.call.function in CLIPPING:
            return False
        return self.is_integer(node) and value in self.data_operands(node)

    def _reads_target(self, node: Node) -> bool:
        return node.call.function in CHANNEL_AXIS and self._is_target.get(node.module, False)
