"""DetectionModule: which cells find which objects, the metric, and that it learns; the detector with C2f blocks."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.data import BoxesDataModule
from lightning_compress.models.average_precision import AveragePrecision
from lightning_compress.models.cell_targets import Cells, Detections, detect
from lightning_compress.models.networks import C2f, C2fDetector

CELLS = Cells.of(torch.zeros(1, 3, 64, 64), (8, 16))


def boxes(*corners: list[float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32)


def trainer(max_epochs: int = 1) -> Trainer:
    return Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def test_cells_are_those_of_the_flattened_maps() -> None:
    assert CELLS.strides.tolist() == [8.0] * 64 + [16.0] * 16
    assert CELLS.centers[9].tolist() == [12.0, 12.0]  # second row, second column
    assert CELLS.centers[65].tolist() == [24.0, 8.0]


def test_an_object_belongs_to_the_cells_around_its_center_on_the_map_of_its_size() -> None:
    truth = boxes([8, 8, 24, 24], [0, 0, 60, 60], [40, 40, 52, 52], [32, 0, 48, 16])
    labels, targets = CELLS.assign(truth[None], torch.tensor([[1, 0, -100, 0]]))
    found = [labels[0].eq(label).nonzero().flatten().tolist() for label in (1, 2)]
    around_16 = [row * 8 + column for row in (1, 2) for column in (1, 2)]
    around_40_8 = [row * 8 + column for row in (0, 1) for column in (4, 5)]
    around_30 = [64 + row * 4 + column for row in (1, 2) for column in (1, 2)]
    assert found == [sorted(around_40_8 + around_30), around_16]
    assert torch.equal(targets[0, around_16], truth[:1].expand(4, 4))
    assert torch.equal(targets[0, around_30], truth[1:2].expand(4, 4))


def test_the_smallest_of_several_objects_counts() -> None:
    truth = boxes([4, 4, 28, 28], [8, 8, 24, 24])
    for order in ([0, 1], [1, 0]):
        labels, targets = CELLS.assign(truth[None, order], torch.tensor([[0, 1]])[:, order])
        assert labels[0].unique().tolist() == [0, 2]
        assert torch.equal(targets[0, labels[0] == 2][0], truth[1])


def test_images_without_objects_are_background() -> None:
    labels, _ = CELLS.assign(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.long))
    assert labels.shape == (2, 80)
    assert not labels.any()


def test_decoding_inverts_the_distances() -> None:
    distances = torch.tensor([1.0, 0.5, 2.0, 3.0]).expm1().log()  # the inverse of softplus
    decoded = CELLS.decode(distances.expand(1, 80, 4))
    torch.testing.assert_close(decoded[0, 9], torch.tensor([12 - 8.0, 12 - 4.0, 12 + 16.0, 12 + 24.0]))
    torch.testing.assert_close(decoded[0, 65], torch.tensor([24 - 16.0, 8 - 8.0, 24 + 32.0, 8 + 48.0]))


def test_suppression_is_within_a_class() -> None:
    logits = torch.tensor([[0.0, 5.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 3.0], [9.0, 0.0, 0.0]])
    box = boxes([0, 0, 8, 8]).expand(4, 4)
    found = detect(logits, box)
    assert found.classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, logits.softmax(-1)[[0, 2], [1, 2]])


def test_average_precision_of_a_known_ranking() -> None:
    metric = AveragePrecision(3)
    truth = boxes([0, 0, 8, 8], [16, 16, 24, 24], [32, 32, 40, 40])
    # Right, wrong (taken already), right, missed; and a class with objects that are all missed.
    found = Detections(truth[[0, 0, 1]], torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long))
    metric.update(found, truth, torch.tensor([0, 0, 0]))
    assert metric.compute().item() == pytest.approx((1 + 2 / 3) / 3)
    metric.update(Detections(truth[:0], torch.zeros(0), torch.zeros(0, dtype=torch.long)), truth[:1], torch.tensor([2]))
    assert metric.compute().item() == pytest.approx((1 + 2 / 3) / 3 / 2)
    wrong_class = Detections(truth[:1], torch.tensor([0.95]), torch.tensor([1]))
    metric.update(wrong_class, truth[:0], torch.zeros(0, dtype=torch.long))
    assert metric.compute().item() == pytest.approx((1 + 2 / 3) / 3 / 2)


def test_precision_is_that_of_the_best_larger_recall() -> None:
    metric, truth = AveragePrecision(1), boxes([0, 0, 8, 8], [16, 16, 24, 24])
    found = Detections(
        boxes([50, 50, 60, 60], *truth.tolist()), torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.long)
    )
    metric.update(found, truth, torch.tensor([0, 0]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_a_block_concatenates_every_bottleneck() -> None:
    block = C2f(8, 16, num_blocks=2)
    assert block.join[0].in_channels == 32
    for parameter in block.blocks.parameters():
        nn.init.zeros_(parameter)  # a bottleneck of zeros with a residual returns its input
    x = torch.randn(2, 8, 4, 4)
    block.eval()
    left, right = block.split(x).chunk(2, 1)
    torch.testing.assert_close(block(x), block.join(torch.cat([left, right, right, right], 1)))


def test_detection_is_learned() -> None:
    torch.manual_seed(0)
    module = lc.DetectionModule(C2fDetector(2, width=4), 2, optimizer=lambda params: torch.optim.AdamW(params, lr=5e-3))
    data = BoxesDataModule(batch_size=8, num_train=256)
    learning = trainer(5)
    (before,) = learning.test(module, data, verbose=False)
    learning.fit(module, data)
    (after,) = learning.test(module, data, verbose=False)
    assert before["test/ap50"] < 0.05
    assert after["test/ap50"] > 0.4
    (found,) = module.detect(data.datasets["test"][0][0][None])
    assert len(found.boxes)


def test_other_strides_than_those_of_the_network_are_named() -> None:
    module = lc.DetectionModule(C2fDetector(2, width=4), 2, strides=(8,))
    batch = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, dtype=torch.long), boxes([0, 0, 8, 8])[None])
    with pytest.raises(ValueError, match=r"returns 80 cells, but strides=\(8,\) give 64: set strides"):
        trainer().validate(module, DataLoader([batch], batch_size=None), verbose=False)
