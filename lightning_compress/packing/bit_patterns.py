"""Tensors as NumPy arrays of bit patterns.

Encodings compare and store bit patterns instead of numbers, because NaN payloads and negative zeros do not survive
floating-point comparison.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BitPatterns = NDArray[Any]
"""Unsigned integers, one per element or vector; patterns of 16 bytes are rows of two 8-byte integers."""

Mask = NDArray[np.bool_]

_NAMES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
# Older versions of PyTorch lack some of the 8-bit and 4-bit types.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
"""Supported dtypes by their names in a file."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in a file."""
    return str(dtype).removeprefix("torch.")


def bit_patterns_of(tensor: Tensor, width: int = 1) -> BitPatterns:
    """Return the bit patterns of a tensor in row-major order, ``width`` consecutive elements per pattern."""
    # Conjugation and negation may be lazy views, whose memory holds the bits of the original.
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return _as_bit_patterns(plain.reshape(-1).view(torch.uint8).numpy(), tensor.element_size() * width)


def _as_bit_patterns(raw: NDArray[np.uint8], size: int) -> BitPatterns:
    # NumPy has no 16-byte integers.
    if size > 8:
        return np.frombuffer(raw, dtype="<u8").reshape(-1, size // 8)
    return np.frombuffer(raw, dtype=f"<u{size}")


def tensor_from_patterns(patterns: BitPatterns, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor with the given bit patterns; it shares the memory of ``patterns``."""
    if not patterns.size:
        # Viewed from bytes: with deterministic algorithms PyTorch cannot allocate empty tensors of every dtype.
        return torch.zeros(0, dtype=torch.uint8).view(dtype).reshape(shape)
    return torch.from_numpy(patterns.reshape(-1).view(np.uint8)).view(dtype).reshape(shape)


def num_columns_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements per index of the first dimension, or of all if there is only one dimension."""
    return math.prod(shape[1:] if len(shape) > 1 else shape)


def checksum(name: str, tensor: Tensor) -> int:
    """Return the CRC-32 of a tensor's name, dtype, shape and little-endian bytes."""
    description = f"{name} {dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
    return zlib.crc32(bit_patterns_of(tensor).data, zlib.crc32(description.encode("utf-8", "surrogatepass")))


def zero_pattern(size: int) -> BitPatterns:
    """Return an array of one pattern of ``size`` bytes, all bits zero."""
    return np.zeros((1, size // 8), "<u8") if size > 8 else np.zeros(1, f"<u{size}")


def is_nonzero(patterns: BitPatterns) -> Mask:
    """Return a mask of the patterns with at least one bit set; negative zeros are among them."""
    return np.asarray(patterns != 0 if patterns.ndim == 1 else patterns.any(axis=1))


def hash_keys(patterns: BitPatterns) -> BitPatterns:
    """Return one integer per pattern: the pattern, or a 64-bit hash of 16 bytes.

    Hashes may collide, so callers that need exact results compare the patterns afterwards.
    """
    if patterns.ndim == 1:
        return patterns
    # Two different odd multipliers and a rotation: equal halves must not cancel, nor swapped halves collide.
    first, second = patterns.T * np.array([[0x9E3779B97F4A7C15], [0xC2B2AE3D27D4EB4F]], dtype=np.uint64)
    return first ^ (second << np.uint64(29) | second >> np.uint64(35))
