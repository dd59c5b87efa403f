"""Capture of a student's inputs, logits and features during its own training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_compress.distillation.feature_hooks import FeatureHooks, ModuleCall


class StudentCapture:
    """Forward hooks on a student that record its inputs, logits and features.

    Args:
        student: Module that runs the training step.
        network: Submodule in which ``layers`` are named.
        layers: Names of the modules of ``network`` to record.
        output: Name of the submodule of ``student`` that returns the logits. By default the student itself if it is
            called, else its only child that is called.

    Attributes:
        features: Hooks on the modules ``layers``.

    Raises:
        ValueError: For a name without a module.
    """

    def __init__(self, student: nn.Module, network: nn.Module, layers: Sequence[str], output: str | None) -> None:
        self._output = output
        # Children without parameters are losses and metrics, not networks.
        children = [name for name, child in student.named_children() if any(True for _ in child.parameters())]
        self._candidates = ["", *children]
        self._calls = FeatureHooks(student, [*self._candidates, *([output] if output else [])], owner="student")
        self.features = FeatureHooks(network, layers, owner="student")

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record calls until the end of the context."""
        with self._calls.record(), self.features.record():
            yield

    def forward_call(self) -> tuple[ModuleCall, Any]:
        """Return the recorded forward pass and the output that contains the logits.

        Returns:
            Call with the inputs for the teachers, and output of the module that returns the logits.

        Raises:
            ValueError: If the module that returns the logits is ambiguous.
        """
        called = [name for name in self._candidates if name in self._calls]
        if self._output is not None:
            # Inputs are those of the whole student or of the child that contains the output module.
            root = "" if "" in called else self._output.split(".")[0]
            return self._calls[root], self._calls[self._output].output
        if "" in called or len(called) == 1:
            call = self._calls[called[0]]
            return call, call.output
        raise ValueError(
            f"The student's training_step calls {', '.join(map(repr, called)) or 'none of its modules'}: name the one "
            "that returns the logits with output=..."
        )
