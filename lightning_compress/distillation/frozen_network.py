"""Copy of a pretrained network that provides the targets of distillation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_compress.arguments import Arguments, as_arguments, reason
from lightning_compress.distillation.feature_hooks import FeatureHooks
from lightning_compress.distillation.image_conversion import Conversion
from lightning_compress.distillation.logit_cache import LogitCache
from lightning_compress.distillation.logit_formats import Positions, extract_logits
from lightning_compress.distillation.loss import LogitLoss
from lightning_compress.module_copies import copy_module


class TeacherError(ValueError):
    """A teacher cannot be run on its arguments, or not on the device of the dry run."""


class FrozenNetwork:
    """Copy of a network in eval mode, without gradients, that moves to the device of its inputs.

    Args:
        network: Network to copy.
        name: Name of the network in checkpoints and messages.
        dtype: Floating dtype to compute in; by default the network's own.
        compiled: If True, the copy is compiled with ``torch.compile``.
        layers: Names of the modules to record in :attr:`features`.
        conversion: Conversion of images ``(N, C, H, W)`` to the network's normalization and input size.
        cache: Directory in which logits are cached by the keys of the samples.
        inputs: Function from the batch to the network's arguments; by default it gets those of the student.
        output: Name of the module that returns the logits, which :attr:`features` records; by default the network.

    Attributes:
        network: The copy.
        features: Hooks on the modules ``layers``.
        identity: Name of the network and hash of its weights, as stored in checkpoints.
        is_updated: True if the network changes during the fit.
    """

    # Deliberately not an nn.Module: as a submodule of the DistillationModule it would enter the state dict, the
    # optimizer, averages of the weights and DDP's buckets, and train() and to() of the student would reach it.

    is_updated = False

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        layers: Sequence[str] = (),
        conversion: Conversion | None = None,
        cache: Path | None = None,
        inputs: Callable[[Any], Any] | None = None,
        output: str | None = None,
    ) -> None:
        self.network = copy_module(network).requires_grad_(False).eval()
        # Hashed before the cast, so that the identity is that of the weights as given, in any precision.
        self.identity = self._identify(name)
        if dtype is not None:
            self.network.to(dtype)
        self._output = output
        self.features = FeatureHooks(self.network, [*layers, *([output] if output else [])], owner="teacher")
        if compiled:
            self.network.compile()
        self._name, self._inputs = name, inputs
        self._conversion = conversion
        self._directory = cache
        self._caches: dict[str, LogitCache] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenNetwork:
        """Return the network itself: copies of its owner share it, since they run it but never update it."""
        return self

    def _identify(self, name: str) -> dict[str, str]:
        return {"name": name, "hash": fingerprint(self.network.state_dict())}

    def configure_model(self, mesh: DeviceMesh) -> None:
        """Let a LightningModule shard its layers in its own ``configure_model``, as a student does."""
        # An average of the student, or a peer, is updated as a whole.
        if isinstance(self.network, LightningModule) and not self.is_updated:
            self.network._device_mesh = mesh
            self.network.configure_model()
            self.network.requires_grad_(False)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], batch: Any) -> Arguments:
        """Return the arguments of the network: those of the student, or those made from the batch.

        Args:
            args: Positional arguments of the student.
            kwargs: Keyword arguments of the student.
            batch: Batch as ``training_step`` gets it.
        """
        return (tuple(args), dict(kwargs)) if self._inputs is None else as_arguments(self._inputs(batch))

    def forward(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None = None, name: str = ""
    ) -> Any:
        """Run the network without gradients; inside ``features.record()`` its features are recorded.

        Args:
            args: Positional arguments; those of shape ``(N, C, H, W)`` are converted as images.
            kwargs: Keyword arguments.
            keys: Keys ``(N,)`` of the samples. With a cache, only samples that are not cached are computed, and no
                features can be read.
            name: Name of the student's module that got the arguments. A network without a ``forward`` of its own, such
                as a LightningModule of the student's class, is run by its module of that name.

        Returns:
            Output of the network or of its module ``output``, or logits ``(N, C)`` from the cache.

        Raises:
            ValueError: If the network fails on these arguments, or the cache cannot be used for them.
        """
        # Other code that holds the network may have changed its mode.
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        with torch.no_grad():
            return self._cached_forward(self._callee(name), args, kwargs, keys)

    def accumulate(self, heads: Sequence[tuple[Tensor, Positions]], losses: Sequence[tuple[float, LogitLoss]]) -> None:
        """Add the loss of the last batch to the gradients of the network; a frozen network has none.

        Args:
            heads: Logits ``(M, C)`` of each head of the student for the inputs of the last :meth:`forward`, and their
                positions.
            losses: Pairs of a weight and a logit loss.
        """

    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        """Update the network after a step of the student's optimizer; a frozen network stays unchanged.

        Args:
            student: Network of the student after the step.
            optimizer: The student's optimizer.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores; empty, as the weights of a frozen network are not stored."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""

    def _callee(self, name: str) -> nn.Module:
        if type(self.network).forward.__qualname__ not in ("_forward_unimplemented", "LightningModule.forward"):
            return self.network
        try:
            return self.network.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"The teacher {self._name!r} has no forward, and no module {name!r} as the student: pass its network."
            ) from error

    def _cached_forward(
        self, network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None
    ) -> Any:
        if self._directory is None or keys is None:
            return self._run(network, args, kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ValueError("cache=... supports only a student that is called with one tensor: leave cache out.")
        if len(args[0]) != len(keys):
            raise ValueError(
                f"The student is called with {len(args[0])} samples of a batch that has {len(keys)} keys: a cache "
                "needs one sample for each key."
            )
        name = self._cache_name(args[0].device.type)
        cache = self._caches.setdefault(name, LogitCache(self._directory / name))
        return cache.logits(keys, args[0], lambda missing: self._sample_logits(network, missing))

    def _sample_logits(self, network: nn.Module, samples: Tensor) -> Tensor:
        heads = extract_logits(self._run(network, (samples,), {}), "teacher")
        if len(heads) != 1 or heads[0].ndim != 2:
            shapes = " and ".join(str(tuple(head.shape)) for head in heads)
            raise ValueError(f"cache=... stores logits (N, C) only, not {shapes}: leave cache out.")
        return heads[0]

    def _run(self, network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        args, kwargs = tree_map(self._convert_input, (tuple(args), dict(kwargs)))
        try:
            output = network(*args, **kwargs)
            return self.features[self._output].output if self._output else output
        except Exception as error:
            if is_oom_error(error):  # from which the Tuner finds the largest batch size
                raise
            raise TeacherError(
                f"The teacher {self._name!r} fails on {'its' if self._inputs else 'the arguments of the student'} "
                f"({reason(error)}): give Teacher(inputs=...), a function from the batch to its arguments."
            ) from error

    def _cache_name(self, device: str) -> str:
        """Return a hash of everything that the logits depend on besides the samples."""
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        dtype = next((parameter.dtype for parameter in self.network.parameters()), None)
        # The repr of the conversion includes class and field names: renaming them invalidates existing caches.
        return hashlib.blake2b(
            repr((self.identity, self._conversion, dtype, autocast)).encode(), digest_size=8
        ).hexdigest()

    def _convert_input(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        parameter = next(self.network.parameters(), value)
        if parameter.device != value.device:
            self.network.to(value.device)
        if not value.is_floating_point():
            return value
        # Converted in the dtype of the input, before a cast to lower precision rounds the pixels.
        if self._conversion is not None and value.ndim == 4:
            value = self._conversion(value)
        return value.to(parameter.dtype)


def fingerprint(state: Mapping[str, Any]) -> str:
    """Return a hash of the names, dtypes, shapes and values of tensors, equal on every device.

    Args:
        state: State dict; values that are not tensors are ignored.

    Returns:
        Hexadecimal BLAKE2b digest of 16 bytes.

    >>> fingerprint({"a": torch.arange(6.0), "b": torch.tensor(True)})
    '02273ec0efea96ad33c73df91841cc86'
    """
    digest = hashlib.blake2b(digest_size=16)
    # Sorted by name, as the order of a state dict follows that of registration.
    for name, tensor in sorted((name, value) for name, value in state.items() if isinstance(value, Tensor)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
