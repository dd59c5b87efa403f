"""Migration from Lightning's ``ModelPruning`` to :class:`~lightning_compress.Pruning`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_compress.arguments import reason
from lightning_compress.layer_kinds import TRANSPOSED_CONVOLUTIONS
from lightning_compress.pruning.callback import Pruning
from lightning_compress.pruning.patterns import Pattern, Unstructured
from lightning_compress.pruning.rewind import RewindWeights
from lightning_compress.pruning.scores import Magnitude, Random, Score
from lightning_compress.pruning.structured_patterns import Channels
from lightning_compress.schedules import Schedule
from lightning_compress.targets import Target, Targets, shorten
from lightning_compress.trainer.queries import is_a


def from_model_pruning(callback: Callback, model: nn.Module, *, num_epochs: int) -> Pruning:
    """Convert a ``ModelPruning`` of either Lightning package to a ``Pruning`` with the same final sparsity.

    At the end of every epoch, ``ModelPruning`` prunes a fraction ``amount`` of the remaining weights, or a number of
    weights (per layer unless pruning is global). ``Pruning.sparsity`` is absolute and reached after ``num_epochs``.

    Differences: masks change with the last optimizer step of an epoch, hence the validation and checkpoints of that
    epoch are already pruned; the number of pruned weights is rounded once and not in every epoch. Biases, norms and
    frozen weights stay dense, with a warning. The lottery ticket rewinds all weights, batch-norm statistics and the
    learning rate, not only the pruned weights. Masks survive a resume, and checkpoints have plain names.

    Args:
        callback: ``ModelPruning``, before or after its own ``setup``.
        model: LightningModule that is pruned; layer names are relative to it.
        num_epochs: Number of epochs after which ``ModelPruning`` prunes: the Trainer's ``max_epochs``.

    Returns:
        Pruning callback for a Trainer with ``max_epochs=num_epochs``.

    Raises:
        ValueError: For unsupported options: functions as ``amount``, ``apply_pruning`` or
            ``use_lottery_ticket_hypothesis``, resampled parameters, custom pruning methods, norms other than L1 and
            L2, dimensions other than 0; and if no weight would be pruned, or all weights of a layer would be.

    >>> from lightning.pytorch.callbacks import ModelPruning
    >>> old = ModelPruning("l1_unstructured", amount=0.2, parameter_names=["weight"])
    >>> new = from_model_pruning(old, nn.Linear(8, 8), num_epochs=10)
    >>> round(new.sparsity, 4), new.schedule.end, new.schedule.curve, new.rewind
    (0.8926, '10ep', 'exponential', RewindWeights(to=0))
    """
    if not is_a(callback, "ModelPruning"):
        raise ValueError(f"from_model_pruning expects a ModelPruning callback, not a {type(callback).__name__}.")
    if num_epochs < 1:
        raise ValueError(f"num_epochs={num_epochs} must be at least 1: give the Trainer's max_epochs.")
    old: Any = callback
    _check_supported(old)
    pattern, score = _pattern_and_score(old)
    targets = _targets(old, model)
    return Pruning(
        _sparsity(old.amount, old._use_global_unstructured, pattern, targets.select(model), num_epochs),
        pattern=pattern,
        score=score,
        scope="global" if old._use_global_unstructured else "layer",
        schedule=Schedule(
            begin=0,
            end=f"{num_epochs}ep",
            every="1ep",
            curve="exponential" if isinstance(old.amount, float) else "linear",
        ),
        targets=targets,
        rewind=RewindWeights(0) if old._use_lottery_ticket_hypothesis else None,
    )


def load_model_pruning_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """Load the weights of a checkpoint written with ``ModelPruning`` into the plain model, in place.

    ``weight_orig`` and ``weight_mask`` (``make_pruning_permanent=False``) become ``weight``, with exact zeros where the
    mask is zero. Optimizer state is not loaded; continue training with :class:`~lightning_compress.Fixed`.

    Args:
        path: Checkpoint file, read with ``weights_only=True``.
        model: LightningModule, or the submodule of it that the keys of the checkpoint are relative to.

    Returns:
        The model.

    Raises:
        ValueError: If the file cannot be read with ``weights_only=True``, or if its keys or shapes do not match the
            model, which is then unchanged.

    >>> import tempfile
    >>> from torch.nn.utils import prune
    >>> masked = prune.l1_unstructured(nn.Linear(4, 2), "weight", amount=0.5)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     torch.save({"state_dict": masked.state_dict()}, f"{directory}/masked.ckpt")
    ...     model = load_model_pruning_checkpoint(f"{directory}/masked.ckpt", nn.Linear(4, 2))
    >>> sorted(model.state_dict()), int((model.weight == 0).sum())
    (['bias', 'weight'], 4)
    """
    weights = _apply_masks(_read_state_dict(Path(path)))
    difference = _first_difference(model.state_dict(), weights)
    if difference:
        raise ValueError(f"Checkpoint {path} does not match the model: {difference}.")
    model.load_state_dict(weights)
    return model


def _check_supported(old: Any) -> None:
    for name, value in (
        ("amount", old.amount),
        ("apply_pruning", old._apply_pruning),
        ("use_lottery_ticket_hypothesis", old._use_lottery_ticket_hypothesis),
    ):
        if callable(value):
            raise ValueError(f"ModelPruning({name}=<function>) is not supported: use Pruning with a Schedule.")
    if not old._apply_pruning or not old.amount:
        raise ValueError("This ModelPruning prunes nothing: remove the callback.")
    if old._use_lottery_ticket_hypothesis and old._resample_parameters:
        raise ValueError(
            "ModelPruning(resample_parameters=True) is not supported: RewindWeights rewinds to earlier weights."
        )


def _pattern_and_score(old: Any) -> tuple[Pattern, Score]:
    """Return the equivalents of the pruning function or, for global pruning, class."""
    function = getattr(old.pruning_fn, "func", old.pruning_fn)
    options = getattr(old.pruning_fn, "keywords", {})
    scores: dict[str, Score] = {
        "l1_unstructured": Magnitude(),
        "L1Unstructured": Magnitude(),
        "random_unstructured": Random(),
        "RandomUnstructured": Random(),
        "random_structured": Random(),
    }
    if function.__name__ == "ln_structured" and options["n"] in (1, 2):
        scores["ln_structured"] = Magnitude(options["n"])
    if function.__name__ not in scores or function.__module__ != "torch.nn.utils.prune":
        raise ValueError(
            f"ModelPruning's {function.__name__}({_format(options)}) is not supported: use Pruning with one of its "
            "scores, such as lc.Magnitude()."
        )
    if options.get("dim", 0) != 0:
        raise ValueError(f"pruning_dim={options['dim']} is not supported: only output channels (0) can be pruned.")
    if "dim" in options:
        rank_zero_warn(
            "ModelPruning masks rows of single layers; Channels masks whole channel groups, so that lc.shrink can "
            "remove them, and keeps the rows of the model's output layer."
        )
    return Channels() if "dim" in options else Unstructured(), scores[function.__name__]


def _format(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _targets(old: Any, model: nn.Module) -> Targets:
    """Return targets for the weights that the callback prunes; warn about its other tensors."""
    selected = old._parameters_to_prune or old.sanitize_parameters_to_prune(model, (), old._parameter_names)
    names = {id(module): name for name, module in model.named_modules()}
    layers: dict[str, nn.Module] = {}
    dense: list[str] = []
    for module, attribute in old.filter_parameters_to_prune(selected):
        if id(module) not in names:
            raise ValueError(f"ModelPruning prunes a {type(module).__name__} that is not part of the model.")
        layer, tensor = names[id(module)], getattr(module, attribute)
        if attribute == "weight" and tensor.ndim >= 2 and tensor.requires_grad:
            layers[layer] = module
        else:
            dense.append(f"{layer}.{attribute}".lstrip("."))
    if not layers:
        raise ValueError(f"ModelPruning prunes only {shorten(dense)}; pruning biases and norms is not supported.")
    if dense:
        rank_zero_warn(f"ModelPruning also prunes biases, norms or frozen weights, which stay dense: {shorten(dense)}.")
    return _selecting(layers, model)


def _selecting(layers: dict[str, nn.Module], model: nn.Module) -> Targets:
    """Return targets that select the weights of exactly these layers."""
    wanted = {id(module.weight) for module in layers.values()}
    types = Targets().types
    other_types = {type(module) for module in layers.values() if not isinstance(module, types)}
    types += tuple(sorted(other_types, key=lambda cls: cls.__name__))
    # The default selection is preferred over a list of all layers: it is easier to read and to edit.
    for targets in (Targets(types=types), Targets(include=tuple(layers), types=types)):
        if {id(target.parameter) for target in targets.select(model)} == wanted:
            return targets
    raise ValueError(f"Targets cannot select exactly the weights of {shorten(list(layers))}: some contain others.")


def _sparsity(
    amount: float | int, is_global: bool, pattern: Pattern, targets: Sequence[Target], num_epochs: int
) -> float | dict[str, float]:
    """Return the final absolute sparsity, per layer if ``amount`` is a number of weights or channels per layer."""
    channels = isinstance(pattern, Channels)
    if channels and any(isinstance(target.module, TRANSPOSED_CONVOLUTIONS) for target in targets):
        raise ValueError("pruning_dim=0 of a transposed convolution selects its input channels: exclude the layer.")
    # A fraction is taken of the remaining weights in every epoch, a number of weights is constant.
    if isinstance(amount, float):
        return 1 - (1 - amount) ** num_epochs
    removed = amount * num_epochs
    units = {t.layer: t.parameter.shape[0] if channels else t.parameter.numel() for t in targets}
    sizes = {"": sum(units.values())} if is_global else units
    for layer, size in sizes.items():
        if removed >= size:
            unit = "channels" if channels else "weights"
            raise ValueError(
                f"amount={amount} removes {removed} {unit} in {num_epochs} epochs, out of {size} in "
                f"{repr(layer) if layer else 'all layers'}: lower amount or num_epochs."
            )
    return removed / sizes[""] if is_global else {layer: removed / size for layer, size in units.items()}


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except FileNotFoundError:
        raise ValueError(f"Checkpoint {path} does not exist.") from None
    except Exception as error:
        raise ValueError(f"Checkpoint {path} cannot be read as a Lightning checkpoint: {reason(error)}.") from error


def _apply_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with every ``*_orig`` and ``*_mask`` pair replaced by the masked weight."""
    masked = {name.removesuffix("_orig") for name in state if name.endswith("_orig")}
    masked = {name for name in masked if f"{name}_mask" in state}
    # masked_fill rather than a product, which would leave negative zeros and keep NaN.
    plain = {name: state[f"{name}_orig"].masked_fill(state[f"{name}_mask"] == 0, 0.0) for name in masked}
    pairs = {f"{name}_{suffix}" for name in masked for suffix in ("orig", "mask")}
    return {**{name: value for name, value in state.items() if name not in pairs}, **plain}


def _first_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    if _prefixed(expected, found):
        return f"its keys begin with {_prefixed(expected, found)!r}; pass the parent module that they are relative to"
    if _prefixed(found, expected):
        return f"its keys lack the prefix {_prefixed(found, expected)!r}; pass that submodule of the model"
    for name in sorted(expected.keys() ^ found.keys()):
        return f"{name!r} is only in the {'model' if name in expected else 'checkpoint'}"
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            return f"{name!r} has shape {tuple(found[name].shape)} in the checkpoint, not {tuple(tensor.shape)}"
    return ""


def _prefixed(plain: dict[str, Tensor], names: dict[str, Tensor]) -> str:
    """Return the prefix that turns all of ``plain`` into ``names``, or an empty string."""
    first = min(plain, default="")
    for prefix in {name.removesuffix(first) for name in names if name.endswith(f".{first}")}:
        if {prefix + name for name in plain} == set(names):
            return prefix
    return ""
