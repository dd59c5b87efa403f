"""How much each layer minds fewer bits, and the numbers of bits that fit a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities import CombinedLoader
from rich.console import Console
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.cli.compression import CompressionCLI
from lightning_compress.cli.run_directory import write_new
from lightning_compress.models.weights import load_weights_
from lightning_compress.quantization.mixed_precision import Effect, as_numbers, choose
from lightning_compress.trainer.probe import TrainingProbe

# What of the Trainer belongs to a fit, and what is said of it instead.
_ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "callbacks": None}


def sensitivity(arguments: Sequence[str]) -> None:
    """Measures how the training loss rises with fewer bits, prints and writes that, and chooses bits for a budget.

    Args:
        arguments: A recipe as ``--config=FILE``, and what :class:`SensitivityCLI` adds.
    """
    cli = SensitivityCLI(args=[*arguments], run=False, run_name="sensitivity")
    console = Console()
    with cli.refusals():
        found = cli.measure()
        console.print(found)
        written = write_new(cli.directory / "sensitivity.csv", found.to_csv())
        try:
            found.figure(written.with_suffix(".png"))
        except ImportError as error:
            console.print(error, markup=False)
        console.print(f"Everything of this run is in {cli.directory}.", soft_wrap=True)
        if cli.budget:
            console.print(_conclude(cli, choose(found.effects, **cli.budget)), soft_wrap=True)


class SensitivityCLI(CompressionCLI):
    """Builds what a recipe describes on one device, without techniques, callbacks and loggers."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what is measured and chosen, and the arguments of ``fit``, whose configurations can be given."""
        super().add_arguments_to_parser(parser)
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        parser.add_method_arguments(Trainer, "fit", skip=skip)
        parser.add_argument("--num_batches", type=int, default=8, help="Training batches that the loss is a mean of.")
        parser.add_argument("--bits", type=str, default="2,4,8", help="Number of bits to measure, 2 to 8.")
        parser.add_argument("--targets", type=lc.Targets, default=lc.Targets(), help="Which layers.")
        parser.add_argument("--max_bytes", type=int | None, default=None, help="Most bytes of all layers' integers.")
        parser.add_argument("--mean_bits", type=float | None, default=None, help="Or most bits of a weight on average.")
        parser.add_argument("--out", type=str | None, default=None, help="Directory to write into.")

    def before_instantiate_classes(self) -> None:
        """Leaves out of the Trainer what belongs to a fit."""
        super().before_instantiate_classes()
        self.bits = _numbers(self.config.bits)
        self.budget = {key: self.config[key] for key in ("max_bytes", "mean_bits") if self.config[key] is not None}
        if len(self.budget) > 1:
            raise ValueError("Give either --max_bytes or --mean_bits, not both.")
        self.config.trainer.default_root_dir = self.config.out or self.config.trainer.default_root_dir
        for key, value in _ALONE.items():
            self.config.trainer[key] = value

    def own_callbacks(self) -> list[Callback]:
        """None: techniques belong to a fit."""
        return []

    def measure(self) -> lc.Sensitivity:
        """The rise of the loss of ``training_step`` in eval mode.

        Raises:
            ValueError: For manual optimization, whose ``training_step`` returns no loss.
        """
        if not self.model.automatic_optimization:
            raise ValueError(
                f"{type(self.model).__name__} optimizes by hand, so that its training_step gives no loss to measure: "
                "call lightning_compress.sensitivity in Python, with a loss of your own."
            )
        self.prepare()
        probe = TrainingProbe(self.trainer, self.model, None, 0)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            self.record.started = True  # errors are now of the user's code
            assert isinstance(model, LightningModule)
            model.trainer = self.trainer  # copies are without
            probe.model, probe.batch = model, batch
            value = probe.loss()
            self.record.started = False
            return value

        return lc.sensitivity(probe.model, self.batches(), loss=loss, bits=self.bits, targets=self.config_init.targets)

    def prepare(self) -> None:
        """Makes data and model ready as a fit would, and loads the checkpoint's weights."""
        self.trainer._data_connector.attach_data(self.model, datamodule=self.datamodule)
        self.trainer.strategy.connect(self.model)
        self.trainer._data_connector.prepare_data()
        if self.datamodule is not None:
            self.datamodule.setup("fit")
        self.model.setup("fit")
        self.model.configure_model()
        if self.config.ckpt_path:
            load_weights_(self.model, self.config.ckpt_path)
        self.trainer.precision_plugin.convert_module(self.model)
        self.model.to(self.trainer.strategy.root_device)

    def batches(self) -> list[Any]:
        """The first training batches as ``training_step`` gets them."""
        loader = _request_dataloader(self.trainer.fit_loop._data_source)
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        return [self._as_in_training(batch) for batch, _, _ in islice(combined, self.config.num_batches)]

    def _as_in_training(self, batch: Any) -> Any:
        batch = self.model._on_before_batch_transfer(self.trainer.precision_plugin.convert_input(batch))
        return self.trainer.strategy.batch_to_device(batch)


def _numbers(text: str) -> tuple[int, ...]:
    numbers = text.strip("[]()").split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise ValueError(f"--bits={text} must be numbers with commas between them, such as 2,4,8.")
    return tuple(map(int, numbers))


def _conclude(cli: SensitivityCLI, chosen: Sequence[Effect]) -> str:
    """Writes the choice for a recipe and says what it takes."""
    weights = {layer: {"bits": integers.bits} for layer, integers in as_numbers(chosen).items() if integers}
    num_bits, num_weights = sum(e.bits * e.num_weights for e in chosen), sum(e.num_weights for e in chosen)
    says = (
        f"{sum(e.num_bytes for e in chosen):,} bytes of weights, {num_bits / num_weights:.3g} bits on average; "
        f"the rises of its layers add up to {sum(e.rise for e in chosen):+.3g}."
    )
    snippet = yaml.safe_dump({"quantization": {"weights": weights}}, sort_keys=False, default_flow_style=None)
    path = write_new(cli.directory / "quantization.yaml", f"# {says}\n{snippet}")
    return f"{path} is a choice of {says} Train with it by adding --config={path} to a recipe."
