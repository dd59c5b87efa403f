"""Neural network compression as a property of a Lightning run; every name loads on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "AttentionTransfer": "distillation.features",
    "BNScale": "pruning.probe_scores",
    "Block": "pruning.patterns",
    "CRD": "distillation.features",
    "Catalogue": "catalogue.table",
    "Channels": "pruning.patterns",
    "ClassificationModule": "modules.classification",
    "CompressionCLI": "cli",
    "CompressionMonitor": "callbacks.monitor",
    "DIST": "distillation.logits",
    "DKD": "distillation.logits",
    "DistillationModule": "modules.distillation",
    "ERK": "pruning.distributions",
    "FPGM": "pruning.scores",
    "FitNet": "distillation.features",
    "Fixed": "callbacks.fixed",
    "GraSP": "pruning.probe_scores",
    "Histogram": "quantization.observers",
    "Int": "quantization.integers",
    "KD": "distillation.logits",
    "Keyed": "distillation.keyed",
    "LAMP": "pruning.scores",
    "Learned": "quantization.observers",
    "MSE": "quantization.observers",
    "Magnitude": "pruning.scores",
    "MeanTeacher": "distillation.teacher",
    "MinMax": "quantization.observers",
    "Mixing": "modules.mixing",
    "Movement": "pruning.scores",
    "MovingAverage": "quantization.observers",
    "NM": "pruning.patterns",
    "Normalization": "distillation.conversion",
    "PackedFile": "packing.report",
    "Peer": "distillation.teacher",
    "Percentile": "quantization.observers",
    "Pruning": "callbacks.pruning",
    "QATSchedule": "schedules",
    "QuantizationAwareTraining": "callbacks.quantization",
    "RKD": "distillation.features",
    "Ramp": "distillation.ramp",
    "Random": "pruning.scores",
    "RemovalLog": "structure.log",
    "Report": "reporting.sparsity",
    "RewindLearningRate": "pruning.rewind",
    "RewindWeights": "pruning.rewind",
    "RigL": "pruning.growth",
    "SET": "pruning.growth",
    "SNIP": "pruning.probe_scores",
    "Schedule": "schedules",
    "Sensitivity": "reporting.sensitivity",
    "Shrunk": "callbacks.shrunk",
    "SimilarityPreserving": "distillation.features",
    "SynFlow": "pruning.probe_scores",
    "Targets": "targets",
    "Taylor": "pruning.scores",
    "Teacher": "distillation.teacher",
    "Uniform": "pruning.distributions",
    "Unstructured": "pruning.patterns",
    "WeightClustering": "callbacks.clustering",
    "backbones": "catalogue.listing",
    "calibrate": "quantization.calibration",
    "carry_optimizer_state": "structure.optimizer",
    "export_executorch": "export.executorch",
    "export_onnx": "export.onnx",
    "export_program": "export.program",
    "finalize": "export.plain",
    "float_copy": "export.plain",
    "from_model_pruning": "migration",
    "load_model_pruning_checkpoint": "migration",
    "load_packed": "packing.reader",
    "report": "reporting.sparsity",
    "save_packed": "packing.writer",
    "sensitivity": "reporting.sensitivity",
    "shrink": "structure.removal",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
