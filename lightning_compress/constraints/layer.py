"""A constrained weight tensor, full or sharded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from lightning_compress.targets import COMPILED


@dataclass(frozen=True, eq=False)
class Layer:
    """Weight tensor of a constraint; a sharded one (FSDP2, tensor parallelism) is processed shard by shard.

    Attributes:
        name: Name of the parameter in the state dict.
        parameter: The parameter that the optimizer holds.
        input_dim: Dimension of the input channels: 1, or 0 for transposed convolutions and weights stored as (in, out).
        knows_input_dim: False if the layer is of a kind that does not tell its ``input_dim``.
    """

    name: str
    parameter: nn.Parameter
    input_dim: int = 1
    knows_input_dim: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.parameter, DTensor):
            mesh, placements = self.parameter.device_mesh, self.parameter.placements
            if mesh.ndim != 1 or placements[0].is_partial():
                raise ValueError(
                    f"{self.name!r} is laid out as {placements} over a mesh of {mesh.ndim} dimensions; only sharding "
                    "of one dimension over one mesh dimension is supported, by FSDP2 or by tensor parallelism: exclude "
                    "it or shard it so."
                )

    @property
    def layer(self) -> str:
        """Name of the module that owns the weight, without the prefix of ``torch.compile``."""
        return self.name.rpartition(".")[0].replace(COMPILED, "")

    @cached_property
    def num_weights(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """All that must be equal in layers that are processed together."""
        placements = self.parameter.placements if isinstance(self.parameter, DTensor) else None
        return self.shape, self.parameter.dtype, self.parameter.device, self.input_dim, placements

    @cached_property
    def shard_dim(self) -> int | None:
        """Dimension of which each rank has a share; ``None`` if each has the whole weight."""
        if not isinstance(self.parameter, DTensor):
            return None
        placement = self.parameter.placements[0]
        return placement.dim % len(self.shape) if isinstance(placement, Shard) else None

    @property
    def weight(self) -> Tensor:
        """This rank's shard of the weight, detached, on the same storage."""
        return local_shard(self.parameter.detach())

    @property
    def gradient(self) -> Tensor:
        """This rank's shard of the gradient."""
        assert self.parameter.grad is not None
        return local_shard(self.parameter.grad)

    @property
    def shape(self) -> torch.Size:
        """Shape of the full weight."""
        return self.parameter.shape

    @property
    def shard_shape(self) -> torch.Size:
        """Shape of the first rank's shard, the largest: what all ranks can check alike."""
        if self.group is None or self.shard_dim is None:
            return self.shape
        rows = -(-self.shape[self.shard_dim] // dist.get_world_size(self.group))
        return torch.Size([rows if dim == self.shard_dim else size for dim, size in enumerate(self.shape)])

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Process group over which the weight is sharded, or ``None``."""
        if not isinstance(self.parameter, DTensor) or self.shard_dim is None:
            return None
        return self.parameter.device_mesh.get_group()

    def local(self, full: Tensor) -> Tensor:
        """Return this rank's shard of a tensor of the full weight's shape, on the weight's device."""
        if self.group is None or self.shard_dim is None:
            return full.to(self.parameter.device)
        # torch.chunk, as DTensor does it: trailing ranks may get fewer rows, or none.
        chunks = full.chunk(dist.get_world_size(self.group), self.shard_dim)
        rank = dist.get_rank(self.group)
        shard = chunks[rank] if rank < len(chunks) else full.narrow(self.shard_dim, 0, 0)
        # A copy, as a view would keep the full tensor on every rank.
        return shard.to(self.weight.device, copy=True).contiguous()

    def full(self, shard: Tensor) -> Tensor:
        """Return the full tensor of which each rank passes its shard; a collective if sharded."""
        if self.group is None:
            return shard
        parameter = self.parameter
        assert isinstance(parameter, DTensor)
        shards = DTensor.from_local(
            shard.to(torch.uint8) if shard.dtype == torch.bool else shard,  # collectives lack bool
            parameter.device_mesh,
            parameter.placements,
            shape=self.shape,
            stride=torch.empty(self.shape, device="meta").stride(),
        )
        return shards.full_tensor().to(shard.dtype)

    def local_vector(self, full: Tensor) -> Tensor:
        """Return the entries of this rank's weights of a vector with an entry for each weight."""
        # No view of each of many small layers: a vector is what whole weights need.
        if self.group is None:
            return full.to(self.parameter.device)
        return self.local(full.view(self.shape)).flatten()

    def full_vector(self, shard: Tensor) -> Tensor:
        """Return a vector with an entry for each weight, from those of this rank's; a collective if sharded."""
        return shard if self.group is None else self.full(shard.view(self.weight.shape)).flatten()


def group_of(layers: Sequence[Layer]) -> dist.ProcessGroup | None:
    """Return the process group over which layers are sharded; ``None`` if none is.

    Under tensor parallelism some layers may be sharded, and others whole and equal on each rank.
    """
    return next((layer.group for layer in layers if layer.group is not None), None)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shards(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return this rank's shards of tensors that are all sharded, or none of them."""
    # Asked of one: many small layers have many tensors.
    return [local_shard(tensor) for tensor in tensors] if isinstance(tensors[0], DTensor) else tensors
