"""From Lightning's ``ModelPruning`` to :class:`~lightning_compress.Pruning`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_compress.pruning.callback import Pruning
from lightning_compress.pruning.patterns import Channels, Pattern, Unstructured
from lightning_compress.pruning.rewind import RewindWeights
from lightning_compress.pruning.scores import Magnitude, Random, Score
from lightning_compress.schedules import Schedule
from lightning_compress.targets import Target, Targets, shorten
from lightning_compress.trainer.lightning import is_a

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def from_model_pruning(callback: Callback, model: nn.Module, *, num_epochs: int) -> Pruning:
    """Turns a ``ModelPruning`` of ``lightning`` or ``pytorch_lightning`` into a ``Pruning`` that ends as sparse.

    ``ModelPruning`` prunes at the end of every epoch a fraction ``amount`` of what is left (or a number of weights, of
    each layer unless pruning is global); ``sparsity`` here is absolute and reached after ``num_epochs``.

    What differs: masks change with the last optimizer step of an epoch, so validation and checkpoints of that epoch
    are pruned already, and whole numbers are rounded once and not in every epoch. Biases, norms and frozen weights stay
    dense, with a warning. The lottery ticket takes back all weights, batch-norm statistics and the learning rate, not
    only the pruned weights. Masks survive a resume, and checkpoints have plain names.

    Args:
        callback: The ``ModelPruning``, before or after its own ``setup``.
        model: The LightningModule it is for; layers are named relative to it.
        num_epochs: Number of epochs at the end of which it prunes: the Trainer's ``max_epochs``.

    Raises:
        ValueError: For what has no counterpart: ``amount``, ``apply_pruning`` or ``use_lottery_ticket_hypothesis`` as
            functions, resampled parameters, a pruning method of one's own, norms other than L1 and L2, dimensions other
            than 0; and if nothing is left to prune, or nothing would be left of it.

    >>> from lightning.pytorch.callbacks import ModelPruning
    >>> old = ModelPruning("l1_unstructured", amount=0.2, parameter_names=["weight"])
    >>> new = from_model_pruning(old, nn.Linear(8, 8), num_epochs=10)
    >>> round(new.sparsity, 4), new.schedule.end, new.schedule.curve, new.rewind
    (0.8926, '10ep', 'exponential', RewindWeights(to=0))
    """
    if not is_a(callback, "ModelPruning"):
        raise ValueError(f"from_model_pruning takes a ModelPruning, not a {type(callback).__name__}.")
    if num_epochs < 1:
        raise ValueError(f"num_epochs={num_epochs} must be at least 1: give the Trainer's max_epochs.")
    old: Any = callback
    _refuse_functions(old)
    pattern, score = _method(old)
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
    """Loads the weights of a checkpoint that was written with ``ModelPruning`` into the plain model, in place.

    Of ``weight_orig`` and ``weight_mask`` (``make_pruning_permanent=False``) it makes ``weight`` with zeros where the
    mask has them. Optimizer state is not taken over; train on with :class:`~lightning_compress.Fixed`.

    Args:
        path: The checkpoint; it is read with ``weights_only=True``.
        model: The LightningModule, or the part of it that the checkpoint's names are relative to.

    Returns:
        The model.

    Raises:
        ValueError: If the file cannot be read safely, or if its names or shapes are not those of the model, which is
            left as it was then.
    """
    weights = _plain(_read(Path(path)))
    problem = _first_difference(model.state_dict(), weights)
    if problem:
        raise ValueError(f"Checkpoint {path} is of another model: {problem}.")
    model.load_state_dict(weights)
    return model


def _refuse_functions(old: Any) -> None:
    for name, value in (
        ("amount", old.amount),
        ("apply_pruning", old._apply_pruning),
        ("use_lottery_ticket_hypothesis", old._use_lottery_ticket_hypothesis),
    ):
        if callable(value):
            raise ValueError(f"ModelPruning({name}=<function>) has no counterpart: write a Pruning with a Schedule.")
    if not old._apply_pruning or not old.amount:
        raise ValueError("This ModelPruning prunes nothing: leave it out.")
    if old._use_lottery_ticket_hypothesis and old._resample_parameters:
        raise ValueError(
            "ModelPruning(resample_parameters=True) has no counterpart: RewindWeights returns to weights there were."
        )


def _method(old: Any) -> tuple[Pattern, Score]:
    """Pattern and score that stand for the pruning function or, where pruning is global, class."""
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
            f"ModelPruning's {function.__name__}({_spell(options)}) has no counterpart: choose a lc.Score."
        )
    if options.get("dim", 0) != 0:
        raise ValueError(f"pruning_dim={options['dim']} has no counterpart: only output channels (0) can be pruned.")
    if "dim" in options:
        rank_zero_warn(
            "ModelPruning zeroes rows of single layers; Channels goes on to what is coupled with them, so that "
            "lc.shrink can remove them, and leaves rows that make an output."
        )
    return Channels() if "dim" in options else Unstructured(), scores[function.__name__]


def _spell(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _targets(old: Any, model: nn.Module) -> Targets:
    """The weights it prunes, by the names of their layers; warns of what else it prunes."""
    chosen = old._parameters_to_prune or old.sanitize_parameters_to_prune(model, (), old._parameter_names)
    names = {id(module): name for name, module in model.named_modules()}
    layers: dict[str, nn.Module] = {}
    dense: list[str] = []
    for module, attribute in old.filter_parameters_to_prune(chosen):
        if id(module) not in names:
            raise ValueError(f"ModelPruning prunes a {type(module).__name__} that is not in this model.")
        layer, tensor = names[id(module)], getattr(module, attribute)
        if attribute == "weight" and tensor.ndim >= 2 and tensor.requires_grad:
            layers[layer] = module
        else:
            dense.append(f"{layer}.{attribute}".lstrip("."))
    if not layers:
        raise ValueError(f"ModelPruning prunes only {shorten(dense)} here, and biases and norms are never pruned.")
    if dense:
        rank_zero_warn(f"ModelPruning also prunes biases, norms or frozen weights, which stay dense: {shorten(dense)}.")
    return _selecting(layers, model)


def _selecting(layers: dict[str, nn.Module], model: nn.Module) -> Targets:
    """Targets that select the weights of just these layers."""
    wanted = {id(module.weight) for module in layers.values()}
    types = Targets().types
    more = {type(module) for module in layers.values() if not isinstance(module, types)}
    types += tuple(sorted(more, key=lambda cls: cls.__name__))
    for targets in (Targets(types=types), Targets(include=tuple(layers), types=types)):
        if {id(target.parameter) for target in targets.select(model)} == wanted:
            return targets
    raise ValueError(f"No Targets select just the weights of {shorten(list(layers))}: some hold other layers.")


def _sparsity(
    amount: float | int, is_global: bool, pattern: Pattern, targets: Sequence[Target], num_epochs: int
) -> float | dict[str, float]:
    """The absolute sparsity after all epochs; for a number of units of each layer, that of each layer."""
    channels = isinstance(pattern, Channels)
    if channels and any(isinstance(target.module, _TRANSPOSED) for target in targets):
        raise ValueError("pruning_dim=0 of a transposed convolution are its input channels: exclude it.")
    if isinstance(amount, float):
        return 1 - (1 - amount) ** num_epochs
    removed = amount * num_epochs
    units = {t.layer: t.parameter.shape[0] if channels else t.parameter.numel() for t in targets}
    sizes = {"": sum(units.values())} if is_global else units
    for layer, size in sizes.items():
        if removed >= size:
            where = f"of {layer!r}" if layer else "of all layers"
            raise ValueError(f"amount={amount} removes {removed} in {num_epochs} epochs, and {size} are all {where}.")
    return removed / sizes[""] if is_global else {layer: removed / size for layer, size in units.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except FileNotFoundError:
        raise ValueError(f"Checkpoint {path} does not exist.") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Checkpoint {path} cannot be read as a checkpoint of Lightning: {reason}") from error


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without masks: their zeros in the weights they belong to, under the weights' names."""
    masked = {name.removesuffix("_orig") for name in state if name.endswith("_orig")}
    masked = {name for name in masked if f"{name}_mask" in state}
    plain = {name: state[f"{name}_orig"].masked_fill(state[f"{name}_mask"] == 0, 0.0) for name in masked}
    parts = {f"{name}_{part}" for name in masked for part in ("orig", "mask")}
    return {**{name: value for name, value in state.items() if name not in parts}, **plain}


def _first_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    if _prefixed(expected, found):
        return f"its names begin with {_prefixed(expected, found)!r}; pass the module that holds this one"
    if _prefixed(found, expected):
        return f"its names lack {_prefixed(found, expected)!r}; pass that part of the model"
    for name in sorted(expected.keys() ^ found.keys()):
        return f"{name!r} is only in the {'model' if name in expected else 'checkpoint'}"
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            return f"{name!r} is {tuple(found[name].shape)} there and {tuple(tensor.shape)} here"
    return ""


def _prefixed(plain: dict[str, Tensor], names: dict[str, Tensor]) -> str:
    """The prefix that all of ``names`` have over those of ``plain``, if that is all that differs."""
    first = min(plain, default="")
    for prefix in {name.removesuffix(first) for name in names if name.endswith(f".{first}")}:
        if {prefix + name for name in plain} == set(names):
            return prefix
    return ""
