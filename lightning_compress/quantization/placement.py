"""Placement of quantizers: a runtime with integer kernels needs no FP32 operation between quantized layers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_compress.quantization.call_patcher import CallSite
from lightning_compress.quantization.tracing import Graph, Node
from lightning_compress.quantization.value_roles import DATA_MOVEMENT, fp32_values, origin

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
# Functions of several activations. Their kernels rescale each operand, so that every one needs a scale of its own.
_MULTI_INPUT = {"add", "sub", "mul", "cat"}
_AVERAGING = {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"}
# Activations that only clip. Runtimes fuse them into the layer before, as clipping of its integers: they need a
# quantized output, and no quantized input.
CLIPPING = {"relu", "relu6", "hardtanh", "clamp"}
# Activations that runtimes compute by a lookup table or a kernel of their own, from quantized to quantized.
_NONLINEAR = {"hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu", "elu", "prelu"}
# Functions that read the shape or type of a tensor, not its values.
_METADATA = {"dim", "size", "get", "numel", "is_floating_point", "data_ptr", "stride", "is_contiguous", "type", "len"}
_NORMS = {"batch_norm"}
_NAME = re.compile(
    r"(?P<function>[a-z]\w*?)(?:_(?P<occurrence>\d+))?(?:_call_(?P<repeat>\d+))?(?:_(?P<role>input_\d+|weight|inner))?"
)


@dataclass(frozen=True, order=True)
class QuantizationPoint:
    """Tensor that is quantized.

    Attributes:
        module: Name of the module in which the call is made.
        call: Function call that returns or reads the tensor.
        role: ``"output"``, ``"input_<operand>"``, ``"weight"``, or ``"inner"`` for an intermediate result, the sigmoid
            of SiLU. The weight of a layer belongs to all calls of the layer, and has a call without a function.
    """

    module: str
    call: CallSite
    role: str = "output"

    @property
    def name(self) -> str:
        """Name of the quantizer in its module: ``"weight"``, ``"relu"``, ``"add_1"``, ``"relu_call_1"``.

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
    def from_name(cls, module: str, name: str) -> QuantizationPoint:
        """Parse the name of a quantizer.

        >>> QuantizationPoint.from_name("", "conv2d_1_weight")
        QuantizationPoint(module='', call=CallSite(function='conv2d', occurrence=1, repeat=0), role='weight')
        """
        if name == "weight":
            return cls(module, CallSite(""), "weight")
        match = _NAME.fullmatch(name)
        assert match is not None, name
        call = CallSite(match["function"], int(match["occurrence"] or 0), int(match["repeat"] or 0))
        return cls(module, call, match["role"] or "output")


def weight_point(node: Node) -> QuantizationPoint:
    """Return the quantization point of the weight that a call reads."""
    # A weight that is not the parameter "weight", for example a slice of one, is quantized for this call alone.
    return QuantizationPoint(node.module, CallSite("") if node.weight == "weight" else node.call, "weight")


class Placement:
    """Finds the quantization points of a graph.

    Activations are quantized where they are produced, so that all readers share the same integers. Where that is not
    possible, each reader quantizes its input.

    Args:
        graph: Graph of one run of the model.
        is_target: By module name, True if the weight of the module is to be quantized.
    """

    def __init__(self, graph: Graph, is_target: dict[str, bool]) -> None:
        self.graph = graph
        # Reading a shape does not read values, and must not count as a second reader of a convolution's output.
        self.users = {
            value: [n for n in nodes if n.call.function not in _METADATA] for value, nodes in graph.users().items()
        }
        self._is_target = is_target
        self._required: dict[int, bool] = {}
        self._fp32 = fp32_values(graph, self.users)

    def weights(self) -> list[Node]:
        """Return the calls that read the weight of a target."""
        return [node for node in self.graph.nodes if self._reads_target(node)]

    def activations(self) -> list[QuantizationPoint]:
        """Return the quantization points of activations without duplicates, in the order of the run."""
        points: dict[QuantizationPoint, None] = {}
        for node in self.graph.nodes:
            if not self.is_integer(node):
                # An FP32 function is followed by a quantizer where an integer kernel reads its result.
                self._place_output(node, points)
                continue
            # Integer kernels read integers only. An input is quantized here if its producer cannot do it: the input of
            # the network, a parameter that is an operand, the result of a function that returns a tuple.
            if node.call.function not in CLIPPING:
                for k, value in enumerate(self.data_operands(node)):
                    if not self._is_quantized_at_producer(self.origin(value)):
                        points[QuantizationPoint(node.module, node.call, f"input_{k}")] = None
            # SiLU is x * sigmoid(x) in integer runtimes: the product needs quantized operands.
            if node.call.function == "silu":
                points[QuantizationPoint(node.module, node.call, "inner")] = None
            self._place_output(node, points)
        return list(points)

    def unquantized_ops(self) -> list[Node]:
        """Return the unquantized ops (FP32): layers that are not targets, and functions without integer kernels."""
        return [
            node
            for node in self.graph.nodes
            if not self.is_integer(node)
            and node.call.function not in DATA_MOVEMENT | _METADATA
            and not self.is_folded(node)
            and any(len(shape) > 0 for shape in node.shapes)
        ]

    def is_integer(self, node: Node) -> bool:
        """Return True if a call is to be computed by an integer kernel."""
        name = node.call.function
        if name in CHANNEL_AXIS:
            return self._reads_target(node)
        # Residual additions, gates and concatenations are quantized, since the layers around them would otherwise be
        # separated by FP32 islands. A product with a number only rescales, and needs no quantizer. The result of an
        # in-place call that is read from the tensor written into cannot be quantized: a hook replaces the returned
        # tensor only.
        if self._fp32.intersection(node.outputs):
            return False
        if name in _MULTI_INPUT:
            return (len(self.data_operands(node)) > 1 or name == "cat") and node.outputs[0] not in self.graph.written
        if name in _NONLINEAR and node.outputs[0] in self.graph.written:
            return False
        return name in _AVERAGING or name in _NONLINEAR or name in CLIPPING

    def is_folded(self, node: Node) -> bool:
        """Return True if a call is a batch norm that will be folded into the target before it."""
        producer = self.graph.producer.get(node.operands[0]) if node.operands else None
        return node.call.function in _NORMS and producer is not None and self.folds_into(producer) is node

    def folds_into(self, node: Node) -> Node | None:
        """Return the batch norm that is the only reader of a target's output, if there is one."""
        if node.call.function not in CHANNEL_AXIS or not self._reads_target(node):
            return None
        # A second reader needs the output before the norm, which no longer exists after folding.
        users = self.users.get(node.outputs[0], [])
        return users[0] if len(users) == 1 and users[0].call.function in _NORMS else None

    def data_operands(self, node: Node) -> list[int]:
        """Return the operands that are activations, or are used like one; no weights, and no zero-dimensional tensors.

        A zero-dimensional tensor is a number to integer kernels: quantized to a scale of its own, it would only lose
        precision.
        """
        if node.call.function in _MULTI_INPUT:
            return [v for v, shape in zip(node.operands, node.shapes, strict=True) if len(shape) > 0]
        return list(node.operands[:1])

    def origin(self, value: int) -> int:
        """Return the value from which another was moved without a change."""
        return origin(self.graph, value)

    def _place_output(self, node: Node, points: dict[QuantizationPoint, None]) -> None:
        value = node.outputs[0]
        if node.call.function in DATA_MOVEMENT | _METADATA or not self._is_quantized_at_producer(value):
            return
        # The last layer's output has no integer reader, but is quantized as well: its kernel returns integers.
        computed = self._is_computed_from_integers(node) or self._is_required(value)
        if computed and not self._is_clipped_or_folded(value, node):
            points[QuantizationPoint(node.module, node.call)] = None

    def _is_quantized_at_producer(self, value: int) -> bool:
        """Return True if a value can be quantized where it is returned; otherwise each reader quantizes it."""
        producer = self.graph.producer.get(value)
        return producer is not None and producer.is_tensor and value not in self.graph.written

    def _is_computed_from_integers(self, node: Node) -> bool:
        """Return True if an integer kernel computes the output, by itself or fused with the call before."""
        # Clips and folded norms are fused into their producers: they compute integers if those do.
        if node.call.function in CLIPPING or self.is_folded(node):
            producer = self.graph.producer.get(node.operands[0])
            return (
                producer is not None
                and (self.is_folded(producer) or self.is_integer(producer))
                and self._is_computed_from_integers(producer)
            )
        return self.is_integer(node)

    def _is_clipped_or_folded(self, value: int, node: Node) -> bool:
        """Return True if the only reader of a value is fused with its producer: the value itself is never stored."""
        users = self.users.get(value, [])
        if len(users) != 1:
            return False
        if users[0].call.function in CLIPPING:
            # The same holds after an FP32 function; of two clips in a row, only one is fused.
            return node.call.function not in CLIPPING
        return self.is_folded(users[0])

    def _is_required(self, value: int) -> bool:
        """Return True if an integer kernel reads a value, perhaps after it was moved."""
        if value not in self._required:
            # Memoized: without it, networks whose branches split and join again would take exponential time.
            self._required[value] = False
            self._required[value] = any(self._requires(node, value) for node in self.users.get(value, []))
        return self._required[value]

    def _requires(self, node: Node, value: int) -> bool:
        if node.call.function in DATA_MOVEMENT:
            return any(self._is_required(output) for output in node.outputs)
        # Clips take FP32 inputs as well as integers.
        if node.call.function in CLIPPING:
            return False
        return self.is_integer(node) and value in self.data_operands(node)

    def _reads_target(self, node: Node) -> bool:
        return node.call.function in CHANNEL_AXIS and self._is_target.get(node.module, False)
