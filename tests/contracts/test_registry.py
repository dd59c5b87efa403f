"""Everything that a user can choose is in a registry, whose entries all suites run."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import lightning_compress as lc
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss
from lightning_compress.pruning.distributions import Distribution
from lightning_compress.pruning.growth import Growth
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.rewind import Rewind
from lightning_compress.pruning.scores import Score
from lightning_compress.quantization.observers import Observer
from lightning_compress.trainer.compression_callback import CompressionCallback
from tests.cases import BLOCK_CASES, CASES, LOSSES
from tests.export.test_exported_file import TARGETS
from tests.quantization.test_observers import OBSERVERS

# All classes exist only once their modules are imported, which the public names do one by one.
for info in pkgutil.walk_packages(lc.__path__, "lightning_compress."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)


def leaves(base: type) -> set[type]:
    """The package's classes that inherit from a base; other tests make some of their own."""
    kinds = [kind for kind in base.__subclasses__() if kind.__module__.startswith("lightning_compress.")]
    below = [leaf for kind in kinds for leaf in leaves(kind)]
    return set(below) or {base}


def parts_of(value: Any) -> Iterator[Any]:
    """A value, and those in its fields, items and attributes."""
    yield value
    inside: list[Any] = []
    if dataclasses.is_dataclass(value):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, CompressionCallback):
        inside = list(vars(value).values())
    for part in inside:
        yield from parts_of(part)


TECHNIQUE_PARTS = (CompressionCallback, Score, Pattern, Growth, Distribution, Rewind, Observer)


@pytest.mark.parametrize("base", [*TECHNIQUE_PARTS, LogitLoss, FeatureLoss])
def test_every_choice_has_a_public_name(base: type) -> None:
    missing = [kind.__name__ for kind in leaves(base) if getattr(lc, kind.__name__, None) is not kind]
    assert not missing, f"add an import and a line of _HOME to lightning_compress/__init__.py for {missing}"


@pytest.mark.parametrize("base", TECHNIQUE_PARTS)
def test_every_choice_of_a_technique_has_a_case(base: type) -> None:
    used = {
        type(part) for case in [*CASES, *BLOCK_CASES] for callback in case.callbacks() for part in parts_of(callback)
    }
    # Defaults that depend on the tensor are filled in by the callback.
    used |= {type(part) for part in parts_of(lc.Int().for_activations())}
    used |= {type(part) for part in parts_of(lc.Int().for_weights())}
    missing = [kind.__name__ for kind in leaves(base) if kind not in used]
    assert not missing, f"add a line to CASES in tests/cases.py for {missing}"


def test_every_observer_is_tested_by_itself() -> None:
    missing = [kind.__name__ for kind in leaves(Observer) - {type(observer) for observer in OBSERVERS}]
    assert not missing, f"add to OBSERVERS in tests/quantization/test_observers.py {missing}"


@pytest.mark.parametrize("base", [LogitLoss, FeatureLoss])
def test_every_loss_has_an_entry(base: type) -> None:
    used = {type(loss) for losses in LOSSES.values() for loss in losses.values()}
    missing = [kind.__name__ for kind in leaves(base) if kind not in used]
    assert not missing, f"add an entry to LOSSES in tests/cases.py for {missing}"


def test_every_export_target_has_a_line() -> None:
    listed = {target.values[0].__name__ for target in TARGETS}
    listed.add("export_coreml")  # its files are read back: they run on a Mac alone
    assert {name for name in lc.__all__ if name.startswith("export_")} == listed, "add a line to TARGETS"
