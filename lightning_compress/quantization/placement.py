"""Placement of quantizers: a runtime with integer kernels needs no FP32 operation between quantized layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from lightning_compress.quantization.affine_maps import is_foldable
from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.call_patcher import CallSite
from lightning_compress.quantization.function_names import CHANNEL_AXIS
from lightning_compress.quantization.tracing import Graph, Node
from lightning_compress.quantization.value_roles import fp32_values, moves_values, origin

# Functions of several activations. Their kernels rescale each operand, so that every one needs a scale of its own.
_MULTI_INPUT = {"add", "sub", "mul", "cat", "stack"}
_LISTED = {"cat", "stack"}
# Activations that only clip. Runtimes fuse them into the layer before, as clipping of its integers: they need a
# quantized output, and no quantized input.
CLIPPING = {"relu", "relu6", "hardtanh", "clamp"}
# Activations that runtimes may compute by a lookup table or a kernel of their own, from quantized to quantized.
_NONLINEAR = {"hardswish", "silu", "sigmoid", "hardsigmoid", "leaky_relu", "elu", "prelu"}
# Functions that read the shape or type of a tensor, not its values.
_METADATA = {"dim", "size", "get", "numel", "is_floating_point", "data_ptr", "stride", "is_contiguous", "type", "len"}
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

    @property
    def full_name(self) -> str:
        """Name of the quantizer in the model: ``"layer1.relu"``.

        >>> QuantizationPoint("", CallSite("relu")).full_name
        'relu'
        """
        return f"{self.module}.{self.name}".lstrip(".")

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


class Role(Enum):
    """Way in which a call is computed."""

    INTEGER = auto()  # by an integer kernel, or fused into one
    FOLDED = auto()  # folded into the layer before: a batch norm or another affine map of each channel
    MOVING = auto()  # values are moved without a change, or metadata is read
    CONSTANT = auto()  # computed once, from parameters and buffers alone
    FP32 = auto()


@dataclass(frozen=True)
class PlacedCall:
    """Call with its role.

    Attributes:
        node: The call.
        role: Way in which it is computed.
        data: Operands that are activations, or are used like one.
        points: Quantization points of its activations.
        affine_maps: Calls that are folded into a layer, in order.
    """

    node: Node
    role: Role
    data: tuple[int, ...]
    points: tuple[QuantizationPoint, ...] = ()
    affine_maps: tuple[Node, ...] = ()


class Placement:
    """Finds role and quantization points of each call of a graph.

    Activations are quantized where they are produced, so that all readers share the same integers. Where that is not
    possible, each reader quantizes its input.

    Args:
        graph: Graph of one run of the model.
        is_target: By module name, True if the weight of the module is to be quantized.
        backend: Arithmetic of the runtime.

    Attributes:
        users: Calls that read the elements of a value, by value.
        calls: Calls with their roles, in the order of the run.
    """

    def __init__(self, graph: Graph, is_target: Mapping[str, bool], backend: Backend = OnnxRuntime()) -> None:
        self.graph = graph
        self._backend = backend
        # Reading a shape does not read values, and must not count as a second reader of a convolution's output.
        self.users = {
            value: [n for n in nodes if n.call.function not in _METADATA] for value, nodes in graph.users().items()
        }
        self._is_target = is_target
        self._required: dict[int, bool] = {}
        self._fp32 = fp32_values(graph, self.users)
        self._affine_maps = {node: self._maps_after(node) for node in graph.nodes if self._reads_target(node)}
        self._folded = {node: layer for layer, maps in self._affine_maps.items() for node in maps}
        self._roles = {node: self._role(node) for node in graph.nodes}
        self.calls = {node: self._place(node) for node in graph.nodes}

    def weights(self) -> list[Node]:
        """Return the calls that read the weight of a target."""
        return list(self._affine_maps)

    def activations(self) -> list[QuantizationPoint]:
        """Return the quantization points of activations without duplicates, in the order of the run."""
        return list(dict.fromkeys(point for call in self.calls.values() for point in call.points))

    def shared_scales(self) -> list[list[QuantizationPoint]]:
        """Return the groups of quantization points with one scale: operands and results, as of concatenations."""
        groups: list[list[QuantizationPoint]] = []
        for node, call in self.calls.items():
            if self._has_one_scale(node) and _output(call.points):
                group = [*call.points, *filter(None, map(self._point_of, call.data))]
                # A point that is in several groups joins them.
                joined = [other for other in groups if not set(other).isdisjoint(group)]
                groups = [other for other in groups if other not in joined]
                groups.append(list(dict.fromkeys([*(point for other in joined for point in other), *group])))
        return groups

    def _has_one_scale(self, node: Node) -> bool:
        name = node.call.function
        return name in self._backend.preserves_scales or (name in _LISTED and self._backend.shares_scales)

    def accumulator(self, node: Node) -> int | None:
        """Return the position of the operand of an addition that is the FP32 result of a convolution, if there is one.

        The convolution's kernel adds the other operand to it before anything is stored.
        """
        if self._backend.fuses_epilogues and node.call.function == "add":
            for k, value in enumerate(_data_operands(node)):
                producer = self.graph.producer.get(value)
                layer = None if producer is None else self._folded.get(producer, producer)
                is_convolution = layer in self._affine_maps and layer.call.function.startswith("conv")
                if is_convolution and self._only_reader(value) is node:
                    return k
        return None

    def unquantized_ops(self) -> list[Node]:
        """Return the unquantized ops (FP32): layers that are not targets, and functions without integer kernels."""
        return [
            node
            for node, role in self._roles.items()
            if role is Role.FP32 and any(len(shape) > 0 for shape in node.shapes)
        ]

    def origin(self, value: int) -> int:
        """Return the value from which another was moved without a change."""
        return origin(self.graph, value)

    def _role(self, node: Node) -> Role:
        if node in self._folded:
            return Role.FOLDED
        # Before constants: the readers of a learned token that is moved quantize it, as they do the token itself.
        if moves_values(node) or node.call.function in _METADATA:
            return Role.MOVING
        is_layer = node.call.function in CHANNEL_AXIS  # a layer on learned queries is quantized as any other
        if node.operands and not is_layer and all(value in self.graph.constants for value in node.operands):
            return Role.CONSTANT
        return Role.INTEGER if self._is_integer(node) else Role.FP32

    def _is_integer(self, node: Node) -> bool:
        name = node.call.function
        if name in CHANNEL_AXIS:
            return node in self._affine_maps
        # Residual additions, gates and concatenations are quantized, since the layers around them would otherwise be
        # separated by FP32 islands. A product with a number only rescales, and needs no quantizer. The result of an
        # in-place call that is read from the tensor written into cannot be quantized: a hook replaces the returned
        # tensor only.
        if self._fp32.intersection(node.outputs):
            return False
        if name in _MULTI_INPUT:
            # Positions and masks of integers are no activations, and no kernel multiplies by them.
            is_single = len(_data_operands(node)) < 2 and name not in _LISTED
            if not node.is_floating or is_single or node.outputs[0] in self.graph.written:
                return False
            # Other additions are fused with FP32 operations around them.
            is_fused = name != "add" or not self._backend.fuses_epilogues or self.accumulator(node) is not None
            return name in self._backend.functions and is_fused
        if name in _NONLINEAR and node.outputs[0] in self.graph.written:
            return False
        return name in self._backend.functions or name in CLIPPING

    def _maps_after(self, layer: Node) -> tuple[Node, ...]:
        """Return the affine maps that alone read a layer's output, one after the other, as these can be folded."""
        maps: list[Node] = []
        value = layer.outputs[0]
        while (reader := self._only_reader(value)) is not None and is_foldable(layer, reader, value):
            maps.append(reader)
            value = reader.outputs[0]
        return tuple(maps)

    def _only_reader(self, value: int) -> Node | None:
        # A second reader needs the output before the map, which no longer exists after folding.
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 else None

    def _place(self, node: Node) -> PlacedCall:
        role, data = self._roles[node], _data_operands(node)
        points: list[str] = []
        # Integer kernels read integers only. An input is quantized here if its producer cannot do it: the input of
        # the network, a parameter that is an operand, the result of a function that returns a tuple.
        if role is Role.INTEGER and node.call.function not in CLIPPING:
            points += [
                f"input_{k}"
                for k, value in enumerate(data)
                if self._requires(node, value) and not self._is_quantized_at_producer(self.origin(value))
            ]
            # SiLU is x * sigmoid(x) in integer runtimes: the product needs quantized operands.
            points += ["inner"] if node.call.function == "silu" else []
        # An FP32 function is followed by a quantizer where an integer kernel reads its result.
        points += ["output"] if self._quantizes_output(node) else []
        placed = tuple(QuantizationPoint(node.module, node.call, name) for name in points)
        return PlacedCall(node, role, data, placed, self._affine_maps.get(node, ()))

    def _quantizes_output(self, node: Node) -> bool:
        value = node.outputs[0]
        if self._roles[node] is Role.MOVING or not self._is_quantized_at_producer(value):
            return False
        # The last layer's output has no integer reader, but is quantized as well if its kernel returns integers.
        returned = self._is_computed_from_integers(node) and not self._backend.fuses_epilogues
        return (returned or self._is_required(value)) and not self._is_fused_with_reader(value, node)

    def _is_quantized_at_producer(self, value: int) -> bool:
        """Return True if a value can be quantized where it is returned; otherwise each reader quantizes it."""
        producer = self.graph.producer.get(value)
        return producer is not None and producer.is_tensor and value not in self.graph.written

    def _is_computed_from_integers(self, node: Node) -> bool:
        """Return True if an integer kernel computes the output, by itself or fused with the call before."""
        # Clips are fused into their producers: they compute integers if those do.
        if node.call.function in CLIPPING:
            producer = self.graph.producer.get(node.operands[0])
            return producer is not None and self._is_computed_from_integers(producer)
        return self._roles[node] in (Role.INTEGER, Role.FOLDED)

    def _is_fused_with_reader(self, value: int, node: Node) -> bool:
        """Return True if the only reader of a value is fused with its producer: the value itself is never stored."""
        reader = self._only_reader(value)
        if reader is None:
            return False
        # The same holds for clips after an FP32 function; of two clips in a row, only one is fused.
        is_clip = reader.call.function in CLIPPING and node.call.function not in CLIPPING
        return is_clip or self._roles[reader] is Role.FOLDED

    def _is_required(self, value: int) -> bool:
        """Return True if an integer kernel reads a value, perhaps after it was moved."""
        if value not in self._required:
            # Memoized: without it, networks whose branches split and join again would take exponential time.
            self._required[value] = False
            self._required[value] = any(self._requires(node, value) for node in self.users.get(value, []))
        return self._required[value]

    def _requires(self, node: Node, value: int) -> bool:
        role = self._roles[node]
        if role is Role.MOVING:
            return any(self._is_required(output) for output in node.outputs)
        # Clips take FP32 inputs as well as integers.
        if role is not Role.INTEGER or node.call.function in CLIPPING:
            return False
        if node.call.function in _LISTED and self._backend.shares_scales:
            # Values are only copied, for readers of integers.
            return self._is_required(node.outputs[0])
        accumulator = self.accumulator(node)
        return any(value == operand for k, operand in enumerate(_data_operands(node)) if k != accumulator)

    def _point_of(self, value: int) -> QuantizationPoint | None:
        """Return the point at which the producer of a value quantizes it."""
        producer = self.graph.producer.get(self.origin(value))
        return None if producer is None else _output(self.calls[producer].points)

    def _reads_target(self, node: Node) -> bool:
        # The weight that another layer computes is no constant that could be stored as integers.
        is_layer = node.call.function in CHANNEL_AXIS and len(node.operands) > 1
        return is_layer and node.operands[1] in self.graph.constants and self._is_target.get(node.module, False)


def _output(points: Iterable[QuantizationPoint]) -> QuantizationPoint | None:
    return next((point for point in points if point.role == "output"), None)


def _data_operands(node: Node) -> tuple[int, ...]:
    """Return the operands that are activations, or are used like one; no weights, and no zero-dimensional tensors.

    A zero-dimensional tensor is a number to integer kernels: quantized to a scale of its own, it would only lose
    precision.
    """
    if node.call.function in _MULTI_INPUT:
        return tuple(v for v, shape in zip(node.operands, node.shapes, strict=True) if len(shape) > 0)
    return node.operands[:1]
