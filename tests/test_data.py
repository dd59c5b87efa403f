"""Data modules of the recipes."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import lightning_compress as lc
from lightning_compress.data import (
    BoxesDataModule,
    CIFAR10DataModule,
    DigitsDataModule,
    ImageFolderDataModule,
    ShapesDataModule,
    TaggedTokensDataModule,
    decoded_images,
    random_crop_and_flip,
)

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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache for any number of images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded_images, "FEWEST_CACHED", 5)
    return tmp_path / "cache/lightning-compress"


def decoded(root, split="train"):
    """The images of a split, and how many of them were decoded."""
    data, calls = CIFAR10DataModule(str(root)), []
    decode = decoded_images.pil_to_tensor
    decoded_images.pil_to_tensor = lambda image: calls.append(image) or decode(image)
    try:
        return data.load(split), len(calls)
    finally:
        decoded_images.pil_to_tensor = decode


def test_images_are_decoded_once(root, cache, tmp_path, capsys):
    here = tmp_path / "images"
    shutil.copytree(root, here)
    (images_, labels), num = decoded(here)
    assert num == 30
    assert "Decoding" in capsys.readouterr().out
    (again, labels_again), num = decoded(here)
    assert num == 0
    assert torch.equal(again, images_)
    assert torch.equal(labels_again, labels)
    assert capsys.readouterr().out == ""
    # A changed image, a damaged file and another split are decoded.
    path = next((here / "cifar10/train").rglob("*.webp"))
    Image.new("RGB", (32, 32)).save(path, lossless=True)
    (changed, _), num = decoded(here)
    assert num == 30
    assert not torch.equal(changed, images_)
    for file in cache.iterdir():
        file.write_bytes(b"damaged")
    assert decoded(here)[1] == 30
    assert decoded(here, "test")[1] == 6
    assert len(list(cache.iterdir())) == 3


def test_few_images_and_a_read_only_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    assert decoded(root)[1] == 30
    assert not (tmp_path / "file").exists(), "few images are not cached"
    monkeypatch.setattr(decoded_images, "FEWEST_CACHED", 5)
    (tmp_path / "file").touch()
    assert decoded(root)[1] == 30, "a directory cannot be made, and nothing is lost"


@pytest.fixture
def folders(tmp_path):
    """Images of several sizes in two classes."""
    torch.manual_seed(0)
    for split, num in (("train", 5), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                pixels = torch.randint(256, (40 + i, 50, 3), dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path


def test_image_folders_through_timm(folders):
    data = ImageFolderDataModule(str(folders), image_size=32, batch_size=4, num_workers=0)
    data.setup("fit")
    data.setup("test")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (4, 3, 32, 32)
    assert set(y.tolist()) <= {0, 1}
    assert [len(data.train), len(data.val), len(data.test)] == [10, 6, 6]
    assert data.test.root == str(folders / "val") or data.test.root == folders / "val"
    # Evaluation is deterministic: the center, normalized as the networks of timm expect it.
    first, second = data.test[0][0], data.test[0][0]
    assert torch.equal(first, second)
    assert first.mean().abs() < 0.5
    (folders / "test").mkdir()
    shutil.copytree(folders / "val/cat", folders / "test/cat")
    shutil.rmtree(folders / "val")
    data.setup("fit")
    data.setup("test")
    assert data.val_dataloader() == []
    assert len(data.test) == 3


def test_a_dry_run_needs_no_images(tmp_path):
    data = ImageFolderDataModule("nowhere", image_size=32, batch_size=2, num_workers=0, dry_run=True, num_classes=7)
    data.setup("fit")
    data.setup("test")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert len(batches) == 2
        assert batches[0][0].shape == (2, 3, 32, 32)
        assert all(int(y.max()) < 7 for _, y in batches)
    real = ImageFolderDataModule("nowhere")
    with pytest.raises(ValueError, match=r"data\.root='nowhere' does not contain train/<class>/.*--data\.dry_run=true"):
        real.setup("fit")


def test_shapes_and_sentences_are_the_same_every_time():
    for make in (ShapesDataModule, TaggedTokensDataModule):
        first, second, other = make(num_train=16), make(num_train=16), make(num_train=16, seed=1)
        for data in (first, second, other):
            data.setup("fit")
        batches = [next(iter(data.test_dataloader())) for data in (first, second, other)]
        flat = [torch.cat([t.flatten().float() for t in (b.values() if isinstance(b, dict) else b)]) for b in batches]
        assert torch.equal(flat[0], flat[1])
        assert not torch.equal(flat[0], flat[2])
        assert [len(first.datasets[split]) for split in ("train", "val", "test")] == [16, 2, 4]


def test_shapes_have_their_colors():
    data = ShapesDataModule(image_size=40, num_train=64, batch_size=64)
    data.setup("fit")
    x, masks = next(iter(data.train_dataloader()))
    means = torch.stack([x.movedim(1, -1)[masks == label].mean(0) for label in range(3)])
    torch.testing.assert_close(means, torch.tensor([[0.0, 0, 0], [1, 0.5, 0.5], [0.5, 1, 0.5]]), atol=0.02, rtol=0)


def test_tags_follow_their_rule():
    data = TaggedTokensDataModule(num_train=64, batch_size=64)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for tokens, mask, labels in zip(*batch.values(), strict=True):
        shift = 1 in tokens.tolist()
        expected = torch.where(mask.bool(), (tokens + shift) % 5, -100)
        assert torch.equal(labels, expected)
        assert torch.equal(tokens > 0, mask.bool())
    marked = (batch["input_ids"] == 1).any(1).float().mean()
    assert 0.3 < marked < 0.7


def test_boxes_end_where_their_objects_end():
    data = BoxesDataModule(image_size=64, num_train=64)
    data.setup("fit")
    images, classes, boxes = data.datasets["train"].tensors
    assert set(map(tuple, classes.tolist())) == {(0, 1), (-100, 1)}
    assert (classes[:, 0] == -100).float().mean() < 0.3
    # Squares are green, 1 inside; the rows next to them are 0, or 0.5 in a disc.
    inside, outside = [], []
    for image, (left, top, right, bottom) in zip(images[:, 1], boxes[:, 1].round().long().tolist(), strict=True):
        columns = slice(left + 1, right - 1)
        inside += [image[top + 1, columns].mean(), image[bottom - 2, columns].mean()]
        outside += [image[row, columns].mean() for row in (top - 2, bottom + 1) if 0 <= row < 64]
    assert abs(sum(inside) / len(inside) - 1) < 0.02
    assert sum(outside) / len(outside) < 0.2
