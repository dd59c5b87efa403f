"""Capture of a student's inputs, logits and features during its own training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_compress.distillation.batch_formats import Annotations, extract_annotations
from lightning_compress.distillation.feature_hooks import FeatureHooks


@dataclass(frozen=True)
class StudentStep:
    """Forward pass of a student in its training step.

    Attributes:
        name: Name of the module that got the inputs; ``""`` is the student itself.
        batch: Batch of the training step.
        args: Positional arguments of the student.
        kwargs: Keyword arguments of the student.
        output: Output that contains the logits.
        annotations: Labels and padding mask.
        features: Recorded features.
        keys: Keys ``(N,)`` of the samples in the caches of the teachers, or ``None``.
    """

    name: str
    batch: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    annotations: Annotations
    features: FeatureHooks
    keys: Tensor | None = None


class StudentCapture:
    """Forward hooks on a student that record its inputs, logits and features.

    Args:
        student: Module that runs the training step.
        network: Submodule in which ``layers`` are named.
        layers: Names of the modules of ``network`` to record.
        output: Name of the submodule of ``student`` that returns the logits. By default the student itself if it is
            called, else its only child that is called.

    Raises:
        ValueError: For a name without a module.
    """

    def __init__(self, student: nn.Module, network: nn.Module, layers: Sequence[str], output: str | None) -> None:
        self._output = output
        # Children without parameters are losses and metrics, not networks.
        children = [name for name, child in student.named_children() if any(True for _ in child.parameters())]
        self._candidates = ["", *children]
        self._calls = FeatureHooks(student, [*self._candidates, *([output] if output else [])], owner="student")
        self._features = FeatureHooks(network, layers, owner="student")

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record calls until the end of the context."""
        with self._calls.record(), self._features.record():
            yield

    def step(self, batch: Any, keys: Tensor | None) -> StudentStep:
        """Return the recorded forward pass.

        Args:
            batch: Batch of the training step.
            keys: Keys ``(N,)`` of its samples, or ``None``.

        Raises:
            ValueError: If the module that returns the logits is ambiguous.
        """
        root = self._root()
        call, output = self._calls[root], self._calls[root if self._output is None else self._output].output
        annotations = extract_annotations(batch, self._calls.arguments(root))
        return StudentStep(root, batch, call.args, call.kwargs, output, annotations, self._features, keys)

    def _root(self) -> str:
        """Return the module that gets the inputs: the whole student, or a child."""
        called = [name for name in self._candidates if name in self._calls]
        if "" in called:
            return ""
        if self._output is not None:
            return self._output.split(".")[0]
        if len(called) == 1:
            return called[0]
        raise ValueError(
            f"The student's training_step calls {', '.join(map(repr, called)) or 'none of its modules'}: name the one "
            "that returns the logits with output=..."
        )
