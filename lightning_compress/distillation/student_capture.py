"""What a student does in its own training step, as its teachers have to see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_compress.distillation.feature_hooks import FeatureHooks, ModuleCall


class StudentCapture:
    """The inputs, logits and features of a student, seen while it trains as it would alone.

    Args:
        student: The module whose training step is made.
        network: The part of it in which features are named.
        layers: Names of the modules of that part whose outputs are wanted.
        output: Name of the student's module that returns the logits; ``None`` finds it where it is the student itself
            or the only child that is called.

    Raises:
        ValueError: For names that are no modules.
    """

    def __init__(self, student: nn.Module, network: nn.Module, layers: Sequence[str], output: str | None) -> None:
        self._output = output
        parts = [name for name, child in student.named_children() if any(True for _ in child.parameters())]
        self._candidates = ["", *parts]
        self._calls = FeatureHooks(student, [*self._candidates, *([output] if output else [])], whose="student")
        self.features = FeatureHooks(network, layers, whose="student")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Sees what is called in this context, and forgets it at its end."""
        with self._calls.open(), self.features.open():
            yield

    def call(self) -> tuple[ModuleCall, Any]:
        """The forward pass whose inputs the teachers get, and what has the logits.

        Raises:
            ValueError: If it cannot be told which module returns the logits.
        """
        called = [name for name in self._candidates if name in self._calls]
        if self._output is not None:
            whole = "" if "" in called else self._output.split(".")[0]
            return self._calls[whole], self._calls[self._output].output
        if "" in called or len(called) == 1:
            call = self._calls[called[0]]
            return call, call.output
        raise ValueError(
            f"The student's training_step calls {', '.join(map(repr, called)) or 'none of its modules'}: say which "
            "returns the logits with output=..."
        )
