"""Copies of a quantized network that have no quantizers: the states of both fit each other."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_compress.quantization.insertion import is_quantized, quantizers_of, remove_quantizers
from lightning_compress.quantization.quantizer import PREFIX
from lightning_compress.trainer.copied_networks import find_copies, shapes_of


def support_copies(model: nn.Module, module: str) -> None:
    """Let copies of a quantized network be updated from it, as target and momentum networks are.

    They compute in FP32. ``copy.load_state_dict(net.state_dict())`` ignores scales and zero points, and a ``zip`` over
    both state dicts meets the tensors of the copy first.

    Args:
        model: Model with quantizers.
        module: Name of the quantized network; ``""`` for every child with quantizers.
    """
    teacher = getattr(model, "teacher", None)
    if isinstance(teacher, nn.Module) and all(part is not teacher for part in model.modules()):
        # An average of the student beside the model, which was copied with its quantizers.
        remove_quantizers(teacher)
    names = [module] if module else [name for name, part in model.named_children() if is_quantized(part)]
    for name in names:
        _support_copies_of(model, name)


def _support_copies_of(model: nn.Module, module: str) -> None:
    network = model.get_submodule(module)
    copies = [c for c in find_copies(model, module, shapes_of(network, without=PREFIX)) if not is_quantized(c[1])]
    for name, copied in copies:
        if any(ref.quantizer.is_learned for ref in quantizers_of(network)):
            rank_zero_warn(
                f"{name!r} has the layers of {module!r}, which has learned scales among its parameters: update it by "
                "load_state_dict or by names, not by a zip over parameters(), or use another observer than Learned."
            )
        for part in copied.modules():
            if not any(
                getattr(h, "hook", None) is _ignore_quantizers for h in part._load_state_dict_pre_hooks.values()
            ):
                part.register_load_state_dict_pre_hook(_ignore_quantizers)
    for part in network.modules() if copies else ():
        if _quantizers_last not in part._state_dict_hooks.values():
            part.register_state_dict_post_hook(_quantizers_last)


def _ignore_quantizers(module: nn.Module, stored: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load-state-dict pre-hook: drop scales and zero points, which a copy without quantizers does not have."""
    for key in [key for key in stored if key.startswith(prefix + PREFIX) and "." not in key[len(prefix) :]]:
        if not hasattr(module, key[len(prefix) :]):
            del stored[key]


def _quantizers_last(module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
    """State-dict hook: move scales and zero points behind the tensors that the network has without them."""
    for key in [key for key in state if key.startswith(prefix) and key.rpartition(".")[2].startswith(PREFIX)]:
        state.move_to_end(key)
