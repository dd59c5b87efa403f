"""Constraint of masked weights: zeros stay zero."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer, local_shard, local_shards
from lightning_compress.constraints.layer_batches import any_true, stack, stack_weights
from lightning_compress.functional.masks import pack_bits, unpack_bits


class MaskConstraint(Constraint):
    """One mask per layer, at first all True, and the projection of tensors onto it.

    Args:
        layers: The constrained weights.

    Attributes:
        zeros: This rank's shard of each mask's complement, True where a weight is zero.
        is_dense: True if no weight on this rank is masked.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.ones(2, 2)))
    >>> constraint = MaskConstraint([layer])
    >>> constraint.replace([torch.tensor([[True, False], [True, True]])])
    >>> layer.weight
    tensor([[1., 0.],
            [1., 1.]])
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self._set([torch.ones_like(layer.weight, dtype=torch.bool) for layer in self.layers])

    @property
    def masks(self) -> list[Tensor]:
        """This rank's shard of each mask, True where a weight may differ from zero."""
        return [~zeros for zeros in self.zeros]

    def replace(self, masks: Sequence[Tensor]) -> None:
        """Replace the masks and project the weights."""
        self._set(masks)
        self.project_weights_()

    def narrow(self, masks: Sequence[Tensor]) -> None:
        """Replace the masks by those given, without reviving a weight, and project the weights."""
        self._set_zeros([~stack([masks[i] for i in batch]) | self.stacked_zeros(batch) for batch in self.batches])
        self.project_weights_()

    @torch.no_grad()
    def project_copy_(self, model: nn.Module) -> None:
        """Project the weights of a copy of the model, which is whole though the layers may be sharded, in place."""
        if all(layer.group is None for layer in self.layers):
            super().project_copy_(model)
            return
        copies = dict(model.named_parameters(remove_duplicate=False))
        for layer, zeros in zip(self.layers, self.zeros, strict=True):
            copies[layer.name].masked_fill_(layer.full(zeros), 0.0)

    def stacked_zeros(self, members: Sequence[int]) -> Tensor:
        """Return a stack of the complements of the masks of some layers of a batch, given by their indices."""
        batch, stacked = self._stacks.get(members[0], ((), None))
        if stacked is not None and tuple(members) == batch:
            return stacked
        return stack([self.zeros[i] for i in members])

    def state_dict(self) -> dict[str, Tensor]:
        """Return full masks as packed bits by parameter name; a collective if sharded."""
        return {
            layer.name: pack_bits(layer.full(mask)).cpu() for layer, mask in zip(self.layers, self.masks, strict=True)
        }

    def load_state_dict(self, packed: Mapping[str, Tensor]) -> None:
        """Restore the masks that :meth:`state_dict` returned.

        Raises:
            ValueError: If they belong to other weights.
        """
        self.replace([layer.local(_unpack(layer, packed)) for layer in self.layers])

    def digest(self) -> bytes:
        """Return a hash of this rank's masks, which is equal on all ranks with the same masks."""
        digest = hashlib.blake2b(digest_size=8)
        for batch in self.batches:
            digest.update(pack_bits(self.stacked_zeros(batch)).cpu().numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def is_satisfied(self) -> bool:
        """Return True if all masked weights on this rank are zero."""
        return self.is_dense or not any_true(
            [
                ((stack_weights([self.layers[i] for i in batch]) != 0) & self.stacked_zeros(batch)).any()
                for batch in self.trained_batches()
            ]
        )

    def _set(self, masks: Sequence[Tensor]) -> None:
        self._set_zeros([~stack([masks[i] for i in batch]) for batch in self.batches])

    def _set_zeros(self, stacks: Sequence[Tensor]) -> None:
        """Set the complements of the masks, given as a stack for each batch."""
        # Stacks are kept beside their views: to stack thousands of small masks takes longer than to apply them.
        self._stacks = {batch[0]: (tuple(batch), stacked) for batch, stacked in zip(self.batches, stacks, strict=True)}
        zeros: dict[int, Tensor] = {}
        for batch, stacked in self._stacks.values():
            zeros.update(zip(batch, stacked.unbind(), strict=True))
        self.zeros: list[Tensor] = [zeros[i] for i in range(len(self.layers))]
        self.is_dense = not any(bool(stacked.any()) for stacked in stacks)
        self._factors: dict[torch.dtype, list[Tensor]] = {}

    @torch.no_grad()
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        if self.is_dense or not tensors:
            return
        if next(iter(tensors.values())).is_cuda:
            # Launches dominate on a GPU: two fused kernels for all tensors. The sum turns -0.0 into 0.0.
            shards = [local_shard(tensor) for tensor in tensors.values()]
            factors = self._factors_of(shards[0].dtype)
            torch._foreach_mul_(shards, [factors[i] for i in tensors])
            torch._foreach_add_(shards, 0.0)
            return
        # On a CPU a fill is as fast as a product, and it also clears NaN and writes no -0.0.
        for batch in self._batches_of(tensors):
            shards = list(local_shards([tensors[i] for i in batch]))
            stacked = self._buffers.stack(shards)
            stacked.masked_fill_(self.stacked_zeros(batch), 0.0)
            self._buffers.unstack_(shards, stacked)

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
            f"The checkpoint's mask for {layer.name!r} does not fit its shape {tuple(layer.shape)}: load a checkpoint "
            "of this model."
        ) from None
