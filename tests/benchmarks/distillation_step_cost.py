"""Cost of a distilled training step: ResNet-20 distilled from ResNet-56, 32x32 images, batch 128, SGD, KD.

    python tests/benchmarks/distillation_step_cost.py [--rounds 15] [--steps 8] [--accelerator cpu|gpu]

All arms are real fits of Lightning's Trainer, run in turns; a step is timed from one batch start to the next.
``distilled`` is compared with ``both``, a plain step of the student in which the teacher's forward pass in eval mode is
made as well, and nothing is done with it. In ``cached`` the teacher's logits are on disk already; it is compared with
the plain step, and with the plain step on the same keyed data.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings

import timm
import torch
from interleaved import medians, ratio
from lightning.pytorch import Trainer
from step_cost import Plain, Stopwatch
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc


def fit(module: object, data: DataLoader, accelerator: str) -> list[float]:
    """Step times of one fit."""
    watch = Stopwatch()
    trainer = Trainer(
        max_epochs=1, accelerator=accelerator, devices=1, callbacks=[watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return watch.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accelerator", default="cpu")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    torch.manual_seed(0)
    images = torch.randn(128 * (args.steps + 2), 3, 32, 32)
    samples = TensorDataset(images, torch.randint(0, 10, (len(images),)))
    data, keyed = DataLoader(samples, batch_size=128), DataLoader(lc.Keyed(samples), batch_size=128)
    teacher = timm.create_model("resnet56_cifar", num_classes=10).eval()

    class Both(Plain):
        """The student's step and the teacher's forward pass."""

        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            with torch.no_grad():
                teacher.to(batch[0].device)(batch[0])
            return loss

    class KeyedPlain(Plain):
        """The plain step on data with keys."""

        def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> object:
            return batch.sample  # type: ignore[attr-defined]

    with tempfile.TemporaryDirectory() as cache:
        results = medians(
            {
                "plain": lambda: fit(Plain(), data, args.accelerator),
                "both": lambda: fit(Both(), data, args.accelerator),
                "distilled": lambda: fit(lc.DistillationModule(Plain(), teacher), data, args.accelerator),
                "keyed": lambda: fit(KeyedPlain(), keyed, args.accelerator),
                "cached": lambda: fit(lc.DistillationModule(Plain(), teacher, cache=cache), keyed, args.accelerator),
            },
            rounds=args.rounds,
        )
    print(f"torch {torch.__version__}, {args.accelerator}, {torch.get_num_threads()} threads")
    for name in ("plain", "both"):
        print(f"{name}: {1e3 * sorted(results[name])[len(results[name]) // 2]:.2f} ms")
    print(f"distilled step / plain step and teacher's forward pass: {ratio(results, 'distilled', 'both')}")
    print(f"step with cached logits / plain step on keyed data:     {ratio(results, 'cached', 'keyed')}")
    print(f"step with cached logits / plain step:                   {ratio(results, 'cached', 'plain')}")


if __name__ == "__main__":
    main()
