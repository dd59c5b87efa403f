"""Command line interface; PyTorch is imported only by the commands that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_compress.cli.command import main

if TYPE_CHECKING:
    from lightning_compress.cli.compression import CompressionCLI

__all__ = ["CompressionCLI", "main"]


def __getattr__(name: str) -> Any:
    if name != "CompressionCLI":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_compress.cli.compression import CompressionCLI

    return CompressionCLI
