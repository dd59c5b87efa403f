"""A trained network that is only asked."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_compress.distillation.batch_formats import logits_of
from lightning_compress.distillation.feature_hooks import FeatureHooks
from lightning_compress.distillation.image_conversion import Conversion
from lightning_compress.distillation.logit_cache import LogitCache
from lightning_compress.distillation.loss import LogitLoss


class FrozenNetwork:
    """A copy of a network: in eval mode, without gradients, and not part of any module.

    Since it is no submodule, it is in no state dict, no optimizer, no average of the weights and no bucket of DDP, and
    ``train()`` and ``to()`` of whoever holds it do not reach it. It goes where its inputs are. Copies of the holder
    share it.

    Args:
        network: The network; it is copied.
        name: What it is called in checkpoints and messages.
        dtype: Floating type to compute in; by default the network's own.
        compiled: Whether ``torch.compile`` is applied.
        taps: Names of modules whose outputs are wanted, too.
        conversion: What is done to images before the network sees them.
        cache: Directory in which its logits are kept by the keys of samples.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        taps: Sequence[str] = (),
        conversion: Conversion | None = None,
        cache: Path | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.identity = self._identify(name)
        if dtype is not None:
            self.network.to(dtype)
        self.taps = FeatureHooks(self.network, taps, whose="teacher")
        if compiled:
            self.network.compile()
        self._conversion = conversion
        self._directory = cache
        self._caches: dict[str, LogitCache] = {}

    learns = False
    """Whether it changes during the fit."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenNetwork:
        """Itself: nothing about it changes."""
        return self

    def _identify(self, name: str) -> dict[str, str]:
        return {"name": name, "hash": fingerprint(self.network.state_dict())}

    @contextmanager
    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None = None) -> Iterator[Any]:
        """Runs the network; in the context its taps have what its modules returned.

        Args:
            args: Positional arguments as the student got them; the images are the first of four dimensions.
            kwargs: Keyword arguments.
            keys: Keys ``(N,)`` of the samples: with a cache the network is run only for those that it has not, and its
                taps are not to be read.

        Yields:
            What the network returns.

        Raises:
            ValueError: If the cache cannot be used.
        """
        # Whoever else holds the network may have changed its mode.
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        with self.taps.open():
            # No wider: what is computed in this context needs its gradients.
            with torch.no_grad():
                output = self._answer(args, kwargs, keys)
            yield output

    def accumulate(self, student: Tensor, labels: Tensor | None, losses: Sequence[tuple[float, LogitLoss]]) -> None:
        """Nothing: it has learned what it knows.

        Args:
            student: The student's logits ``(N, C)`` for what was asked last.
            labels: Classes ``(N,)``, probabilities ``(N, C)``, or nothing.
            losses: Losses of logits with their weights.
        """

    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        """Nothing: it stays as it is.

        Args:
            student: The student's network, after a step.
            optimizer: The student's, which has made it.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it: nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state` said."""

    def _answer(self, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None) -> Any:
        if self._directory is None or keys is None:
            return self._run(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ValueError("A cache needs a student that takes one tensor.")
        if len(args[0]) != len(keys):
            raise ValueError(
                f"The student is called with {len(args[0])} samples of a batch that has {len(keys)} keys: a cache "
                "needs one sample for each key."
            )
        name = self._numerics(args[0].device.type)
        cache = self._caches.setdefault(name, LogitCache(self._directory / name))
        return cache.logits(keys, args[0], lambda missing: logits_of(self._run(missing), "teacher"))

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(self._input, (args, kwargs))
        return self.network(*args, **kwargs)

    def _numerics(self, device: str) -> str:
        """Name for all that its logits depend on beside the samples."""
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        dtype = next((parameter.dtype for parameter in self.network.parameters()), None)
        return hashlib.blake2b(
            repr((self.identity, self._conversion, dtype, autocast)).encode(), digest_size=8
        ).hexdigest()

    def _input(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        parameter = next(self.network.parameters(), value)
        if parameter.device != value.device:
            self.network.to(value.device)
        if not value.is_floating_point():
            return value
        if self._conversion is not None and value.ndim == 4:
            value = self._conversion(value)
        return value.to(parameter.dtype)


def fingerprint(state: Mapping[str, Any]) -> str:
    """Hexadecimal digest of the tensors' names, types, shapes and values, the same on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted((name, value) for name, value in state.items() if isinstance(value, Tensor)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
