"""DigitsDataModule and CIFAR10DataModule."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule, DigitsDataModule, random_crop_and_flip

CLASSES = ("airplane", "automobile", "bird")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and two test images of each of three classes."""
    root = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    for split, num in (("train", 10), ("test", 2)):
        for name in CLASSES:
            folder = root / "cifar10" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.webp", lossless=True)
    return root


def images(data: CIFAR10DataModule, split: str) -> torch.Tensor:
    return getattr(data, split).images


def test_digits_are_normalized_and_split_alike_every_time():
    first, second = DigitsDataModule(), DigitsDataModule()
    for data in (first, second):
        data.setup("fit")
    for split, num in (("train", 1257), ("val", 180), ("test", 360)):
        (x, y), (x2, y2) = getattr(first, split).tensors, getattr(second, split).tensors
        assert x.shape == (num, 1, 8, 8)
        assert x.dtype == torch.float32
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        shares = y.bincount(minlength=10) / num
        assert shares.sub(0.1).abs().max() < 0.02
    x = first.train.tensors[0]
    assert x.mean().abs() < 1e-5
    assert abs(x.std() - 1) < 1e-3


def test_cifar_folders_are_decoded_exactly(root):
    data = CIFAR10DataModule(str(root))
    data.setup("test")
    expected = [pil_to_tensor(Image.open(path)) for path in sorted((root / "cifar10/test").glob("*/*"))]
    assert torch.equal(images(data, "test"), torch.stack(expected))
    x, y = next(iter(data.test_dataloader()))
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    torch.testing.assert_close(x, (torch.stack(expected) / 255 - mean) / std)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]


def test_validation_is_held_out_of_training(root):
    data = CIFAR10DataModule(str(root), val_size=6)
    data.setup("fit")
    assert len(data.train) == 24
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    flat = [images(data, split).flatten(1) for split in ("train", "val")]
    assert not (flat[0][:, None] == flat[1][None]).all(-1).any()
    again = CIFAR10DataModule(str(root), val_size=6)
    again.setup("fit")
    assert torch.equal(images(again, "val"), images(data, "val"))
    with pytest.raises(ValueError, match="val_size=30"):
        CIFAR10DataModule(str(root), val_size=30).setup("fit")


def test_all_images_can_be_used_for_training(root):
    data = CIFAR10DataModule(str(root), val_size=0, batch_size=8)
    module = lc.ClassificationModule("conv4", 3)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.global_step == 4
    assert "val/acc" not in trainer.callback_metrics
    assert "test/acc" in trainer.test(module, data, verbose=False)[0]


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror():
    torch.manual_seed(0)
    x = torch.randint(1, 256, (256, 3, 6, 5), dtype=torch.uint8)
    out = random_crop_and_flip(x)
    assert out.shape == x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    seen = set()
    for i in range(256):
        matches = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if torch.equal(
                out[i],
                padded[i, :, top : top + 6, left : left + 5].flip(2)
                if flip
                else padded[i, :, top : top + 6, left : left + 5],
            )
        ]
        assert matches
        seen.update(matches)
    assert {flip for *_, flip in seen} == {False, True}
    assert {top for top, *_ in seen} == {left for _, left, _ in seen} == set(range(9))


def test_training_batches_follow_the_seed(root):
    data = CIFAR10DataModule(str(root), val_size=0, batch_size=30)
    data.setup("fit")
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(next(iter(data.train_dataloader()))[0])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_workers_give_the_same_images(root):
    data = CIFAR10DataModule(str(root), num_workers=1)
    data.setup("test")
    assert torch.equal(next(iter(data.test_dataloader()))[0], data.test.__getitems__(range(6))[0])


def test_missing_root_names_the_key_and_the_fix(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere.*--data\.download=true"):
        CIFAR10DataModule(str(tmp_path / "nowhere")).setup("fit")
