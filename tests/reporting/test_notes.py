"""No sentence on an absent gain is hidden."""

from __future__ import annotations

import dataclasses

from lightning_compress.reporting.notes import notes_on
from lightning_compress.reporting.run_report import RunReport
from tests.reporting.conftest import timing


def says(report: RunReport, words: str) -> bool:
    return any(words in note for note in notes_on(report))


def test_sparsity_is_no_speed_up_unless_channels_were_removed(report: RunReport) -> None:
    assert says(report, "Sparsity alone makes neither the model faster")
    removed = dataclasses.replace(report.models[2], role="channels removed")
    shrunk = dataclasses.replace(report, models=(*report.models, removed))
    assert says(shrunk, "Sparsity alone")  # what is left is sparse, too
    layers = tuple(dataclasses.replace(layer, num_zeros=layer.num_weights // 20) for layer in report.layers)
    assert says(dataclasses.replace(report, layers=layers), "Sparsity alone")
    assert not says(dataclasses.replace(shrunk, layers=layers), "Sparsity alone")


def test_a_slower_file_is_named(report: RunReport) -> None:
    assert not says(report, "No speed-up")
    slower = dataclasses.replace(report.models[-1], timing=timing(1.58))
    told = dataclasses.replace(report, models=(*report.models[:-1], slower))
    assert says(told, "No speed-up in ONNX Runtime on this CPU: FP32 ONNX takes 1.59 ms, INT8 ONNX 1.58 ms.")


def test_a_file_for_another_runtime_is_not_compared_in_onnx_runtime(report: RunReport) -> None:
    slower = dataclasses.replace(report.models[-1], timing=timing(1.58))
    config = {"quantization": {"backend": {"class_path": "lightning_compress.TensorRT"}}}
    told = dataclasses.replace(report, models=(*report.models[:-1], slower), config=config)
    assert not says(told, "No speed-up")
    assert says(told, f"{slower.file} is for TensorRT; its latency is that of ONNX Runtime on this CPU.")


def test_what_was_not_measured_is_said(report: RunReport) -> None:
    assert says(dataclasses.replace(report, models=report.models[:3]), "No latency was measured.")
    assert says(dataclasses.replace(report, models=report.models[:3]), "No compressed file was written.")
    assert says(report, "Energy is not measurable here")


def test_few_bits_and_clusters_are_for_the_packed_file(report: RunReport) -> None:
    assert not says(report, "Fewer than 8 bits")
    layers = (dataclasses.replace(report.layers[0], bits=4),)
    few = dataclasses.replace(report, layers=layers, techniques=("WeightClustering",))
    assert says(few, "Fewer than 8 bits")
    assert says(few, "Clusters make only the packed file smaller")


def test_a_file_that_is_not_smaller_is_named(report: RunReport) -> None:
    large = dataclasses.replace(report.models[3], num_bytes=2_000_000)
    assert says(dataclasses.replace(report, models=(large,)), "model.packed is not smaller than the dense tensors")
