"""Zeros that stay zeros: the subspace of weights under a mask, and the projection onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer, local
from lightning_compress.functional.masks import pack_bits, unpack_bits


class MaskConstraint(Constraint):
    """Holds one mask per layer, at first all True, and projects tensors onto it.

    Args:
        layers: The constrained weights.

    Attributes:
        layers: The same.
        zeros: This rank's part of each mask's complement, True where a weight is zero.
        is_dense: Whether there are none on this rank.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self._set([torch.ones_like(layer.weight, dtype=torch.bool) for layer in self.layers])

    @property
    def masks(self) -> list[Tensor]:
        """This rank's part of each mask, True where a weight may live."""
        return [~zeros for zeros in self.zeros]

    @property
    def num_pruned(self) -> int:
        """Number of masked weights on this rank."""
        return sum(int(zeros.sum()) for zeros in self.zeros)

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Takes new masks and projects the weights."""
        self._set(masks)
        self.project_weights_()

    def state_dict(self) -> dict[str, Tensor]:
        """Whole masks as packed bits by the names of the weights; a collective if sharded."""
        return {
            layer.name: pack_bits(layer.full(mask)).cpu() for layer, mask in zip(self.layers, self.masks, strict=True)
        }

    def load_state_dict(self, packed: Mapping[str, Tensor]) -> None:
        """Takes the masks of :meth:`state_dict`.

        Raises:
            ValueError: If they are of other weights than these.
        """
        self.replace([layer.local(_unpack(layer, packed)) for layer in self.layers])

    def digest(self) -> bytes:
        """A hash of this rank's masks, equal on all ranks that decided alike."""
        digest = hashlib.blake2b(digest_size=8)
        for zeros in self.zeros:
            digest.update(pack_bits(zeros).cpu().numpy().tobytes())
        return digest.digest()

    def _set(self, masks: Sequence[Tensor]) -> None:
        self.zeros: list[Tensor] = [~mask for mask in masks]
        self._factors: dict[torch.dtype, list[Tensor]] = {}
        self.is_dense = not any(bool(zeros.any()) for zeros in self.zeros)

    @torch.no_grad()
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        if self.is_dense or not tensors:
            return
        parts = [local(tensor) for tensor in tensors.values()]
        if parts[0].is_cuda:
            # Launches dominate on a GPU: two fused kernels for all tensors. The sum turns -0.0 into 0.0.
            factors = self._factors_of(parts[0].dtype)
            torch._foreach_mul_(parts, [factors[i] for i in tensors])
            torch._foreach_add_(parts, 0.0)
            return
        for i, part in zip(tensors, parts, strict=True):
            part.masked_fill_(self.zeros[i], 0.0)

    def _factors_of(self, dtype: torch.dtype) -> list[Tensor]:
        if dtype not in self._factors:
            self._factors[dtype] = [mask.to(dtype) for mask in self.masks]
        return self._factors[dtype]


def _unpack(layer: Layer, packed: Mapping[str, Tensor]) -> Tensor:
    if layer.name not in packed:
        raise ValueError(
            f"The checkpoint holds no mask for {layer.name!r}: it comes from another model or other targets."
        )
    try:
        return unpack_bits(packed[layer.name], layer.shape)
    except ValueError:
        raise ValueError(
            f"The checkpoint's mask for {layer.name!r} does not fit its shape {tuple(layer.shape)}: another model's?"
        ) from None
