"""Tensors as arrays of their bit patterns: what is packed is bits, so that NaNs and negative zeros come back."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[Any]
"""Unsigned integers of the tensor's width; bit patterns of 16 bytes are two of 8 in a row."""

_NAMES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
"""Types of tensors by their names in a file."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type in a file."""
    return str(dtype).removeprefix("torch.")


def bit_patterns_of(tensor: Tensor, width: int = 1) -> Words:
    """The bit patterns of a tensor in row-major order, ``width`` elements in each."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return as_bit_patterns(plain.reshape(-1).view(torch.uint8).numpy(), tensor.element_size() * width)


def as_bit_patterns(raw: NDArray[np.uint8], size: int) -> Words:
    """Bytes as patterns of ``size`` bytes each."""
    if size > 8:
        return np.frombuffer(raw, dtype="<u8").reshape(-1, size // 8)
    return np.frombuffer(raw, dtype=f"<u{size}")


def tensor_of(words: Words, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a type and shape whose bit patterns these are; ``words`` becomes its memory."""
    if not words.size:
        # By way of bytes: with deterministic algorithms PyTorch cannot make an empty tensor of every type.
        return torch.zeros(0, dtype=torch.uint8).view(dtype).reshape(shape)
    return torch.from_numpy(words.reshape(-1).view(np.uint8)).view(dtype).reshape(shape)


def checksum(name: str, tensor: Tensor) -> int:
    """CRC-32 of what a tensor is called and is, and of its bytes, little-endian."""
    what = f"{name} {dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
    return zlib.crc32(bit_patterns_of(tensor).data, zlib.crc32(what.encode("utf-8", "surrogatepass")))


def zero_of(size: int) -> Words:
    """One pattern of ``size`` bytes, zero."""
    return np.zeros((1, size // 8), "<u8") if size > 8 else np.zeros(1, f"<u{size}")


def is_nonzero(words: Words) -> NDArray[np.bool_]:
    """Where a pattern has any bit."""
    return np.asarray(words != 0 if words.ndim == 1 else words.any(axis=1))


def keys_of(words: Words) -> Words:
    """One integer for each pattern: itself, or of 16 bytes a hash, to be checked."""
    if words.ndim == 1:
        return words
    low, high = words.T * np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F]], dtype=np.uint64)
    return low ^ (high << np.uint64(29) | high >> np.uint64(35))
