"""Neural network compression for PyTorch Lightning: pruning, clustering, quantization, distillation.

``import lightning_compress as lc`` is cheap: each public name loads its module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

# Editors and type checkers read these imports; at run time _HOME maps each name to its module.
if TYPE_CHECKING:
    from lightning_compress.channels.optimizer_state import carry_optimizer_state as carry_optimizer_state
    from lightning_compress.channels.removal_log import RemovalLog as RemovalLog
    from lightning_compress.channels.shrink import shrink as shrink
    from lightning_compress.channels.shrunk import Shrunk as Shrunk
    from lightning_compress.cli.compression import CompressionCLI as CompressionCLI
    from lightning_compress.clustering.callback import WeightClustering as WeightClustering
    from lightning_compress.clustering.size_budget import quantize_to_size as quantize_to_size
    from lightning_compress.clustering.size_callback import SizeBudget as SizeBudget
    from lightning_compress.distillation.features import CRD as CRD
    from lightning_compress.distillation.features import RKD as RKD
    from lightning_compress.distillation.features import AttentionTransfer as AttentionTransfer
    from lightning_compress.distillation.features import FitNet as FitNet
    from lightning_compress.distillation.features import SimilarityPreserving as SimilarityPreserving
    from lightning_compress.distillation.image_conversion import Normalization as Normalization
    from lightning_compress.distillation.keyed import Keyed as Keyed
    from lightning_compress.distillation.logits import DIST as DIST
    from lightning_compress.distillation.logits import DKD as DKD
    from lightning_compress.distillation.logits import KD as KD
    from lightning_compress.distillation.logits import LogitMSE as LogitMSE
    from lightning_compress.distillation.module import DistillationModule as DistillationModule
    from lightning_compress.distillation.ramp import Ramp as Ramp
    from lightning_compress.distillation.teacher import MeanTeacher as MeanTeacher
    from lightning_compress.distillation.teacher import Peer as Peer
    from lightning_compress.distillation.teacher import Teacher as Teacher
    from lightning_compress.export.coreml import export_coreml as export_coreml
    from lightning_compress.export.executorch import export_executorch as export_executorch
    from lightning_compress.export.litert import export_litert as export_litert
    from lightning_compress.export.onnx.exporter import export_onnx as export_onnx
    from lightning_compress.export.openvino import export_openvino as export_openvino
    from lightning_compress.export.program import export_program as export_program
    from lightning_compress.migration import from_model_pruning as from_model_pruning
    from lightning_compress.migration import load_model_pruning_checkpoint as load_model_pruning_checkpoint
    from lightning_compress.models.catalogue.listing import backbones as backbones
    from lightning_compress.models.catalogue.table import Catalogue as Catalogue
    from lightning_compress.models.classification import ClassificationModule as ClassificationModule
    from lightning_compress.models.detection import DetectionModule as DetectionModule
    from lightning_compress.models.mixup import Mixup as Mixup
    from lightning_compress.models.positions import SegmentationModule as SegmentationModule
    from lightning_compress.models.positions import TokenClassificationModule as TokenClassificationModule
    from lightning_compress.packing.packed_file import PackedFile as PackedFile
    from lightning_compress.packing.reader import load_packed as load_packed
    from lightning_compress.packing.writer import save_packed as save_packed
    from lightning_compress.pruning.bn_scale import BNScale as BNScale
    from lightning_compress.pruning.callback import Pruning as Pruning
    from lightning_compress.pruning.distributions import ERK as ERK
    from lightning_compress.pruning.distributions import Uniform as Uniform
    from lightning_compress.pruning.fixed import Fixed as Fixed
    from lightning_compress.pruning.growth import SET as SET
    from lightning_compress.pruning.growth import RigL as RigL
    from lightning_compress.pruning.patterns import NM as NM
    from lightning_compress.pruning.patterns import Block as Block
    from lightning_compress.pruning.patterns import Unstructured as Unstructured
    from lightning_compress.pruning.probe_scores import SNIP as SNIP
    from lightning_compress.pruning.probe_scores import GraSP as GraSP
    from lightning_compress.pruning.probe_scores import SynFlow as SynFlow
    from lightning_compress.pruning.rewind import RewindLearningRate as RewindLearningRate
    from lightning_compress.pruning.rewind import RewindWeights as RewindWeights
    from lightning_compress.pruning.scores import FPGM as FPGM
    from lightning_compress.pruning.scores import LAMP as LAMP
    from lightning_compress.pruning.scores import Magnitude as Magnitude
    from lightning_compress.pruning.scores import Movement as Movement
    from lightning_compress.pruning.scores import Random as Random
    from lightning_compress.pruning.scores import Taylor as Taylor
    from lightning_compress.pruning.structured_patterns import Channels as Channels
    from lightning_compress.pruning.structured_patterns import Depth as Depth
    from lightning_compress.quantization.backend import Backend as Backend
    from lightning_compress.quantization.backend import LiteRT as LiteRT
    from lightning_compress.quantization.backend import OnnxRuntime as OnnxRuntime
    from lightning_compress.quantization.backend import TensorRT as TensorRT
    from lightning_compress.quantization.calibrate import calibrate as calibrate
    from lightning_compress.quantization.callback import QuantizationAwareTraining as QuantizationAwareTraining
    from lightning_compress.quantization.finalize import finalize as finalize
    from lightning_compress.quantization.finalize import float_copy as float_copy
    from lightning_compress.quantization.int_spec import Int as Int
    from lightning_compress.quantization.observers import MSE as MSE
    from lightning_compress.quantization.observers import Histogram as Histogram
    from lightning_compress.quantization.observers import Learned as Learned
    from lightning_compress.quantization.observers import MinMax as MinMax
    from lightning_compress.quantization.observers import MovingAverage as MovingAverage
    from lightning_compress.quantization.observers import Percentile as Percentile
    from lightning_compress.quantization.sensitivity import Sensitivity as Sensitivity
    from lightning_compress.quantization.sensitivity import sensitivity as sensitivity
    from lightning_compress.reporting.monitor import CompressionMonitor as CompressionMonitor
    from lightning_compress.reporting.sparsity import Report as Report
    from lightning_compress.reporting.sparsity import report as report
    from lightning_compress.schedules import QATSchedule as QATSchedule
    from lightning_compress.schedules import Schedule as Schedule
    from lightning_compress.targets import Targets as Targets

_HOME = {
    "AttentionTransfer": "distillation.features",
    "Backend": "quantization.backend",
    "BNScale": "pruning.bn_scale",
    "Block": "pruning.patterns",
    "CRD": "distillation.features",
    "Catalogue": "models.catalogue.table",
    "Channels": "pruning.structured_patterns",
    "ClassificationModule": "models.classification",
    "CompressionCLI": "cli.compression",
    "CompressionMonitor": "reporting.monitor",
    "DIST": "distillation.logits",
    "DKD": "distillation.logits",
    "Depth": "pruning.structured_patterns",
    "DetectionModule": "models.detection",
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
    "LiteRT": "quantization.backend",
    "LogitMSE": "distillation.logits",
    "MSE": "quantization.observers",
    "Magnitude": "pruning.scores",
    "MeanTeacher": "distillation.teacher",
    "MinMax": "quantization.observers",
    "Mixup": "models.mixup",
    "Movement": "pruning.scores",
    "MovingAverage": "quantization.observers",
    "NM": "pruning.patterns",
    "Normalization": "distillation.image_conversion",
    "OnnxRuntime": "quantization.backend",
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
    "SegmentationModule": "models.positions",
    "Sensitivity": "quantization.sensitivity",
    "Shrunk": "channels.shrunk",
    "SimilarityPreserving": "distillation.features",
    "SizeBudget": "clustering.size_callback",
    "SynFlow": "pruning.probe_scores",
    "Targets": "targets",
    "Taylor": "pruning.scores",
    "Teacher": "distillation.teacher",
    "TensorRT": "quantization.backend",
    "TokenClassificationModule": "models.positions",
    "Uniform": "pruning.distributions",
    "Unstructured": "pruning.patterns",
    "WeightClustering": "clustering.callback",
    "backbones": "models.catalogue.listing",
    "calibrate": "quantization.calibrate",
    "carry_optimizer_state": "channels.optimizer_state",
    "export_coreml": "export.coreml",
    "export_executorch": "export.executorch",
    "export_litert": "export.litert",
    "export_onnx": "export.onnx.exporter",
    "export_openvino": "export.openvino",
    "export_program": "export.program",
    "finalize": "quantization.finalize",
    "float_copy": "quantization.finalize",
    "from_model_pruning": "migration",
    "load_model_pruning_checkpoint": "migration",
    "load_packed": "packing.reader",
    "quantize_to_size": "clustering.size_budget",
    "report": "reporting.sparsity",
    "save_packed": "packing.writer",
    "sensitivity": "quantization.sensitivity",
    "shrink": "channels.shrink",
}
_RENAMED = {"Mixing": "Mixup"}  # old names, until version 0.2

__all__ = sorted(_HOME)

if not TYPE_CHECKING:  # or else a misspelled name would pass as Any

    def __getattr__(name: str) -> Any:
        if name in _RENAMED:
            new = _RENAMED[name]
            warn(f"lc.{name} is now lc.{new}; the old name will be removed in 0.2.", FutureWarning, stacklevel=2)
            name = new
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
