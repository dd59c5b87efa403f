"""The command ``sensitivity``: per-layer quantization sensitivity, and bit widths for a size budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.connectors.data_connector import _request_dataloader
from lightning.pytorch.utilities import CombinedLoader
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.atomic_files import atomic_write
from lightning_compress.cli.compression import CompressionCLI
from lightning_compress.cli.run_directory import write_new
from lightning_compress.models.weights import load_weights_
from lightning_compress.pruning.layer_sensitivity import pruning_sensitivity
from lightning_compress.quantization.mixed_precision import Effect, as_quantization_spec, choose
from lightning_compress.reporting.report_files import write_report
from lightning_compress.reporting.report_records import SensitivityMap
from lightning_compress.reporting.run_figures import draw_sensitivity_map
from lightning_compress.reporting.run_report import read_report
from lightning_compress.trainer.batches import prepare_batch
from lightning_compress.trainer.probe import TrainingProbe

# Trainer options that only make sense in a fit, and their values for the measurement.
_SINGLE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "callbacks": None}


def sensitivity(arguments: Sequence[str]) -> None:
    """Measure the delta loss of every layer and number of bits, print and write it, and choose bits for a budget.

    Args:
        arguments: Recipe as ``--config=FILE``, and the options of :class:`SensitivityCLI`.
    """
    cli = SensitivityCLI(args=[*arguments], run=False, run_name="sensitivity")
    console = Console()
    with cli.exit_on_config_error():
        result = cli.measure()
        console.print(result)
        csv_path = write_new(cli.directory / "sensitivity.csv", result.to_csv())
        try:
            result.figure(csv_path.with_suffix(".png"))
            result.heat_map(csv_path.with_name(f"{csv_path.stem}-heat-map.png"))
        except ImportError as error:
            console.print(error, markup=False)
        console.print(f"All files of this run are in {cli.directory}.", soft_wrap=True)
        maps = cli.maps(result)
        if len(maps) > 1:
            _print_pruning(console, maps[1])
            with suppress(ImportError):
                figure = draw_sensitivity_map(maps[1])
                with atomic_write(csv_path.with_name(f"{csv_path.stem}-pruning-heat-map.png")) as partial:
                    partial.write_bytes(figure)
        if cli.config.report:
            console.print(_add_to_report(cli.config.report, maps), soft_wrap=True, markup=False)
        if cli.budget:
            console.print(_write_choice(cli, choose(result.effects, **cli.budget)), soft_wrap=True)


class SensitivityCLI(CompressionCLI):
    """CompressionCLI that instantiates a recipe on one device, without techniques, callbacks and loggers."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the measurement, and the arguments of ``fit``, so that its configurations are valid."""
        super().add_arguments_to_parser(parser)
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        parser.add_method_arguments(Trainer, "fit", skip=skip)
        parser.add_argument("--num_batches", type=int, default=8, help="Number of training batches for the mean loss.")
        parser.add_argument("--bits", type=str, default="2,4,8", help="Numbers of bits to measure, 2 to 8.")
        parser.add_argument("--targets", type=lc.Targets, default=lc.Targets(), help="Layers to measure.")
        parser.add_argument(
            "--max_bytes", type=int | None, default=None, help="Maximum bytes of all quantized weights."
        )
        parser.add_argument(
            "--mean_bits", type=float | None, default=None, help="Maximum mean bits per weight, instead of max_bytes."
        )
        parser.add_argument(
            "--sparsities", type=str, default="", help="Sparsities of pruned layers to measure, too, such as 0.5,0.9."
        )
        parser.add_argument(
            "--report", type=str | None, default=None, help="Finished run to whose report the heat maps are added."
        )
        parser.add_argument("--out", type=str | None, default=None, help="Directory to write to.")

    def before_instantiate_classes(self) -> None:
        """Parse the budget and reset the Trainer options that belong to a fit."""
        super().before_instantiate_classes()
        self.bits = _numbers(self.config.bits)
        self.sparsities = _fractions(self.config.sparsities)
        if self.config.report:
            read_report(self.config.report)
        self.budget = {key: self.config[key] for key in ("max_bytes", "mean_bits") if self.config[key] is not None}
        if len(self.budget) > 1:
            raise ValueError("Give either --max_bytes or --mean_bits, not both.")
        mean_bits = self.budget.get("mean_bits")
        if mean_bits is not None and mean_bits > max(self.bits):
            raise ValueError(f"--mean_bits={mean_bits} must be at most {max(self.bits)}, the largest of --bits.")
        self.config.trainer.default_root_dir = self.config.out or self.config.trainer.default_root_dir
        for key, value in _SINGLE_DEVICE.items():
            self.config.trainer[key] = value

    def compression_callbacks(self) -> list[Callback]:
        """Return no callbacks: techniques belong to a fit."""
        return []

    def measure(self) -> lc.Sensitivity:
        """Measure the delta of the loss of ``training_step`` with quantized weights, in eval mode.

        Raises:
            ValueError: For manual optimization, where ``training_step`` returns no loss.
        """
        if not self.model.automatic_optimization:
            raise ValueError(
                f"{type(self.model).__name__} uses manual optimization, so its training_step returns no loss to "
                "measure: call lightning_compress.sensitivity in Python with a loss function."
            )
        self.prepare()
        self.probe = TrainingProbe(self.trainer, self.model, None, 0)
        # A copy whose training_step logs nothing.
        self.measured, self.measured_batches = self.probe.model, self.batches()
        given = {"bits": self.bits, "targets": self.config_init.targets}
        return lc.sensitivity(self.measured, self.measured_batches, loss=self.loss, **given)

    def measure_pruning(self) -> SensitivityMap:
        """Measure the same delta with the smallest weights of one layer pruned, after :meth:`measure`."""
        given = {"sparsities": self.sparsities, "targets": self.config_init.targets}
        return pruning_sensitivity(self.measured, self.measured_batches, loss=self.loss, **given)

    def maps(self, measured: lc.Sensitivity) -> list[SensitivityMap]:
        """Return what reports show: the sensitivity that was measured, and that to pruning if it is asked for."""
        found = [measured.to_map(), *([self.measure_pruning()] if self.sparsities else [])]
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return [replace(each, config=config) for each in found]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of ``training_step``."""
        # Errors of the user's code keep their traceback.
        self.record.started = True
        assert isinstance(model, LightningModule)
        # Copies of a LightningModule have no Trainer.
        model.trainer = self.trainer
        self.probe.model, self.probe.batch = model, batch
        value = self.probe.loss()
        self.record.started = False
        return value

    def prepare(self) -> None:
        """Set up data and model like a fit, and load the weights of the checkpoint."""
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
        """Return the first training batches as ``training_step`` receives them."""
        loader = _request_dataloader(self.trainer.fit_loop._data_source)
        combined = loader if isinstance(loader, CombinedLoader) else CombinedLoader(loader, "max_size_cycle")
        batches = islice(combined, self.config.num_batches)
        return [prepare_batch(self.trainer, self.model, batch) for batch, _, _ in batches]


def _numbers(text: str) -> tuple[int, ...]:
    numbers = text.strip("[]()").split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise ValueError(f"--bits={text} must be comma-separated integers, such as 2,4,8.")
    return tuple(map(int, numbers))


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.strip("[]()").split(",") if number.strip())
    except ValueError as error:
        raise ValueError(f"--sparsities={text} must be comma-separated fractions, such as 0.5,0.9.") from error


def _print_pruning(console: Console, found: SensitivityMap) -> None:
    levels = list(found.layers[0].delta_losses)
    table = Table("layer", title="Sensitivity: delta loss with the smallest weights of one layer pruned")
    for level in levels:
        table.add_column(level, justify="right")
    for layer in found.layers:
        table.add_row(layer.layer, *(f"{layer.delta_losses[level]:+.3g}" for level in levels))
    console.print(table)


def _add_to_report(run: str, maps: Sequence[SensitivityMap]) -> str:
    """Replace the sensitivities in the report of a run, and return a sentence."""
    directory, report = read_report(run)
    kept = [each for each in report.sensitivities if each.technique not in {found.technique for found in maps}]
    paths = write_report(replace(report, sensitivities=(*kept, *maps)), directory)
    return f"The report of {directory} shows the sensitivity: {paths['html']}"


def _write_choice(cli: SensitivityCLI, chosen: Sequence[Effect]) -> str:
    """Write the chosen bits as a configuration and return a summary."""
    weights = {layer: {"bits": integers.bits} for layer, integers in as_quantization_spec(chosen).items() if integers}
    num_bits, num_weights = sum(e.bits * e.num_weights for e in chosen), sum(e.num_weights for e in chosen)
    summary = (
        f"{sum(e.num_bytes for e in chosen):,} bytes of weights, {num_bits / num_weights:.3g} bits per weight on "
        f"average, total delta loss {sum(e.delta_loss for e in chosen):+.3g}."
    )
    snippet = yaml.safe_dump({"quantization": {"weights": weights}}, sort_keys=False, default_flow_style=None)
    path = write_new(cli.directory / "quantization.yaml", f"# {summary}\n{snippet}")
    return f"{path}: {summary} Add --config={path} to a recipe to train with it."
