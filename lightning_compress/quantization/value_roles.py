"""Values that stay in FP32 for their meaning: attention scores, masks, and statistics of normalizations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lightning_compress.quantization.tracing import Graph, Node

# Functions that move values without changing them: the result has the scale of the argument, and needs no quantizer.
DATA_MOVEMENT = {
    "max_pool1d", "max_pool2d", "max_pool1d_with_indices", "max_pool2d_with_indices", "adaptive_max_pool2d",
    "flatten", "reshape", "view", "view_as", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze",
    "chunk", "split", "unbind", "tensor_split", "narrow", "getitem", "expand", "expand_as", "contiguous", "clone",
    "dropout", "dropout1d", "dropout2d", "feature_dropout", "pad", "pixel_shuffle", "pixel_unshuffle", "unflatten",
    "channel_shuffle", "roll", "to", "float", "type_as", "select", "index_select", "repeat", "t", "detach",
    "requires_grad",
}  # fmt: skip
# Products of attention, and the functions that may stand between a product and the softmax.
_PRODUCTS = {"matmul", "rmatmul", "bmm", "baddbmm", "einsum"}
_SCORING = DATA_MOVEMENT | {
    "add", "sub", "mul", "cat", "div", "truediv", "masked_fill", "where", "tanh", "clamp", "max", "maximum",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "amax", "max"}
_ROOTS = {"rsqrt", "sqrt", "reciprocal", "root"}
_DIVISIONS = {"div", "truediv", "divide", "true_divide"}
_ELEMENTWISE = {"add", "sub", "mul", "div", "truediv", "clamp", "clamp_min", "maximum"}
_POWERS = {"pow", "square", "abs"}
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1, "truediv": 1}


def fp32_values(graph: Graph, users: Mapping[int, Sequence[Node]]) -> set[int]:
    """Return the values that are not quantized, and are computed in FP32.

    Args:
        graph: Graph of one run.
        users: Calls that read a value, by value.
    """
    return _Roles(graph, users).find()


def moves_values(node: Node) -> bool:
    """Return True for a call that returns the values of its first operand, perhaps elsewhere."""
    return node.call.function in DATA_MOVEMENT or _is_identity(node)


def origin(graph: Graph, value: int) -> int:
    """Return the value from which another was moved without a change."""
    while (producer := graph.producer.get(value)) is not None and moves_values(producer) and producer.operands:
        value = producer.operands[0]
    return value


def _is_identity(node: Node) -> bool:
    """Return True for a sum with the number 0, as of Python's ``sum``, or a product with 1; exporters remove them."""
    if node.call.function not in _NEUTRAL or node.arguments is None or len(node.operands) != 1:
        return False
    args, kwargs = node.arguments
    return len(args) == 2 and not kwargs and args[0] is None and args[1] == _NEUTRAL[node.call.function]


class _Roles:
    def __init__(self, graph: Graph, users: Mapping[int, Sequence[Node]]) -> None:
        self.graph = graph
        self.users = users
        self.values: set[int] = set()

    def find(self) -> set[int]:
        for node in self.graph.nodes:
            # Softmax has no integer kernel, so that quantizing its argument saves nothing, and a mask of -1e9 would
            # leave all scores a single step of the scale.
            if node.call.function == "scaled_dot_product_attention":
                self.values |= self._scores(node.operands[3:])  # the mask, behind query, key and value
            elif node.call.function in ("softmax", "log_softmax") and self._is_of_attention(node):
                self.values |= self._scores(node.operands[:1])
            if node.call.function in _ELEMENTWISE and any(map(self._is_mask, node.operands)):
                self.values.update(node.outputs)
        for node in self.graph.nodes:
            for divisor in _divisors(node):
                # Squares of a few large samples set the scale of a statistic, so that those of all others become 0.
                statistics = self._statistics(divisor)
                if statistics:
                    self.values |= statistics
                    self._mark_normalized(node)
        return self.values

    def _is_of_attention(self, softmax: Node) -> bool:
        """Return True if a softmax reads a product or if its result is a factor of one; a classifier has neither."""
        producers = map(self.graph.producer.get, self._scores(softmax.operands[:1]))
        if any(producer is not None and producer.call.function in _PRODUCTS for producer in producers):
            return True
        return any(node.call.function in _PRODUCTS for node in self._readers(softmax.outputs[0]))

    def _scores(self, values: Iterable[int]) -> set[int]:
        """Return values and those they are computed from by functions that may follow an attention product."""
        return self.graph.ancestors(values, through=_SCORING)

    def _readers(self, value: int) -> Iterator[Node]:
        """Yield the calls that read a value, perhaps after it was moved."""
        for node in self.users.get(value, ()):
            yield node
            if moves_values(node):
                for output in node.outputs:
                    yield from self._readers(output)

    def _statistics(self, divisor: int) -> set[int]:
        """Return the values between a reduction and the divisor that is computed from it; none without a reduction."""
        found: set[int] = set()
        reduced = False
        remaining = [divisor]
        while remaining:
            value = remaining.pop()
            producer = self.graph.producer.get(value)
            if producer is None or value in found:
                continue
            name = producer.call.function
            if name in _REDUCTIONS:
                found.add(value)
                reduced = True
                found |= self._reduced(producer.operands[0])
            elif name in _ELEMENTWISE | _ROOTS | DATA_MOVEMENT:
                found.add(value)
                remaining += producer.operands
        return found if reduced else set()

    def _reduced(self, value: int) -> set[int]:
        """Return the values from the input of a normalization to a reduction: powers, differences from a mean."""
        found: set[int] = set()
        while (producer := self.graph.producer.get(value)) is not None:
            name, operands = producer.call.function, producer.operands
            is_square = (
                name == "mul"
                and len(operands) > 1
                and origin(self.graph, operands[0]) == origin(self.graph, operands[1])
            )
            if name in ("exp", "softmax"):  # a softmax by hand: its argument holds attention scores, or logits
                return found | {value} | self._scores(operands[:1])
            if not (name in _POWERS | DATA_MOVEMENT or is_square):
                return found | self._centered(value)
            found.add(value)
            value = operands[0]
        return found

    def _centered(self, value: int) -> set[int]:
        """Return a difference from a mean, and the mean; nothing for other values, as those of a residual stream."""
        producer = self.graph.producer.get(origin(self.graph, value))
        if producer is None or producer.call.function not in ("add", "sub"):
            return set()
        means = [
            operand
            for operand in producer.operands
            if (inner := self.graph.producer.get(origin(self.graph, operand))) is not None
            and inner.call.function in _REDUCTIONS
        ]
        return {value, *producer.outputs, *means, *(origin(self.graph, mean) for mean in means)} if means else set()

    def _mark_normalized(self, node: Node) -> None:
        """Mark the results of a division by a statistic, or of products with its inverse, and the affine map after."""
        applied = [node] if node.call.function in _DIVISIONS else []
        if not applied:
            inverses = self._moved(node.outputs)
            applied = [u for v in inverses for u in self.users.get(v, ()) if u.call.function in _DIVISIONS | {"mul"}]
            self.values |= inverses
        for each in applied:
            for operand in each.operands:
                self.values |= self._centered(operand)
            self._mark_affine(each.outputs)

    def _moved(self, values: Iterable[int]) -> set[int]:
        """Return values, and those that are moved or inverted from them."""
        found: set[int] = set()
        remaining = list(values)
        while remaining:
            value = remaining.pop()
            if value not in found:
                found.add(value)
                for user in self.users.get(value, ()):
                    remaining += user.outputs if user.call.function in _ROOTS | DATA_MOVEMENT else ()
        return found

    def _mark_affine(self, values: Iterable[int]) -> None:
        """Mark values, and those that follow by products and sums with parameters."""
        remaining = list(values)
        while remaining:
            value = remaining.pop()
            if value not in self.values:
                self.values.add(value)
                for user in self.users.get(value, ()):
                    others = [operand for operand in user.operands if operand != value]
                    is_map = user.call.function in {"mul", "add", "sub"} | DATA_MOVEMENT
                    if is_map and all(other in self.graph.constants for other in others):
                        remaining += user.outputs

    def _is_mask(self, value: int) -> bool:
        """Return True for a value that masks others; not for loud activations, which layers compute."""
        if value not in self.graph.masks:
            return False
        producers = map(self.graph.producer.get, self.graph.ancestors([value]))
        return all(producer is None or producer.weight is None for producer in producers)


def _divisors(node: Node) -> tuple[int, ...]:
    if node.call.function in _DIVISIONS:
        return node.operands[1:2]
    return node.operands[:1] if node.call.function in _ROOTS or node.call.function == "rtruediv" else ()
