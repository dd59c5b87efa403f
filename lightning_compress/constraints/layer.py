"""A constrained weight tensor, whole or sharded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight that a constraint holds; a sharded one (FSDP2) is worked on shard by shard.

    Attributes:
        name: Name of the parameter in the state dict.
        parameter: The parameter as the optimizer holds it.
        input_dim: The dimension that runs over input channels (1; 0 for transposed convolutions).
    """

    name: str
    parameter: nn.Parameter
    input_dim: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.parameter, DTensor):
            mesh, placements = self.parameter.device_mesh, self.parameter.placements
            if mesh.ndim != 1 or placements != (Shard(0),):
                raise ValueError(
                    f"{self.name!r} is laid out as {placements} over a mesh of {mesh.ndim} dimensions; only FSDP2's "
                    "sharding of the first dimension over one mesh dimension is supported: exclude it or shard it so."
                )

    @property
    def layer(self) -> str:
        """Name of the module that owns the weight, as users write it."""
        return self.name.rpartition(".")[0].replace("_orig_mod.", "")

    @property
    def weight(self) -> Tensor:
        """This rank's part of the weight, detached, on the same storage."""
        return local(self.parameter.detach())

    @property
    def gradient(self) -> Tensor:
        """This rank's part of the gradient."""
        assert self.parameter.grad is not None
        return local(self.parameter.grad)

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole weight."""
        return self.parameter.shape

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Process group over which the weight is sharded."""
        return self.parameter.device_mesh.get_group() if isinstance(self.parameter, DTensor) else None

    def local(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor of the whole weight's shape, on the weight's device."""
        if self.group is None:
            return whole.to(self.parameter.device)
        chunks = whole.chunk(dist.get_world_size(self.group))
        rank = dist.get_rank(self.group)
        return (chunks[rank] if rank < len(chunks) else whole[:0]).to(self.weight.device)

    def full(self, part: Tensor) -> Tensor:
        """The tensor of the whole weight's shape of which each rank gives its part; a collective if sharded."""
        if self.group is None:
            return part
        parameter = self.parameter
        assert isinstance(parameter, DTensor)
        shards = DTensor.from_local(
            part.to(torch.uint8) if part.dtype == torch.bool else part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=self.shape,
            stride=torch.empty(self.shape, device="meta").stride(),
        )
        return shards.full_tensor().to(part.dtype)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
