"""The report of a run as plain data, which every file, table and picture of the run is made of."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_compress.atomic_files import atomic_write
from lightning_compress.reporting.report_records import (
    LayerResult,
    ModelResult,
    SensitivityMap,
    SizeStage,
    WeightHistogram,
)

REPORT_FILE = "report.json"
"""Name of the report in the directory of a run."""

SCHEMA_VERSION = 1
"""Version of the keys of ``report.json``, which are the attributes of the classes below."""

_DEPLOYED = ("fitted", "channels removed", "packed", "export")


@dataclass(frozen=True)
class RunReport:
    """Report of a run.

    Attributes:
        name: Name of the run.
        command: Command line.
        created: Time of the report, ISO 8601.
        models: Measured models and files, in the order of the tables.
        sizes: Size after each stage, the dense network first.
        layers: Weights of the deployed network.
        histograms: Histograms of the largest weights.
        schedules: Series by name, as pairs of step and value.
        sensitivities: Sensitivity of the layers, if it was measured.
        unquantized_ops: Calls of a quantized model that compute in FP32.
        techniques: Names of the techniques.
        notes: Sentences on limits of the result.
        failures: Sentences on stages that failed after the training.
        environment: Versions, commit, CPU and threads.
        seed: Seed of the run, or ``None``.
        checkpoint: Tested checkpoint, relative to the directory of the run, or an empty string.
        config: Configuration of the run.
        schema_version: Version of the keys.

    >>> report = RunReport(name="digits", command="lightning-compress run digits.yaml", created="2026-01-01T00:00:00")
    >>> RunReport.from_json(report.to_json()) == report
    True
    """

    name: str
    command: str
    created: str
    models: tuple[ModelResult, ...] = ()
    sizes: tuple[SizeStage, ...] = ()
    layers: tuple[LayerResult, ...] = ()
    histograms: tuple[WeightHistogram, ...] = ()
    schedules: dict[str, tuple[tuple[int, float], ...]] = dataclasses.field(default_factory=dict)
    sensitivities: tuple[SensitivityMap, ...] = ()
    unquantized_ops: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    checkpoint: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def baseline(self) -> ModelResult | None:
        """The model that the result is compared with: the dense baseline, or ``None``."""
        return next((model for model in self.models if model.role == "baseline"), None)

    @property
    def result(self) -> ModelResult | None:
        """The model that is deployed: the last one that was tested; an exported file stands last."""
        candidates = [m for m in self.models if m.role in _DEPLOYED and m.metrics]
        return candidates[-1] if candidates else None

    @property
    def weights(self) -> LayerResult:
        """Totals of all layers."""
        return LayerResult(
            "all weights",
            (),
            sum(layer.num_weights for layer in self.layers),
            sum(layer.num_zeros for layer in self.layers),
            max((layer.num_values for layer in self.layers), default=0),
        )

    def file(self, name: str) -> ModelResult | None:
        """Return the measurements of a file, or ``None``."""
        return next((model for model in self.models if model.file == name), None)

    def to_json(self) -> str:
        """Return the report as a JSON object with the attributes as keys."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> RunReport:
        """Read a report.

        Raises:
            ValueError: If the text is not a report, or has another schema version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"It is not JSON: {error}.") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"It is not a report of this version: schema_version is {version}, not {SCHEMA_VERSION}.")
        try:
            return _build(cls, data)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"It is not a complete report: {error}.") from error

    def write(self, directory: Path) -> Path:
        """Write ``report.json`` to a directory, in place of an older one, and return its path."""
        with atomic_write(directory / REPORT_FILE) as partial:
            partial.write_text(self.to_json())
        return directory / REPORT_FILE


def read_report(run: str | Path) -> tuple[Path, RunReport]:
    """Read the report of a run.

    Args:
        run: Directory of the run, or its ``report.json``.

    Returns:
        Directory and report.

    Raises:
        ValueError: If there is no such file, or if it is not a report.
    """
    path = Path(run)
    path = path / REPORT_FILE if path.is_dir() else path
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ValueError(f"{path} cannot be read ({reason}): give the directory of a finished run.") from error
    try:
        return path.parent, RunReport.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error} Give the directory of a finished run.") from error


def _build(hint: Any, data: Any) -> Any:
    """Build a value of a type hint from JSON: dataclasses, tuples, dicts with tuples, and plain values."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _build(hints[name], value) for name, value in data.items() if name in hints})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        each = arguments[:1] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(item, value) for item, value in zip(each, data, strict=True))
    if origin is dict:
        return {key: _build(arguments[1], value) for key, value in data.items()}
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _build(arguments[0], data)
    return data
