"""Configuration of this package for a SparseML recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from lightning_compress.cli.sparseml.pruning_modifiers import CONSTANT, PRUNING, constant_pruning, pruning
from lightning_compress.cli.sparseml.quantization_modifiers import QUANTIZATION, quantization
from lightning_compress.cli.sparseml.recipe_text import RecipeModifier, read_modifiers
from lightning_compress.cli.sparseml.remarks import Remarks
from lightning_compress.cli.sparseml.training_modifiers import DISTILLATION, EPOCHS, RATES, distillation, epochs
from lightning_compress.cli.sparseml.training_modifiers import learning_rate as rates

_WITHOUT = {
    "ACDCPruningModifier": "dense phases between sparse ones are not supported; choose growth: RigL",
    "TopKASTPruningModifier": "two sparsities of forward and backward pass are not supported; choose growth: RigL",
    "LayerPruningModifier": "the removal of whole layers is not supported; build a model without them",
    "LayerThinningModifier": "channels are removed by the command run, after pruning with pattern: Channels",
    "SparseGPTModifier": "pruning after the training is not supported; prune in a fine-tuning with the key pruning",
    "WandaPruningModifier": "pruning after the training is not supported; prune in a fine-tuning with the key pruning",
    "GPTQModifier": "weights are quantized in training, with the key quantization",
    "SmoothQuantModifier": "scales are not moved between layers",
    "LogarithmicEqualizationModifier": "scales are not moved between layers",
    "OutputDistillationModifier": "add a feature loss such as FitNet to model.losses by hand",
    "PowerpropagationModifier": "weights are not reparametrized",
    "ASRegModifier": "the loss has no penalty of activations; add it in training_step",
    "SetWeightDecayModifier": "weight decay does not change within a run; set model.optimizer.weight_decay",
    "TrainableParamsModifier": "freeze parameters in the module, with requires_grad_(False)",
    "SetParamModifier": "set the parameter in the module",
    "GradualParamModifier": "change the parameter in the module",
    "SparsificationLoggingModifier": "the monitor logs in any case",
}


@dataclass(frozen=True)
class RecipeConversion:
    """Result of :func:`convert_recipe`.

    Attributes:
        config: Keys of a configuration, to be added to one with a model and data.
        remarks: One sentence for each part of the recipe without a counterpart.
    """

    config: dict[str, Any]
    remarks: tuple[str, ...]

    def to_yaml(self, source: str) -> str:
        """Return the configuration as YAML, with the remarks as comments.

        Args:
            source: Name of the recipe, for the first line.
        """
        header = [f"Converted from the SparseML recipe {source}.", *self.remarks]
        comments = "".join(f"# {line}\n" for text in header for line in text.splitlines())
        return f"{comments}\n{yaml.safe_dump(self.config, sort_keys=False)}"


def convert_recipe(text: str, *, module: str = "model") -> RecipeConversion:
    """Convert a SparseML recipe to a configuration of this package.

    Args:
        text: Text of the recipe, YAML or Markdown with YAML in front.
        module: Name of the submodule of the LightningModule that is the network of the recipe.

    Raises:
        ValueError: If the recipe cannot be read, or an argument is invalid.

    >>> convert_recipe("modifiers: [!EpochRangeModifier {start_epoch: 0, end_epoch: 8}]").config
    {'trainer': {'max_epochs': 8}}
    """
    remarks = Remarks()
    modifiers = [_renamed(modifier) for modifier in read_modifiers(text)]
    groups = {name: [m for m in modifiers if m.name in names] for name, names in _GROUPS.items()}
    for modifier in modifiers:
        if not any(modifier in group for group in groups.values()):
            why = _WITHOUT.get(modifier.name, "it is not known")
            remarks.add(f"{modifier.name} has no counterpart: {why}.")
    trainer: dict[str, Any] = epochs(groups["epochs"])
    model = rates(groups["rates"], trainer.get("max_epochs"), remarks)
    model |= distillation(groups["distillation"], remarks)
    if groups["distillation"]:
        remarks.add(
            "Distillation: add it to a recipe with a DistillationModule, which has the student and the teacher."
        )
    if "optimizer" in model:
        remarks.add("Learning rate: add it to a recipe with a module of this package that names its optimizer.")
    pruned = pruning(groups["pruning"], module, remarks)
    # A mask that the run has made is kept in any case.
    callbacks = [] if pruned else constant_pruning(groups["constant"], module, remarks)
    if callbacks:
        trainer["callbacks"] = callbacks
    config = {
        "pruning": pruned,
        "quantization": quantization(groups["quantization"], module, remarks),
        "model": {"init_args": model} if model else {},
        "trainer": trainer,
    }
    return RecipeConversion({key: value for key, value in config.items() if value}, remarks.messages)


_GROUPS: dict[str, tuple[str, ...]] = {
    "epochs": (EPOCHS,),
    "rates": RATES,
    "distillation": DISTILLATION,
    "pruning": PRUNING,
    "constant": (CONSTANT,),
    "quantization": (QUANTIZATION,),
}


def _renamed(modifier: RecipeModifier) -> RecipeModifier:
    """Return a modifier under its name without ``Legacy``, where there is one."""
    name = modifier.name.removeprefix("Legacy")
    is_supported = any(name in names for names in _GROUPS.values())
    return RecipeModifier(name, modifier.arguments) if is_supported else modifier
