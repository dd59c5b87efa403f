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
from typing import Any

import timm
import torch
from interleaved import medians, ratio
from step_cost import Plain, fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc


class Both(Plain):
    """A plain step of the student, and the teacher's forward pass."""

    def __init__(self, teacher: nn.Module, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.teacher = teacher.requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad():
            self.teacher.eval()(batch[0])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


class KeyedPlain(Plain):
    """The plain step on data with keys."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch.sample


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

    with tempfile.TemporaryDirectory() as cache:
        results = medians(
            {
                "plain": lambda: fit(Plain(), [], data, args.accelerator),
                "both": lambda: fit(Both(teacher), [], data, args.accelerator),
                "distilled": lambda: fit(lc.DistillationModule(Plain(), teacher), [], data, args.accelerator),
                "keyed": lambda: fit(KeyedPlain(), [], keyed, args.accelerator),
                "cached": lambda: fit(
                    lc.DistillationModule(Plain(), teacher, cache=cache), [], keyed, args.accelerator
                ),
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
