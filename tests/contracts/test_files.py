"""What training has made zero is the integer zero in the file that is deployed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightning_compress as lc
from tests.cases import RAMP, Loader, Net, trainer

onnx = pytest.importorskip("onnx")

TARGETS = lc.Targets(exclude=("conv1",))  # whose input channels are no multiple of a pattern's
QUANTIZING = lc.QATSchedule(observe=0, fake_quantize=2, freeze_observers=6, freeze_batch_norm=8)


def integers_in(path: Path) -> list[np.ndarray]:
    """The weights of a file."""
    constants = [onnx.numpy_helper.to_array(constant) for constant in onnx.load(path).graph.initializer]
    return [constant for constant in constants if constant.dtype == np.int8 and constant.ndim > 1]


@pytest.mark.filterwarnings("ignore:.*has no VNNI:UserWarning")
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(
    "pruning",
    [
        lambda: lc.Pruning(0.8, pattern=lc.Unstructured(), schedule=RAMP),
        lambda: lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=RAMP, targets=TARGETS),
    ],
    ids=["unstructured", "2:4"],
)
def test_zeros_of_a_fit_are_integer_zeros_in_the_file(pruning: Any, granularity: Any, tmp_path: Path) -> None:
    model, inputs = Net(), next(iter(Loader()))[0]
    numbers = lc.Int(8, granularity=granularity)
    quantization = lc.QuantizationAwareTraining(weights=numbers, schedule=QUANTIZING, example_inputs=inputs)
    trainer([pruning(), quantization]).fit(model, Loader())
    lc.export_onnx(model, tmp_path / "full.onnx", inputs, reduce_range=False)
    lc.export_onnx(model, tmp_path / "safe.onnx", inputs)
    written, safe = integers_in(tmp_path / "full.onnx"), integers_in(tmp_path / "safe.onnx")
    deployed = lc.finalize(model)
    assert len(written) == len(safe) == 3
    for layer in (deployed.conv1, deployed.conv2, deployed.fc):
        weight = layer.weight.numpy()
        zero = weight == 0
        same = [each for each in (*written, *(each.T for each in written)) if each.shape == weight.shape]
        coarser = [each for each in (*safe, *(each.T for each in safe)) if each.shape == weight.shape]
        assert zero.sum() > 0 or layer is deployed.conv1
        # No more zeros and no fewer: the integers are those of training.
        assert any(np.array_equal(each == 0, zero) for each in same)
        # A larger scale makes more weights zero, and never one that was.
        assert any((each[zero] == 0).all() for each in coarser)
