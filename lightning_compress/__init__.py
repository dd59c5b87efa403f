"""Neural network compression as a property of a Lightning run; every name loads on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "AttentionTransfer": "distillation.features",
    "BNScale": "pruning.probe_scores",
    "Block": "pruning.patterns",
    "CRD": "distillation.features",
    "Catalogue": "models.catalogue.table",
    "Channels": "pruning.patterns",
    "ClassificationModule": "models.classification",
    "CompressionCLI": "cli",
    "CompressionMonitor": "reporting.monitor",
    "DIST": "distillation.logits",
    "DKD": "distillation.logits",
    "DistillationModule": "distillation.module",
    "ERK": "pruning.distributions",
    "FPGM": "pruning.scores",
    "FitNet": "distillation.features",
    "Fixed": "pruning.fixed",
    "GraSP": "pruning.probe_scores",
    "Histogram": "quantization.observers",
    "Int": "quantization.int_spec",
    "KD": "distillation.logits",
    "Keyed": "distillation.keyed",
    "LAMP": "pruning.scores",
    "Learned": "quantization.observers",
    "MSE": "quantization.observers",
    "Magnitude": "pruning.scores",
    "MeanTeacher": "distillation.teacher",
    "MinMax": "quantization.observers",
    "Mixup": "models.mixup",
    "Movement": "pruning.scores",
    "MovingAverage": "quantization.observers",
    "NM": "pruning.patterns",
    "Normalization": "distillation.image_conversion",
    "PackedFile": "packing.packed_file",
    "Peer": "distillation.teacher",
    "Percentile": "quantization.observers",
    "Pruning": "pruning.callback",
    "QATSchedule": "schedules",
    "QuantizationAwareTraining": "quantization.callback",
    "RKD": "distillation.features",
    "Ramp": "distillation.ramp",
    "Random": "pruning.scores",
    "RemovalLog": "channels.removal_log",
    "Report": "reporting.sparsity",
    "RewindLearningRate": "pruning.rewind",
    "RewindWeights": "pruning.rewind",
    "RigL": "pruning.growth",
    "SET": "pruning.growth",
    "SNIP": "pruning.probe_scores",
    "Schedule": "schedules",
    "Sensitivity": "quantization.sensitivity",
    "Shrunk": "channels.shrunk",
    "SimilarityPreserving": "distillation.features",
    "SynFlow": "pruning.probe_scores",
    "Targets": "targets",
    "Taylor": "pruning.scores",
    "Teacher": "distillation.teacher",
    "Uniform": "pruning.distributions",
    "Unstructured": "pruning.patterns",
    "WeightClustering": "clustering.callback",
    "backbones": "models.catalogue.listing",
    "calibrate": "quantization.calibrate",
    "carry_optimizer_state": "channels.optimizer_state",
    "export_executorch": "export.executorch",
    "export_onnx": "export.onnx.exporter",
    "export_program": "export.program",
    "finalize": "quantization.finalize",
    "float_copy": "quantization.finalize",
    "from_model_pruning": "migration",
    "load_model_pruning_checkpoint": "migration",
    "load_packed": "packing.reader",
    "report": "reporting.sparsity",
    "save_packed": "packing.writer",
    "sensitivity": "quantization.sensitivity",
    "shrink": "channels.shrink",
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
