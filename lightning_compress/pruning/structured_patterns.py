"""Structured patterns: channels and blocks that are masked during a fit and physically removed afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from lightning_compress.pruning.patterns import Pattern


class StructuredPattern(Pattern, ABC):
    """Base class of patterns whose units :func:`lightning_compress.shrink` removes.

    Attributes:
        round_to: Number that the kept channels of a layer are a multiple of.
        of: Cost that the sparsity is a fraction of.
        width: True if the channels that norms normalize over are pruned.
    """

    round_to: int = 1
    of: str
    width: bool = False

    @property
    @abstractmethod
    def unit(self) -> str:
        """Unit that is counted if the sparsity is not a cost of the full network: "channels" or "blocks"."""


@dataclass(frozen=True)
class Channels(StructuredPattern):
    """Whole channels of channel groups, which :func:`lightning_compress.shrink` can remove (structured pruning).

    A pruned channel is zero in every tensor that produces it: weights, biases, and scales and shifts of batch norms, of
    all layers that add to the same residual stream. Grouped convolutions lose the same channels in each group,
    attention modules lose whole heads, and the MLPs of transformers lose hidden units. Layers that produce the output
    of the model are not pruned, nor are channels that cannot be removed without a change in the output. Channel groups
    are found by following each channel through the operators of a run, and verified on copies of the model with the
    example inputs.

    With ``width=True``, residual streams that LayerNorms or RMSNorms normalize over lose channels as well, and with
    them embeddings, class tokens and embeddings of positions. During the fit the norms skip masked channels, by hooks
    that stay on the model; :func:`lightning_compress.shrink` leaves plain, narrower norms. Checkpoints of the fit need
    this callback in ``validate``, ``test`` and ``predict``, or ``shrink(model, inputs, width=True)`` after they are
    loaded into a plain model.

    Channels are ranked by their score divided by the square root of the cost that they save.

    Args:
        round_to: Keep a multiple of this number of channels in each layer that has as many; 8 suits most hardware.
        of: Cost that the sparsity is a fraction of: the prunable ``"channels"``, or of the whole model the
            ``"parameters"``, the ``"macs"`` (multiply-accumulates of convolutions and linear layers) or the
            ``"latency"``, measured on the CPU with the example inputs or two samples. Runs with a measured latency are
            not exactly reproducible.
        width: Also prune the channels that LayerNorms and RMSNorms normalize over (the embedding width).

    Raises:
        ValueError: If ``round_to`` is below one, or ``of`` is not one of the costs.

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.5, pattern=lc.Channels(of="macs", round_to=8)).pattern
    Channels(round_to=8, of='macs', width=False)
    """

    round_to: int = 1
    of: Literal["channels", "parameters", "macs", "latency"] = "channels"
    width: bool = False

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"Channels(round_to={self.round_to}) must be at least 1.")
        if self.of not in ("channels", "parameters", "macs", "latency"):
            raise ValueError(f"Channels(of={self.of!r}) must be 'channels', 'parameters', 'macs' or 'latency'.")

    @property
    def unit(self) -> str:
        """Unit that is counted if the sparsity is not a cost of the full network."""
        return "channels"


@dataclass(frozen=True)
class Depth(StructuredPattern):
    """Whole residual blocks, which :func:`lightning_compress.shrink` replaces by ``nn.Identity``.

    All weights of a pruned block are zero, so that only its shortcut is left. Eligible are blocks with an identity
    shortcut and without a norm behind the addition: of ViT, Swin, ConvNeXt, and of ResNets those without downsampling;
    each is verified on a copy of the model with the example inputs. One block always stays. Blocks are ranked by the
    mean score of their weights (by the sum for gradient scores, as the change of the loss), divided by the square root
    of the cost that they save.

    Args:
        of: Cost that the sparsity is a fraction of: the prunable ``"blocks"``, or of the whole model the
            ``"parameters"``, the ``"macs"`` or the ``"latency"``, as in :class:`Channels`.

    Raises:
        ValueError: If ``of`` is not one of the costs.

    >>> import lightning_compress as lc
    >>> lc.Pruning(0.5, pattern=lc.Depth(of="macs"), score=lc.Taylor()).pattern
    Depth(of='macs')
    """

    of: Literal["blocks", "parameters", "macs", "latency"] = "blocks"

    def __post_init__(self) -> None:
        if self.of not in ("blocks", "parameters", "macs", "latency"):
            raise ValueError(f"Depth(of={self.of!r}) must be 'blocks', 'parameters', 'macs' or 'latency'.")

    @property
    def unit(self) -> str:
        """Unit that is counted if the sparsity is not a cost of the full network."""
        return "blocks"
