"""Conversion of an FP32 ONNX file to FP16."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path


def convert_to_half(path: Path) -> None:
    """Store the weights of a file in FP16 and compute in FP16, in place; inputs and outputs stay FP32.

    Operators without an FP16 form in ONNX Runtime stay FP32, with casts around them. Numbers beyond the range of FP16
    are clipped to it.

    Args:
        path: The file.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    logger = logging.getLogger("onnxruntime.transformers.float16")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # It warns of every number that is rounded to zero.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    finally:
        logger.setLevel(level)
    onnx.save(converted, path)
